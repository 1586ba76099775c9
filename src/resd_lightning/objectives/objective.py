"""What every objective does: cut an update into micro-batches, and say what each adds to the update's loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from resd_lightning.config import Reduction
from resd_lightning.policy.views import Policy
from resd_lightning.records import BatchT, Rollout, TeacherPrompt

Lengths = tuple[int, int]
"""Tokens of a rollout's longest prompt, the student's or the teacher's, and of its response."""


@dataclass(frozen=True)
class Cut:
    """How an update is cut into micro-batches.

    Attributes:
        micro_batch_size: Most rollouts per micro-batch.
        num_slots: Micro-batches that every rank runs in every update.
        pad_id: Token that fills the padding.
        rank: This process among `world_size`.
        world_size: Number of processes that share the update.
        micro_batch_tokens: Most tokens per micro-batch, padding included; a longer rollout has one to itself. Packed,
            teacher prompts behind a shared prefix are padded all the same, and logits are of the longest response.
        is_packed: Micro-batches have no padding.
    """

    micro_batch_size: int
    num_slots: int
    pad_id: int
    rank: int = 0
    world_size: int = 1
    micro_batch_tokens: int | None = None
    is_packed: bool = False

    def chunks(self, lengths: Mapping[int, Lengths]) -> list[list[int]]:
        """Return this rank's share of some rollouts, a chunk for each micro-batch.

        Under a limit of tokens, rollouts of similar length stand together, the longest first: so padding is least, and
        an update that is too large for the memory fails at its beginning.

        Args:
            lengths: Those of each counted rollout, by its index among the update's.
        """
        order = list(lengths)
        if self.micro_batch_tokens is not None:
            order.sort(key=lambda i: -sum(lengths[i]))
        chunks: list[list[int]] = []
        for i in order[self.rank :: self.world_size]:
            if chunks and self._fits([lengths[j] for j in (*chunks[-1], i)]):
                chunks[-1].append(i)
            else:
                chunks.append([i])
        return chunks

    def _fits(self, lengths: Sequence[Lengths]) -> bool:
        """Whether rollouts of these lengths may share a micro-batch; prompts and responses are padded apart."""
        prompts, responses = zip(*lengths, strict=True)
        tokens = sum(map(sum, lengths)) if self.is_packed else len(lengths) * (max(prompts) + max(responses))
        limit = self.micro_batch_tokens
        return len(lengths) <= self.micro_batch_size and (limit is None or tokens <= limit)


class Objective(ABC, Generic[BatchT]):
    """What an update minimises over its rollouts."""

    uses_teacher: bool
    """Whether it reads teacher prompts; where not, no context is made for them and no teacher scores anything."""

    def __init__(self) -> None:
        self._sums: dict[str, Float[Tensor, ""]] = {}

    def begin_update(self) -> None:
        """Start the update's sums from nothing."""
        self._sums = {}

    def sums(self) -> dict[str, Float[Tensor, ""]]:
        """Return metrics as this rank's share of them: their sums over ranks are the metrics, in the same order."""
        return self._sums

    def measure(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Return what the update's rollouts mean to the objective, by metric name."""
        return {}

    def cut_metrics(self) -> dict[str, float]:
        """Return how the latest `micro_batches` were made, by metric name; the same on every rank."""
        return {}

    def end_update(self) -> None:
        """Let go of what only the update's micro-batches needed."""

    @abstractmethod
    def describe(self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt]) -> list[Mapping[str, float]]:
        """Return how each rollout of an update counts, for transcripts."""

    @abstractmethod
    def micro_batches(
        self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt], cut: Cut
    ) -> Sequence[BatchT]:
        """Return exactly `cut.num_slots` micro-batches of this rank's share; slots left over weigh nothing.

        Args:
            rollouts: All rollouts of the update, over all ranks.
            prompts: Their teacher prompts; plain where the objective uses no teacher.
            cut: How they are cut up.
        """

    @abstractmethod
    def loss(self, policy: Policy, batch: BatchT) -> Float[Tensor, ""]:
        """Return this micro-batch's part of the update's loss; the parts add up to it."""

    def take_token_facts(self) -> dict[str, Float[Tensor, "batch time"]]:
        """Return, once, what the latest loss had at hand anyway, by name: per token, detached, zero at padding."""
        return {}

    def _add(self, name: str, part: Float[Tensor, ""]) -> None:
        """Add a micro-batch's part to one of the sums."""
        self._sums[name] = self._sums.get(name, torch.zeros_like(part)) + part.detach()


def reduce_over(
    rollouts: Sequence[Rollout], counted: Bool[Tensor, " rollout"], weights: Float[Tensor, " rollout"], how: Reduction
) -> Float[Tensor, " rollout"]:
    """Return each rollout's factor on the sum of its token losses, so that the sum over rollouts is the loss.

    Those that don't count, or have no tokens, get 0 but are among the sequences of a mean over sequences. All come from
    the whole update, over all ranks, before its first micro-batch, so how an update is cut up doesn't change it.

    Returns:
        (rollout,) fp32: weight / (N x T_i) for sequence_mean, weight / N for sequence_sum, weight / sum of the counted
        T_i for token_mean; N is the number of rollouts, T_i the response tokens of rollout i.
    """
    # With the types named, an update all of whose questions were too long is a tensor of no rollouts.
    lengths = torch.tensor([len(rollout.completion.token_ids) for rollout in rollouts], dtype=torch.float32)
    counted = counted & (lengths > 0)
    weights = weights * counted
    if how == "token_mean":
        return weights / lengths[counted].sum().clamp_min(1)
    if how == "sequence_sum":
        return weights / len(rollouts)
    return weights / (len(rollouts) * lengths.clamp_min(1))
