"""Weights of the loss: of rare outcomes against common ones (RESD App. B), and of tokens that a server sampled."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def success_rate_weights(
    is_success: Bool[Tensor, " batch"], alpha: float = 1.0, beta: float = 1.0
) -> Float[Tensor, " batch"]:
    """Return one float32 loss weight per sample, with a batch mean of one (RESD App. B).

    With s the batch's success rate, a success weighs (1 - s)^alpha and a failure s^beta, then all are divided by their
    mean: the rarer outcome counts more. As in the authors' code, and unlike the paper's formula, s is first clamped to
    [1/B, 1 - 1/B], so that a batch of one outcome keeps its weights: they come out as ones.

    The batch is the whole update's, over all micro-batches and ranks; a share of it would have another success rate.

    Args:
        is_success: Whether each sample succeeded.
        alpha: How strongly successes lose weight as they become common; 0 turns it off.
        beta: The same for failures.

    Raises:
        ValueError: `is_success` is not one-dimensional, or an exponent is negative.
    """
    if is_success.dim() != 1:
        raise ValueError(f"is_success must be (batch,), got {tuple(is_success.shape)}")
    for name, exponent in (("alpha", alpha), ("beta", beta)):
        if not exponent >= 0:
            raise ValueError(f"success_rate_weights: {name} must be at least 0, got {exponent}")
    batch = is_success.numel()
    if batch < 2:
        return torch.ones(batch, device=is_success.device)  # the clamp's interval is empty: nothing to compare with
    success_rate = min(max(is_success.sum().item() / batch, 1 / batch), 1 - 1 / batch)
    success_weight, failure_weight = (1 - success_rate) ** alpha, success_rate**beta
    # Divided in float64 so that a batch of one outcome gives exact ones.
    weights = torch.where(is_success.bool(), success_weight, failure_weight).double()
    return (weights / weights.mean()).float()


def importance_weights(
    log_probs: Float[Tensor, "batch time"], engine_log_probs: Float[Tensor, "batch time"], clip: float
) -> Float[Tensor, "batch time"]:
    """Return min(p / q, clip) of each token, p the trainer's probability and q that of the program which sampled it.

    Truncated importance sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL
    training"): both have the same weights, and compute a little differently. No gradient flows through it.
    """
    return (log_probs.detach() - engine_log_probs).exp().clamp_max(clip)
