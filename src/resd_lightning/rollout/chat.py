"""From messages to tokens and back: the one place where the chat template is applied."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from resd_lightning.records import Message
from resd_lightning.thinking import THINK_OPEN


def encode_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> tuple[int, ...]:
    """Return the tokens of a chat up to where the assistant's response begins.

    Control tokens spelled out inside a message (a model may quote `<|im_end|>` in its response, which then stands in
    the next prompt) are broken up by a space, so that text never ends a turn.
    """
    controls = _controls(tokenizer)
    safe = [{"role": m["role"], "content": _without_controls(m["content"], controls)} for m in messages]
    ids = tokenizer.apply_chat_template(safe, add_generation_prompt=True, tokenize=True, return_dict=False)
    return tuple(ids)


def decode_response(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> str:
    """Return a response's text without special tokens.

    A thinking model's template may open the thinking trace inside the prompt. The opening tag is put back in front
    then, so that a response cut off in mid-thought is seen to hold no answer.
    """
    text = tokenizer.decode(list(response_ids), skip_special_tokens=True)
    return f"{THINK_OPEN}\n{text}" if opens_thinking(tokenizer, prompt_ids) else text


def opens_thinking(tokenizer: PreTrainedTokenizerBase, prompt_ids: Sequence[int]) -> bool:
    """Return whether the chat template has opened a thinking trace for the response to go on with."""
    return bool(tokenizer.decode(list(prompt_ids[-8:])).rstrip().endswith(THINK_OPEN))


def _controls(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    # Not only the tokens with a role (eos, pad): Llama's header tokens have none, and all_special_tokens omits them.
    added = tokenizer.added_tokens_decoder.values()
    return sorted({token.content for token in added if token.special} | set(tokenizer.all_special_tokens))


def _without_controls(text: str, controls: Sequence[str]) -> str:
    text = text.encode("utf-8", "replace").decode("utf-8")  # tokenizers refuse lone surrogates
    for control in controls:
        if control in text:
            text = text.replace(control, f"{control[0]} {control[1:]}")
    return text
