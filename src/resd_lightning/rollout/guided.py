"""Guided decoding: what a model says after its thinking is held to a JSON schema, token by token."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerBase

from resd_lightning.rollout.chat import opens_thinking
from resd_lightning.rollout.engine import Schema
from resd_lightning.thinking import THINK_CLOSE

if TYPE_CHECKING:
    import xgrammar

MAX_WHITESPACE = 8
"""Longest run of whitespace between two JSON tokens: without a bound a weak model writes blanks to its limit."""
TAIL = 16
"""Tokens looked back for `</think>`: more than any tokenizer spells it with."""


class JsonGuides:
    """Makes guides for one tokenizer; kept, because reading a large vocabulary takes seconds.

    Args:
        tokenizer: Of the model that is guided.
        vocab_size: Number of its logits.
        stop_ids: Tokens that end a turn.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int, stop_ids: Collection[int]) -> None:
        import xgrammar  # optional: config refuses guided_json where it is not installed

        info = xgrammar.TokenizerInfo.from_huggingface(
            tokenizer, vocab_size=vocab_size, stop_token_ids=sorted(stop_ids)
        )
        self._compiler = xgrammar.GrammarCompiler(info)
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    def guide(self, schema: Schema, prompts: Sequence[Sequence[int]]) -> JsonGuide:
        """Return the processor for one batch; a processor serves one call of `generate`."""
        grammar = self._compiler.compile_json_schema(schema, max_whitespace_cnt=MAX_WHITESPACE)
        is_thinking = [opens_thinking(self._tokenizer, prompt) for prompt in prompts]
        return JsonGuide(grammar, self._tokenizer, self._vocab_size, is_thinking)


class JsonGuide(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Masks the tokens that would break the schema; a row whose prompt opens a thinking trace is free until it closes.

    Args:
        grammar: The compiled schema.
        tokenizer: Decodes a thinking row's latest tokens.
        vocab_size: Number of logits.
        is_thinking: For each row, whether its response begins in mid-thought.
    """

    def __init__(
        self,
        grammar: xgrammar.CompiledGrammar,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        is_thinking: Sequence[bool],
    ) -> None:
        import xgrammar

        self._tokenizer = tokenizer
        self._is_thinking = list(is_thinking)
        self._matchers = [xgrammar.GrammarMatcher(grammar) for _ in is_thinking]
        self._bitmask = xgrammar.allocate_token_bitmask(len(is_thinking), vocab_size)  # all tokens allowed
        self._apply = xgrammar.apply_token_bitmask_inplace
        self._prompt_length: int | None = None

    def __call__(
        self, input_ids: Int[Tensor, "batch time"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Return the logits with the tokens that may not come next at minus infinity."""
        if self._prompt_length is None:
            self._prompt_length = input_ids.shape[1]
        responses = input_ids[:, self._prompt_length :].tolist()
        for row, (matcher, response) in enumerate(zip(self._matchers, responses, strict=True)):
            if matcher.is_terminated():  # the row is finished; others are not
                continue
            if self._is_thinking[row]:
                if THINK_CLOSE not in self._tokenizer.decode(response[-TAIL:]):
                    continue
                self._is_thinking[row] = False
            elif response and not matcher.accept_token(response[-1]):
                raise RuntimeError(f"row {row} was given token {response[-1]}, which its guide had masked")
            if not matcher.is_terminated():  # the stop token ends it
                matcher.fill_next_token_bitmask(self._bitmask, row)
        self._apply(scores, self._bitmask.to(scores.device))
        return scores
