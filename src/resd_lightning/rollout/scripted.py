"""An engine that answers from a function: the whole loop without chance, for tests and worked examples."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from resd_lightning.config import Author, SamplingConfig
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Message
from resd_lightning.rollout.chat import encode_prompt
from resd_lightning.rollout.engine import Engine, GenerationRequest, Schema

Script = Callable[[str, int, str, int, Sequence[Message]], str]


class ScriptedEngine(Engine):
    """Answers every request with `script(purpose, update, example_id, sample, messages)`.

    Args:
        script: Returns the response's text. Purpose is one of rollout, reflect, tag, curate, validate, predict,
            rescore, diagnose.
    """

    def __init__(self, script: Script) -> None:
        self._script = script
        self._policy: Policy | None = None

    def attach(self, policy: Policy, run_seed: int) -> None:
        """Take the policy's tokenizer; weights and seed play no part in a scripted answer."""
        self._policy = policy

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingConfig,
        *,
        author: Author,
        max_prompt_tokens: int,
        schema: Schema | None,
        on_progress: Callable[[int], object],
    ) -> list[Completion]:
        """Return the script's answers as completions, tokenized, cut at `sampling.max_new_tokens`."""
        if self._policy is None:
            raise RuntimeError("ScriptedEngine.generate was called before attach")
        tokenizer = self._policy.tokenizer
        completions = []
        for request in requests:
            prompt_ids = encode_prompt(tokenizer, request.messages)
            if len(prompt_ids) > max_prompt_tokens:
                completions.append(Completion("", prompt_ids, (), is_skipped=True))
                on_progress(1)
                continue
            text = self._script(
                str(request.purpose), request.update, request.example_id, request.sample, request.messages
            )
            ids = (*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id)
            cut = ids[: sampling.max_new_tokens]
            is_truncated = len(cut) < len(ids)
            if is_truncated:
                text = tokenizer.decode(list(cut), skip_special_tokens=True)
            completions.append(Completion(text, prompt_ids, cut, is_truncated=is_truncated))
            on_progress(1)
        return completions
