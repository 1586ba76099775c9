"""The distillation loss in memory that the vocabulary doesn't set: the numbers of `divergence.py`, chunk by chunk.

A token's logits enter the loss through few numbers: its top-k logits z, and rest = logsumexp of all other logits. They
are made from hidden states in chunks of tokens, so (tokens x vocabulary) never exists; on what is left, (tokens x
top_k + 1), the loss is the plain one's own code. With W the output head, the gradient for a hidden state is

    sum_k grad_z[k] W[index k]  +  grad_rest c,        c = the mean of W's rows under softmax(all other logits),

and c needs nothing of what comes down from the loss: the forward pass computes it beside the rest and keeps it as
(token, hidden). The backward pass is then one gather and one addition, and recomputes nothing.

The tail comes from `rest` itself, so it keeps its precision where almost all mass is in the top-k; 1 - sum(p), as
`divergence.append_tail` has it, loses all of it there in fp32.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import BackwardCFunction, FunctionCtx, once_differentiable
from torch.nn import functional as F

from resd_lightning.config import DistillationConfig
from resd_lightning.distill.divergence import (
    DistillationLoss,
    append_tail,
    check_divergence_settings,
    clip_teacher,
    collect_token_losses,
    count_clipped,
    divergence,
)

CHUNK_TOKENS = DistillationConfig.chunk_tokens
"""Tokens whose logits exist at once; those of 256 over a vocabulary of 151,936 are 156 MB in fp32."""


def fused_distillation_loss(
    student_hidden: Float[Tensor, "batch time hidden"],
    student_head: Float[Tensor, "vocab hidden"],
    teacher_hidden: Float[Tensor, "batch time teacher_hidden"],
    teacher_head: Float[Tensor, "vocab teacher_hidden"],
    mask: Bool[Tensor, "batch time"],
    *,
    alpha: float,
    top_k: int | None,
    tail: bool = True,
    clip_min: float | None = None,
    clip_max: float | None = None,
    weights: Float[Tensor, " batch"] | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    exact_tail: bool = True,
) -> DistillationLoss:
    """Return what `distillation_loss` does for the logits ``hidden @ head.T``, with the gradient to `student_hidden`.

    Heads are constants. Under autocast the products with them are made in its precision, otherwise in that of hidden
    states and head; everything after the products is fp32 (or fp64). Only tokens in the mask are computed.

    Args:
        student_hidden: The student's last hidden states, those that predict the response tokens.
        student_head: Weight of the student's output head, without gradient.
        teacher_hidden: The teacher's, which may have another width; detached here.
        teacher_head: Weight of the teacher's output head, over the same vocabulary.
        mask: True at the student's own response tokens.
        alpha: As in `distillation_loss`, like all settings not named here.
        top_k: How many of the student's most likely tokens are compared; the whole vocabulary (None) is refused.
        tail: Add a bucket for the mass outside the top-k. A top-k of the whole vocabulary leaves none.
        clip_min: Lower bound of the ratio teacher / student.
        clip_max: Upper bound of the same ratio.
        weights: One factor per sequence.
        chunk_tokens: Tokens whose logits exist at once.
        exact_tail: Compute the tail from the other tokens' logits; False caps it as `append_tail` does, for comparison
            with the plain loss where the tail holds less than about 1e-7.

    Raises:
        ValueError: A setting is out of range, a shape disagrees, or the student's head requires a gradient.
    """
    if top_k is None:
        raise ValueError("distillation.top_k must be set for the fused loss, got None: the plain one compares it all")
    check_divergence_settings(alpha, top_k, tail, clip_min, clip_max, vocab_size=student_head.shape[0])
    _check_inputs("student_", student_hidden, student_head, mask, chunk_tokens)
    _check_inputs("teacher_", teacher_hidden, teacher_head, mask, chunk_tokens)
    if teacher_head.shape[0] != student_head.shape[0]:
        raise ValueError(
            f"teacher_head must have the student's {student_head.shape[0]} rows, got {teacher_head.shape[0]}"
        )
    if weights is not None and weights.shape != mask.shape[:1]:
        raise ValueError(f"weights must be {tuple(mask.shape[:1])}, got {tuple(weights.shape)}")
    with_rest = tail and top_k < student_head.shape[0]
    student = _reduce(student_hidden[mask], student_head, top_k, with_rest, chunk_tokens)
    teacher = _reduce(teacher_hidden.detach()[mask], teacher_head, student.indices, with_rest, chunk_tokens)
    student_logp, teacher_logp = student.bucket_logp(exact_tail), teacher.bucket_logp(exact_tail)
    clipped_logp = clip_teacher(teacher_logp, student_logp, clip_min, clip_max)
    result = collect_token_losses(divergence(student_logp, clipped_logp, alpha), mask, weights)
    return count_clipped(result, student_logp, teacher_logp, clipped_logp, mask)


def token_log_probs(
    hidden: Float[Tensor, "batch time hidden"],
    head: Float[Tensor, "vocab hidden"],
    token_ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    chunk_tokens: int = CHUNK_TOKENS,
) -> Float[Tensor, "batch time"]:
    """Return log p of each token in the mask, zero elsewhere, with the gradient to `hidden`.

    It goes the loss's way, with the token itself in the place of the top-k.

    Args:
        hidden: Last hidden states, those that predict `token_ids`.
        head: Weight of the output head, without gradient.
        token_ids: What is scored; outside the mask it may hold anything.
        mask: True at tokens to score.
        chunk_tokens: Tokens whose logits exist at once.

    Raises:
        ValueError: A shape disagrees, or the head requires a gradient.
    """
    _check_inputs("", hidden, head, mask, chunk_tokens)
    if token_ids.shape != mask.shape:
        raise ValueError(f"token_ids must be {tuple(mask.shape)}, got {tuple(token_ids.shape)}")
    reduced = _reduce(hidden[mask], head, token_ids[mask].unsqueeze(-1), True, chunk_tokens)
    log_probs = reduced.bucket_logp(exact_tail=True)[:, 0]  # (token, 2) -> (token,): the token itself, and the rest
    return log_probs.new_zeros(mask.shape).masked_scatter(mask, log_probs)


class Reduced(NamedTuple):
    """What is left of each token's logits; a tuple, because that is what passes through an autograd function.

    Attributes:
        top: Logits of the tokens that are compared one by one.
        indices: Which tokens of the vocabulary they are.
        rest: Logsumexp of all other logits; None where they aren't asked for.
    """

    top: Float[Tensor, "token top_k"]
    indices: Int[Tensor, "token top_k"]
    rest: Float[Tensor, " token"] | None

    def bucket_logp(self, exact_tail: bool) -> Float[Tensor, "token bucket"]:
        """Return log-probabilities over the compared tokens, the tail bucket last where there is a rest."""
        if self.rest is None:
            return self.top.log_softmax(dim=-1)
        if exact_tail:  # (token, top_k) -> (token, top_k + 1)
            return torch.cat([self.top, self.rest.unsqueeze(-1)], dim=-1).log_softmax(dim=-1)
        total = torch.logaddexp(self.top.logsumexp(dim=-1), self.rest)
        return append_tail(self.top - total.unsqueeze(-1))


def _reduce(
    hidden: Float[Tensor, "token hidden"],
    head: Float[Tensor, "vocab hidden"],
    chosen: int | Int[Tensor, "token top_k"],
    with_rest: bool,
    chunk_tokens: int,
) -> Reduced:
    """Return what is left of the logits ``hidden @ head.T``, with the gradient to `hidden`.

    Args:
        hidden: One row per response token.
        head: Weight of the output head.
        chosen: Which tokens are compared one by one, or how many of the most likely.
        with_rest: Reduce all other logits to one number.
        chunk_tokens: Rows whose logits exist at once.
    """
    device = hidden.device.type
    is_autocast = torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if is_autocast else torch.promote_types(hidden.dtype, head.dtype)
    hidden, head = hidden.to(dtype), head.detach().to(dtype)  # the head is cast once, not once a chunk
    with_mean = with_rest and hidden.requires_grad and torch.is_grad_enabled()
    reduced = _Reduce.apply(hidden, head, chosen, with_rest, with_mean, chunk_tokens)  # type: ignore[no-untyped-call]
    return Reduced(*reduced)


class _Reduce(torch.autograd.Function):
    """The reduction over chunks; what its gradient needs of the other tokens is made in the forward pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        hidden: Tensor,
        head: Tensor,
        chosen: int | Tensor,
        with_rest: bool,
        with_mean: bool,
        chunk_tokens: int,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        num_tokens = hidden.shape[0]
        wide = torch.float32 if hidden.dtype.itemsize < 4 else hidden.dtype  # half precision ends with the products
        top_k = chosen if isinstance(chosen, int) else chosen.shape[1]
        top = hidden.new_empty((num_tokens, top_k), dtype=wide)
        indices = hidden.new_empty((num_tokens, top_k), dtype=torch.long) if isinstance(chosen, int) else chosen
        rest = hidden.new_empty(num_tokens, dtype=wide) if with_rest else None
        mean = torch.empty_like(hidden[: num_tokens if with_mean else 0])
        has_dot_products_alone = chosen is indices and rest is None
        if has_dot_products_alone:  # in pieces no larger than a chunk's logits
            chunk_tokens = max(1, chunk_tokens * len(head) // (top_k * head.shape[1]))
        for start in range(0, num_tokens, chunk_tokens):
            part = slice(start, start + chunk_tokens)
            if has_dot_products_alone:  # (token, top_k, hidden) x (token, hidden) -> (token, top_k)
                top[part] = torch.einsum("tkh,th->tk", head[indices[part]], hidden[part])
                continue
            logits = (hidden[part] @ head.T).to(wide)  # (token, hidden) -> (token, vocab)
            if chosen is not indices:
                indices[part] = logits.topk(top_k, dim=-1, sorted=False).indices
            top[part] = logits.gather(-1, indices[part])
            if rest is not None:
                rest[part], scale = _exponentiate_others(logits, indices[part])
            if with_mean:
                mean[part] = (logits.to(head.dtype) @ head) * scale  # (token, vocab) -> (token, hidden)
            del logits  # before the next chunk's
        ctx.save_for_backward(head, indices, mean)
        ctx.mark_non_differentiable(indices)
        return top, indices, rest

    @staticmethod
    @once_differentiable
    def backward(
        ctx: BackwardCFunction, grad_top: Tensor, _: Tensor, grad_rest: Tensor | None
    ) -> tuple[Tensor, None, None, None, None, None]:
        saved: tuple[Tensor, ...] = ctx.saved_tensors
        head, indices, mean = saved
        # Sums rows of the head per token, without the (token, top_k, hidden) that indexing would hold
        grad = F.embedding_bag(indices, head, per_sample_weights=grad_top.to(head.dtype), mode="sum")
        if grad_rest is not None:
            grad.addcmul_(grad_rest.unsqueeze(-1).to(head.dtype), mean)
        return grad, None, None, None, None, None


def _exponentiate_others(
    logits: Float[Tensor, "token vocab"], indices: Int[Tensor, "token top_k"]
) -> tuple[Float[Tensor, " token"], Float[Tensor, "token 1"]]:
    """Return the logsumexp of all logits but the chosen, and one over the sum of what `logits` is turned into.

    In place, since this is the one buffer of (token, vocab): it then holds exp(logit - largest), and 0 at the chosen.
    """
    logits.scatter_(-1, indices, -torch.inf)
    largest = logits.amax(dim=-1, keepdim=True)
    mass = logits.sub_(largest).exp_().sum(dim=-1, keepdim=True)
    return (largest + mass.log()).squeeze(-1), mass.reciprocal()  # (token, 1) -> (token,)


def _check_inputs(side: str, hidden: Tensor, head: Tensor, mask: Tensor, chunk_tokens: int) -> None:
    """Refuse hidden states, a head, a mask or a chunk that can't go together.

    Raises:
        ValueError: Says which, what it must be and what it is.
    """
    if mask.dim() != 2 or mask.dtype != torch.bool:
        raise ValueError(f"mask must be torch.bool of (batch, time), got {mask.dtype} of {tuple(mask.shape)}")
    if head.dim() != 2:
        raise ValueError(f"{side}head must be (vocab, hidden), got {tuple(head.shape)}")
    expected = (*mask.shape, head.shape[1])
    if tuple(hidden.shape) != expected:
        raise ValueError(f"{side}hidden must be {expected}, got {tuple(hidden.shape)}")
    if side != "teacher_" and head.requires_grad:
        raise ValueError(
            f"{side}head requires a gradient, and this loss has none for it: freeze it, or use the plain one"
        )
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
