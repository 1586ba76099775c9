"""The distillation loss in its plain form, to be read beside RESD Eq. 1 and 3.

Each response position compares two distributions over the same few buckets: the student's `top_k` tokens and, with
`tail`, one more that holds the rest of each distribution's mass. Everything here is ordinary autograd; `fused.py`
computes the same numbers without ever holding (tokens x vocabulary).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MAX_LOG_HEAD_MASS = -1e-7
"""The top-k tokens' log mass is capped here, so that the tail keeps a finite log-probability."""


@dataclass(frozen=True)
class DistillationLoss:
    """The loss of a batch, attached to the student's graph.

    Attributes:
        loss: The mean of `per_token` over the mask's tokens; zero where the mask selects none.
        per_token: (batch, time), in nats: the divergence at each response token, times its sequence's weight; zero at
            padding. Other reductions start from here.
        clipped_share: (batch, time), the share of the compared buckets whose ratio was clipped; None where the whole
            vocabulary is compared, since counting would take memory of that size.
        clipped_mass: (batch, time), the student's probability in those buckets; None likewise.
    """

    loss: Float[Tensor, ""]
    per_token: Float[Tensor, "batch time"]
    clipped_share: Float[Tensor, "batch time"] | None = None
    clipped_mass: Float[Tensor, "batch time"] | None = None


def distillation_loss(
    student_logits: Float[Tensor, "batch time vocab"],
    teacher_logits: Float[Tensor, "batch time vocab"],
    mask: Bool[Tensor, "batch time"],
    *,
    alpha: float,
    top_k: int | None = None,
    tail: bool = True,
    clip_min: float | None = None,
    clip_max: float | None = None,
    weights: Float[Tensor, " batch"] | None = None,
) -> DistillationLoss:
    """Return the divergence of the student from the teacher at every response token (RESD Eq. 3).

    Gradient flows through the student's log-probabilities only: the teacher, the choice of top-k tokens and the clip
    bounds are constants. Logits outside the mask are never read, so they may hold anything, infinities included.

    Args:
        student_logits: Half precision is computed in float32; float32 and float64 stay as they are.
        teacher_logits: Detached here, whatever graph they come with.
        mask: True at the student's own response tokens.
        alpha: 0 is forward KL, 1 reverse KL (the paper's default), between them the generalised JSD.
        top_k: How many of the student's most likely tokens are compared; None compares the whole vocabulary.
        tail: Add a bucket for the mass outside the top-k; without it both sides are renormalised over the top-k.
        clip_min: Lower bound of the ratio teacher / student in every bucket; None leaves it unbounded.
        clip_max: Upper bound of the same ratio.
        weights: One factor per sequence, for example from `success_rate_weights`.

    Raises:
        ValueError: A setting is out of range, a shape disagrees with the student's, or the mask is not boolean.
    """
    check_loss_inputs(student_logits, teacher_logits, mask, weights)
    check_divergence_settings(alpha, top_k, tail, clip_min, clip_max, vocab_size=student_logits.shape[-1])
    student_logp, teacher_logp = topk_log_probs(
        student_logits[mask],  # (batch, time, vocab) -> (token, vocab): selecting keeps padding out of the backward too
        teacher_logits.detach()[mask],
        top_k,
        tail,
    )
    clipped_logp = clip_teacher(teacher_logp, student_logp, clip_min, clip_max)
    result = collect_token_losses(divergence(student_logp, clipped_logp, alpha), mask, weights)
    return result if top_k is None else count_clipped(result, student_logp, teacher_logp, clipped_logp, mask)


def topk_log_probs(
    student_logits: Float[Tensor, "*token vocab"],
    teacher_logits: Float[Tensor, "*token vocab"],
    top_k: int | None,
    tail: bool,
) -> tuple[Float[Tensor, "*token bucket"], Float[Tensor, "*token bucket"]]:
    """Return both sides' log-probabilities over the student's top-k tokens, the tail bucket last.

    Only gathered logits and one logsumexp per position are kept for the top-k: no full log-softmax is materialised.
    The teacher's side carries no gradient.
    """
    student_logits = _at_least_float32(student_logits)
    teacher_logits = _at_least_float32(teacher_logits.detach())
    if top_k is None:
        return student_logits.log_softmax(dim=-1), teacher_logits.log_softmax(dim=-1)
    indices = student_logits.detach().topk(top_k, dim=-1, sorted=False).indices
    student_top = student_logits.gather(-1, indices)  # (*token, vocab) -> (*token, top_k)
    teacher_top = teacher_logits.gather(-1, indices)
    if not tail:
        # The normaliser over the vocabulary cancels in the renormalisation, so it is not computed.
        return student_top.log_softmax(dim=-1), teacher_top.log_softmax(dim=-1)
    return (
        append_tail(student_top - student_logits.logsumexp(dim=-1, keepdim=True)),
        append_tail(teacher_top - teacher_logits.logsumexp(dim=-1, keepdim=True)),
    )


def append_tail(top_logp: Float[Tensor, "*token top_k"]) -> Float[Tensor, "*token bucket"]:
    """Append log(1 - sum of the top-k probabilities), by log1mexp of their logsumexp.

    The logsumexp is capped at `MAX_LOG_HEAD_MASS`, as in the authors' code: where the top-k hold all the mass that the
    precision can see, the tail counts 1e-7 and passes no gradient.
    """
    head = top_logp.logsumexp(dim=-1, keepdim=True).clamp(max=MAX_LOG_HEAD_MASS)
    return torch.cat([top_logp, torch.log(-torch.expm1(head))], dim=-1)  # (*token, top_k) -> (*token, top_k + 1)


def clip_teacher(
    teacher_logp: Float[Tensor, "*token bucket"],
    student_logp: Float[Tensor, "*token bucket"],
    clip_min: float | None,
    clip_max: float | None,
) -> Float[Tensor, "*token bucket"]:
    """Bound the ratio teacher / student by moving the teacher's log-probabilities, the tail's included.

    The bounds follow the student's values without their gradient. The result is not renormalised: it may sum to other
    than one.
    """
    bound = student_logp.detach()
    if clip_min is not None:
        teacher_logp = torch.maximum(teacher_logp, bound + math.log(clip_min))
    if clip_max is not None:
        teacher_logp = torch.minimum(teacher_logp, bound + math.log(clip_max))
    return teacher_logp


def divergence(
    student_logp: Float[Tensor, "*token bucket"], teacher_logp: Float[Tensor, "*token bucket"], alpha: float
) -> Float[Tensor, "*token"]:
    """Return the divergence summed over the buckets, in nats (RESD Eq. 3).

    With m = (1 - alpha) student + alpha teacher, the generalised JSD is
    (1 - alpha) KL(student || m) + alpha KL(teacher || m). Its own limits at alpha 0 and 1 vanish, so those two values
    name the plain divergences instead: KL(teacher || student) and KL(student || teacher).
    """
    if alpha == 0:
        return _kl(teacher_logp, student_logp)
    if alpha == 1:
        return _kl(student_logp, teacher_logp)
    mixture_logp = torch.logaddexp(student_logp + math.log1p(-alpha), teacher_logp + math.log(alpha))
    return (1 - alpha) * _kl(student_logp, mixture_logp) + alpha * _kl(teacher_logp, mixture_logp)


def collect_token_losses(
    token_loss: Float[Tensor, " token"], mask: Bool[Tensor, "batch time"], weights: Float[Tensor, " batch"] | None
) -> DistillationLoss:
    """Weight the response tokens' losses, put them back in their places and average them.

    Args:
        token_loss: One value per True of the mask, in row-major order.
        mask: True at response tokens.
        weights: One factor per sequence; None counts every sequence alike.
    """
    if weights is not None:
        token_loss = token_loss * weights.to(token_loss).unsqueeze(1).expand_as(mask)[mask]
    # An empty sum is a zero that still hangs on the graph; dividing it by one instead of by no tokens keeps it a zero.
    return DistillationLoss(loss=token_loss.sum() / max(token_loss.numel(), 1), per_token=at_mask(token_loss, mask))


def count_clipped(
    result: DistillationLoss,
    student_logp: Float[Tensor, "token bucket"],
    teacher_logp: Float[Tensor, "token bucket"],
    clipped_logp: Float[Tensor, "token bucket"],
    mask: Bool[Tensor, "batch time"],
) -> DistillationLoss:
    """Add to a loss what its clip did, without gradient."""
    is_clipped = clipped_logp != teacher_logp
    return replace(
        result,
        clipped_share=at_mask(is_clipped.sum(dim=-1) / is_clipped.shape[-1], mask),
        clipped_mass=at_mask(student_logp.detach().exp().masked_fill(~is_clipped, 0).sum(dim=-1), mask),
    )


def at_mask(values: Float[Tensor, " token"], mask: Bool[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
    """Return values in the places of the mask's Trues, in row-major order, and zero elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)  # (token,) -> (batch, time)


def divergence_name(alpha: float) -> str:
    """Return what `alpha` selects, for reports: "forward_kl" at 0, "reverse_kl" at 1, "jsd" between."""
    return {0.0: "forward_kl", 1.0: "reverse_kl"}.get(alpha, "jsd")


def check_divergence_settings(
    alpha: float,
    top_k: int | None,
    tail: bool,
    clip_min: float | None,
    clip_max: float | None,
    vocab_size: int | None = None,
) -> None:
    """Refuse settings that name no divergence; config validation calls it before any vocabulary is known.

    Raises:
        ValueError: Names the key under `distillation`, its range and what it got.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"distillation.alpha must be in [0, 1], got {alpha}")
    if top_k is not None:
        if top_k < 1:
            raise ValueError(f"distillation.top_k must be at least 1, or null for the whole vocabulary, got {top_k}")
        if vocab_size is not None and top_k > vocab_size:
            raise ValueError(f"distillation.top_k must be at most the vocabulary's {vocab_size} tokens, got {top_k}")
        if top_k == 1 and not tail:
            raise ValueError(
                "distillation.top_k must be at least 2 where distillation.tail is false, got 1: "
                "one renormalised token always has probability one, so the loss would be zero everywhere"
            )
    for key, bound in (("clip_min", clip_min), ("clip_max", clip_max)):
        if bound is not None and not 0 < bound < math.inf:
            raise ValueError(f"distillation.{key} must be positive and finite, or null for no bound, got {bound}")
    if clip_min is not None and clip_max is not None and clip_min > clip_max:
        raise ValueError(f"distillation.clip_min must be at most distillation.clip_max, got {clip_min} > {clip_max}")


def check_loss_inputs(student: Tensor, teacher: Tensor, mask: Tensor, weights: Tensor | None) -> None:
    """Refuse tensors that do not fit the student's (batch, time, feature), by name.

    Raises:
        ValueError: Says which tensor, the shape it must have and the shape it has.
    """
    if student.dim() != 3:
        raise ValueError(f"student_logits must be (batch, time, vocab), got {tuple(student.shape)}")
    batch, time, _ = student.shape
    _check_shape("teacher_logits", teacher, tuple(student.shape))
    _check_shape("mask", mask, (batch, time))
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be torch.bool, got {mask.dtype}")
    if weights is not None:
        _check_shape("weights", weights, (batch,))


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{name} must be {expected}, got {tuple(tensor.shape)}")


def _kl(logp: Float[Tensor, "*token bucket"], other_logp: Float[Tensor, "*token bucket"]) -> Float[Tensor, "*token"]:
    return (logp.exp() * (logp - other_logp)).sum(dim=-1)  # (*token, bucket) -> (*token)


def _at_least_float32(logits: Float[Tensor, "*token vocab"]) -> Float[Tensor, "*token vocab"]:
    # A log-probability held in half precision costs about 0.06 nats in the tail bucket.
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits
