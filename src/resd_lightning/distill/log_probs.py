"""Log-probabilities of given response tokens, from logits or, where the head allows it, without holding them all."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from resd_lightning.distill import fused
from resd_lightning.distill.align import response_hidden, response_logits


def response_log_probs(
    model: nn.Module,
    head: Float[Tensor, "vocab hidden"] | None,
    ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    response_mask: Bool[Tensor, "batch response_time"],
    temperature: float,
    *,
    is_packed: bool = False,
) -> Float[Tensor, "batch response_time"]:
    """Return the log-probability of each response token at a temperature; zero outside the response's mask.

    Args:
        model: Reads prompts and responses in one forward pass; the part below the head where `head` is given.
        head: Weight of the frozen output head, for logits that never exist at once; None takes the model's logits.
        ids: Tokens of prompts and responses, a row for each.
        mask: True at real tokens.
        response_mask: True at a response's, in the last columns.
        temperature: Divides the logits.
        is_packed: See `response_logits`.
    """
    time = response_mask.shape[1]
    token_ids = ids[:, -time:]
    if head is None:
        logits = response_logits(model, ids, mask, time, is_packed=is_packed)
        return token_log_probs(logits, token_ids, response_mask, temperature)
    hidden = response_hidden(model, ids, mask, time, is_packed=is_packed)
    return fused.token_log_probs(hidden / temperature, head, token_ids, response_mask)


def token_log_probs(
    logits: Float[Tensor, "batch time vocab"],
    token_ids: Int[Tensor, "batch time"],
    mask: Bool[Tensor, "batch time"],
    temperature: float,
) -> Float[Tensor, "batch time"]:
    """Return the log-probability of each response token, at least in fp32; zero outside the mask.

    Logits outside the mask are never read, as in `distillation_loss`.
    """
    chosen = logits[mask]  # (batch, time, vocab) -> (token, vocab)
    chosen = chosen.float() if chosen.dtype in (torch.bfloat16, torch.float16) else chosen
    log_probs = -functional.cross_entropy(chosen / temperature, token_ids[mask], reduction="none")
    return log_probs.new_zeros(mask.shape).masked_scatter(mask, log_probs)  # (token,) -> (batch, time)
