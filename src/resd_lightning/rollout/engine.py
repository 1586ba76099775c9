"""What an engine does: turn requests into completions, each from its own seed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

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


class EngineError(RuntimeError):
    """An engine can't go on, for a reason outside the run; nothing is lost but the update in progress."""


@dataclass(frozen=True)
class Needs:
    """What a run will ask of its engine, as far as it is known before any weight is loaded.

    Attributes:
        policy: The language model and how the trainer holds it.
        tokenizer: The trainer's.
        longest_tokens: Most tokens of a prompt and its response.
        rollout: Sampling of training rollouts.
        is_weighed: Whether a loss will read the rollouts' log-probs; see `model.distillation.importance_clip`.
    """

    policy: PolicyConfig
    tokenizer: PreTrainedTokenizerBase
    longest_tokens: int
    rollout: SamplingConfig
    is_weighed: bool


class Engine(ABC):
    """Generates completions. Constructing one loads nothing; `attach` gives it the policy."""

    is_apart = False
    """Whether another program computes the probabilities, so that they differ a little from the trainer's."""

    def check(  # noqa: B027  # most engines take any
        self, policy: PolicyConfig, *, is_mixed: bool, is_sharded: bool = False
    ) -> None:
        """Refuse what the engine can't sample from, by the settings alone.

        Args:
            policy: How the model is to be held.
            is_mixed: The trainer's precision is a mixed one.
            is_sharded: The trainer's strategy gives each rank a share of the weights.

        Raises:
            ConfigError: It can't; the message names the key.
        """

    def prepare(self, needs: Needs) -> None:  # noqa: B027  # most have nothing to check
        """Refuse what the run's tokenizer and lengths, or programs elsewhere, don't allow.

        Called before any weight is loaded, and again when training starts.

        Raises:
            ConfigError: The text says what to change.
        """

    def take_metrics(self) -> dict[str, float]:
        """Return what the engine has measured of itself since the last call, by metric name; the same on every rank."""
        return {}

    def close(self) -> None:  # noqa: B027  # most hold nothing
        """Let go of what is held outside this process."""

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
        have finished since the last call. All ranks call it together, some perhaps without a request.

        Raises:
            EngineError: The engine can't go on; on every rank alike.
        """
