"""Accuracy over k samples per prompt, and the paper's choice of a checkpoint by it."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

CHECKPOINT_METRICS = ("val/per_task/mean@4", "val/per_task/best@4", "val/per_test/mean@4", "val/per_test/best@4")
"""The four metrics that the paper's checkpoint choice ranks the logged steps on."""


class _OverPrompts(Metric):
    """The mean over prompts of one number per prompt; its states are sums, so that ranks add up exactly."""

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    total: Tensor
    num_prompts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("num_prompts", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Float[Tensor, "example k"]) -> None:
        """Add prompts, each with the scores in [0, 1] of its k samples.

        Raises:
            ValueError: `scores` is not (example, k), or k is zero.
        """
        if scores.dim() != 2 or scores.shape[1] == 0:
            raise ValueError(f"scores must be (example, k) with k at least 1, got {tuple(scores.shape)}")
        self.total += self._per_prompt(scores.to(self.total)).sum()
        self.num_prompts += scores.shape[0]

    def compute(self) -> Float[Tensor, ""]:
        """Return the mean over all prompts of all ranks; nan where there was none."""
        return self.total / self.num_prompts

    @abstractmethod
    def _per_prompt(self, scores: Float[Tensor, "example k"]) -> Float[Tensor, " example"]:
        """Return one number per prompt."""


class MeanAtK(_OverPrompts):
    """mean@k: the mean over prompts of the mean score over a prompt's k samples (RESD Table 2, m@4)."""

    def _per_prompt(self, scores: Float[Tensor, "example k"]) -> Float[Tensor, " example"]:
        return scores.mean(dim=1)  # (example, k) -> (example,)


class BestAtK(_OverPrompts):
    """best@k: the mean over prompts of the best score among a prompt's k samples (RESD Table 2, b@4)."""

    def _per_prompt(self, scores: Float[Tensor, "example k"]) -> Float[Tensor, " example"]:
        return scores.amax(dim=1)  # (example, k) -> (example,)


def rank_checkpoints(
    history: Mapping[int, Mapping[str, float]], metrics: Sequence[str] = CHECKPOINT_METRICS
) -> dict[int, float]:
    """Return each logged step's sum of ranks over the metrics; 1 is a metric's best, so the smallest sum wins.

    Steps with equal values share the mean of the ranks they take up. The paper does not say what its ties do.

    Args:
        history: What was logged at each step; higher is better.
        metrics: The names to rank on, each counting alike.

    Raises:
        ValueError: Nothing was logged, no metric is named, or a step lacks a metric or holds a nan.
    """
    if not history:
        raise ValueError("no step to choose from: the history of validation metrics is empty")
    if not metrics:
        raise ValueError("metrics must name at least one metric to rank the steps on, got none")
    for step, logged in history.items():
        for name in metrics:
            if name not in logged:
                raise ValueError(f"step {step} has no metric {name!r}, only {sorted(logged)}")
            if math.isnan(logged[name]):
                raise ValueError(f"step {step} has nan for the metric {name!r}, which has no rank")
    sums = dict.fromkeys(sorted(history), 0.0)
    for name in metrics:
        values = [logged[name] for logged in history.values()]
        for step in sums:
            value = history[step][name]
            num_better, num_equal = sum(other > value for other in values), values.count(value)
            sums[step] += num_better + (num_equal + 1) / 2
    return sums


def best_step(history: Mapping[int, Mapping[str, float]], metrics: Sequence[str] = CHECKPOINT_METRICS) -> int:
    """Return the step with the best sum of ranks, the paper's checkpoint choice; the earlier of equal ones.

    Raises:
        ValueError: As `rank_checkpoints`.
    """
    sums = rank_checkpoints(history, metrics)
    return min(sums, key=lambda step: (sums[step], step))
