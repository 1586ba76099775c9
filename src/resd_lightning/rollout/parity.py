"""How far a server's log-probabilities are from the trainer's, on the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from resd_lightning.distill.align import beside, response_mask
from resd_lightning.distill.log_probs import response_log_probs
from resd_lightning.policy.head import backbone_of, frozen_head, head_obstacle
from resd_lightning.policy.views import STUDENT, Policy


@dataclass(frozen=True)
class Scored:
    """A response with the log-probabilities that a server gave its tokens.

    Attributes:
        prompt_ids: What it was sampled after.
        token_ids: Its tokens, one at least.
        log_probs: Of each of them, in nats.
    """

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    log_probs: tuple[float, ...]


@dataclass(frozen=True)
class Gap:
    """Absolute differences of log-probabilities, in nats.

    Attributes:
        tokens: How many were compared.
        total: Sum of their differences.
        largest: The largest of them.
    """

    tokens: int = 0
    total: float = 0.0
    largest: float = 0.0

    @property
    def mean(self) -> float:
        """Difference per token; zero where none was compared."""
        return self.total / max(self.tokens, 1)

    def __add__(self, other: Gap) -> Gap:
        """Return the differences of both."""
        return Gap(self.tokens + other.tokens, self.total + other.total, max(self.largest, other.largest))


def measure_gap(policy: Policy, scored: Sequence[Scored], temperature: float, num_forwards: int) -> Gap:
    """Return the gap between the server's log-probabilities and the student's own, under the trainer's precision.

    Args:
        policy: Its student reads each response by itself.
        scored: At most `num_forwards` responses.
        temperature: That the server's log-probabilities are at; they are over the whole vocabulary.
        num_forwards: Forward passes to run, whatever there is to compare: on several ranks others may wait for them.
    """
    gap = Gap()
    head = frozen_head(policy) if head_obstacle(policy) is None else None
    pad = Scored((0,), (0,), (0.0,))
    with policy.frozen(STUDENT) as model:
        for index in range(num_forwards):
            one = scored[index] if index < len(scored) else pad
            own = _log_probs(policy, model, head, one, temperature).double().cpu()
            difference = (own - torch.tensor(one.log_probs, dtype=torch.float64)).abs()
            if index < len(scored):
                gap += Gap(len(difference), float(difference.sum()), float(difference.max()))
    return gap


def _log_probs(
    policy: Policy,
    model: PreTrainedModel | PeftModel,
    head: Float[Tensor, "vocab hidden"] | None,
    one: Scored,
    temperature: float,
) -> Float[Tensor, " time"]:
    """Return the student's log-probability of each token of one response."""
    ids, mask = (tensor.to(policy.device) for tensor in beside([one.prompt_ids], [one.token_ids], 0))
    own = response_mask([one.token_ids]).to(policy.device)
    reads = model if head is None else backbone_of(model)
    return response_log_probs(reads, head, ids, mask, own, temperature)[0]  # (1, T) -> (T,)
