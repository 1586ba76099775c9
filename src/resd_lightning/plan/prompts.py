"""How long a task's training prompts are, and how many of them a run would skip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from resd_lightning.records import Example
from resd_lightning.rollout.chat import encode_prompt

MOST = 1000
"""Prompts that are tokenized: more would tell little and take minutes."""


@dataclass(frozen=True)
class PromptLengths:
    """Training prompts in tokens.

    Attributes:
        count: How many were tokenized, from the first on.
        mean: Their mean length.
        longest: The longest.
        too_long: How many are above the limit, and would be skipped.
    """

    count: int
    mean: float
    longest: int
    too_long: int


def measure_prompts(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], limit: int) -> PromptLengths:
    """Return the lengths of the first prompts of a training split, chat template included."""
    lengths = [len(encode_prompt(tokenizer, example.messages)) for example in examples[:MOST]]
    return PromptLengths(
        len(lengths), sum(lengths) / len(lengths), max(lengths), sum(length > limit for length in lengths)
    )
