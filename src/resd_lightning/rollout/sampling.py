"""Sampling whose noise belongs to the sample, not to the batch it is generated in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from resd_lightning.config import SamplingConfig

LIKELIEST = 1024
"""Tokens among which the nucleus is looked for first."""


class SeededSampling(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped here
    """Turns greedy decoding into sampling: adds to each row's logits Gumbel noise from the row's own generator.

    The argmax of logits plus Gumbel noise is a sample of their softmax. Each row draws from a generator seeded by its
    request, one vocabulary of noise per token, so a sample depends neither on who shares its batch nor on their order.

    Args:
        seeds: One seed per row.
        sampling: Temperature and nucleus; temperature 0 leaves the logits alone.
        device: Where the logits are; noise differs between device types.
    """

    def __init__(self, seeds: Sequence[int], sampling: SamplingConfig, device: torch.device) -> None:
        self.log_probs: list[Float[Tensor, " batch"]] = []
        """Of each step's samples at the temperature, before the nucleus is cut; empty at temperature 0."""
        self._sampling = sampling
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "batch time"], scores: Float[Tensor, "batch vocab"]
    ) -> Float[Tensor, "batch vocab"]:
        """Return logits whose argmax is the sample."""
        if self._sampling.temperature == 0:
            return scores
        noisy, log_probs = draw(scores, self._generators, self._sampling)
        self.log_probs.append(log_probs)
        return noisy


def draw(
    scores: Float[Tensor, "batch vocab"], generators: Sequence[torch.Generator], sampling: SamplingConfig
) -> tuple[Float[Tensor, "batch vocab"], Float[Tensor, " batch"]]:
    """Return logits whose argmax is each row's sample, and the samples' log-probs at the temperature, before top-p.

    Each row's generator gives one vocabulary of noise. The temperature is above 0.
    """
    tempered = scores.float() / sampling.temperature
    noise = torch.empty_like(tempered)
    for row, generator in zip(noise, generators, strict=True):
        row.exponential_(generator=generator)
    noisy = keep_nucleus(tempered, sampling.top_p) - noise.log_()  # -log(Exp(1)) is standard Gumbel
    drawn = noisy.argmax(dim=-1, keepdim=True)  # (batch, vocab) -> (batch, 1)
    return noisy, tempered.gather(-1, drawn).squeeze(-1) - tempered.logsumexp(dim=-1)


def keep_nucleus(logits: Float[Tensor, "batch vocab"], top_p: float) -> Float[Tensor, "batch vocab"]:
    """Return the logits with all but the smallest set of tokens that holds `top_p` of the mass at minus infinity.

    Tokens as likely as the set's last are kept with it, so the set doesn't depend on how equals are sorted. Where a
    few of the likeliest tokens hold the mass, as models have it, the others are never sorted.
    """
    if top_p >= 1.0:
        return logits
    total = logits.logsumexp(dim=-1, keepdim=True)
    least, is_whole = _least_likely(logits, total, top_p, min(LIKELIEST, logits.shape[1]))
    if logits.shape[1] > LIKELIEST and not bool(is_whole.all()):
        least[~is_whole] = _least_likely(logits[~is_whole], total[~is_whole], top_p, logits.shape[1])[0]
    return logits.masked_fill(logits < least, -torch.inf)


def _least_likely(
    logits: Float[Tensor, "row vocab"], total: Float[Tensor, "row 1"], top_p: float, size: int
) -> tuple[Float[Tensor, "row 1"], Bool[Tensor, " row"]]:
    """Return the least logit in the nucleus, looked for among the `size` largest, and whether these hold `top_p`."""
    likeliest = logits.topk(size, dim=-1).values
    mass = (likeliest - total).exp().cumsum(dim=-1)
    # As many as have less than top_p of the mass before them: the first token always has none.
    kept = (mass < top_p).sum(dim=-1, keepdim=True).clamp_max(size - 1)
    return likeliest.gather(-1, kept), mass[:, -1] >= top_p
