"""What an engine does: turn requests into completions, each from its own seed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from resd_lightning.config import Author, PolicyConfig, SamplingConfig
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Message, Purpose

Schema = dict[str, object]


@dataclass(frozen=True)
class GenerationRequest:
    """One response to generate; all of it but the messages seeds the response's noise.

    Attributes:
        purpose: What the text is for.
        update: Updates done before it.
        example_id: The prompt it belongs to.
        sample: Its number among the responses of that prompt and purpose.
        messages: The chat to answer.
    """

    purpose: Purpose
    update: int
    example_id: str
    sample: int
    messages: tuple[Message, ...]

    def seed(self, run_seed: int) -> int:
        """Return this sample's seed, a number below 2**63: the same wherever and with whomever it is generated."""
        name = f"{run_seed}|{self.update}|{self.purpose}|{self.example_id}|{self.sample}"
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


class Engine(ABC):
    """Generates completions. Constructing one loads nothing; `attach` gives it the policy."""

    def check(self, policy: PolicyConfig, *, is_mixed: bool) -> None:  # noqa: B027  # most engines take any
        """Refuse what the engine can't sample from, before any weight is loaded.

        Args:
            policy: How the model is to be held.
            is_mixed: The trainer's precision is a mixed one.

        Raises:
            ConfigError: It can't; the message names the key.
        """

    @abstractmethod
    def attach(self, policy: Policy, run_seed: int) -> None:
        """Bind the engine to the weights it samples from and to the run's seed."""

    @abstractmethod
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
        """Return one completion per request, in order.

        A prompt longer than `max_prompt_tokens` yields a skipped completion. `on_progress` is told how many requests
        have finished since the last call.
        """
