"""Distillation that gives way to GRPO: both losses on the same rollouts, their weights adding up to one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jaxtyping import Float
from torch import Tensor

from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.objectives.grpo import GrpoObjective
from resd_lightning.objectives.objective import Cut, Objective
from resd_lightning.policy.views import Policy
from resd_lightning.records import DistillBatch, MicroBatch, Rollout, TeacherPrompt


class MixtureObjective(Objective[MicroBatch]):
    """weight x distillation + (1 - weight) x GRPO, as of one update.

    The two losses take turns in micro-batches of their own: each runs over the rollouts that count for it, and no more
    than one graph lives at a time.

    Args:
        distillation: The one.
        grpo: The other.
        weight: Of distillation, in [0, 1]; at 0 no teacher is used any more.
    """

    def __init__(self, distillation: DistillationObjective, grpo: GrpoObjective, weight: float) -> None:
        super().__init__()
        self.distillation = distillation
        self.grpo = grpo
        self.weight = weight
        self.uses_teacher = weight > 0

    def begin_update(self) -> None:
        """Start both parts' sums from nothing."""
        self.distillation.begin_update()
        self.grpo.begin_update()

    def sums(self) -> dict[str, Float[Tensor, ""]]:
        """Return both parts' sums."""
        return self.distillation.sums() | self.grpo.sums()

    def measure(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        """Return what GRPO counts, and the weight."""
        return {**self.grpo.measure(rollouts), "mixture/distillation_weight": self.weight}

    def cut_metrics(self) -> dict[str, float]:
        """Return the distillation's; GRPO has none."""
        return self.distillation.cut_metrics()

    def end_update(self) -> None:
        """Let both parts go of what they needed."""
        self.distillation.end_update()
        self.grpo.end_update()

    def describe(self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt]) -> list[Mapping[str, float]]:
        """Return each rollout's coefficient in the distillation, weight left out, and its advantage."""
        both = zip(self.distillation.describe(rollouts, prompts), self.grpo.describe(rollouts, prompts), strict=True)
        return [{**one, **other} for one, other in both]

    def micro_batches(
        self, rollouts: Sequence[Rollout], prompts: Sequence[TeacherPrompt], cut: Cut
    ) -> list[MicroBatch]:
        """Return half the slots for each loss, the coefficients weighted; see `Objective`."""
        batches: list[MicroBatch] = []
        for part, weight in ((self.distillation, self.weight), (self.grpo, 1 - self.weight)):
            own = part.micro_batches(
                rollouts if weight > 0 else (),
                prompts if weight > 0 else (),
                replace(cut, num_slots=cut.num_slots // 2),
            )
            for batch in own:
                batch.coefficients = batch.coefficients * weight
            batches += own
        return batches

    def loss(self, policy: Policy, batch: MicroBatch) -> Float[Tensor, ""]:
        """Return the part of the loss that the batch was made for."""
        if isinstance(batch, DistillBatch):
            return self.distillation.loss(policy, batch)
        return self.grpo.loss(policy, batch)

    def take_token_facts(self) -> dict[str, Float[Tensor, "batch time"]]:
        """Return those of the distillation, where it has had the latest turn."""
        return self.distillation.take_token_facts()
