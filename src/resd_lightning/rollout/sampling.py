"""Sampling whose noise belongs to the sample, not to the batch it is generated in."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import LogitsProcessor

from resd_lightning.config import SamplingConfig


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
        tempered = scores.float() / self._sampling.temperature
        noise = torch.empty_like(tempered)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        noisy = keep_nucleus(tempered, self._sampling.top_p) - noise.log_()  # -log(Exp(1)) is standard Gumbel
        drawn = noisy.argmax(dim=-1, keepdim=True)  # (batch, vocab) -> (batch, 1)
        self.log_probs.append(tempered.gather(-1, drawn).squeeze(-1) - tempered.logsumexp(dim=-1))
        return noisy


def keep_nucleus(logits: Float[Tensor, "batch vocab"], top_p: float) -> Float[Tensor, "batch vocab"]:
    """Return the logits with all but the smallest set of tokens that holds `top_p` of the mass at minus infinity."""
    if top_p >= 1.0:
        return logits
    descending, order = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = descending.softmax(dim=-1)
    mass_before = probabilities.cumsum(dim=-1) - probabilities
    kept = descending.masked_fill(mass_before >= top_p, -torch.inf)  # the first token always has 0 before it
    return torch.empty_like(logits).scatter_(-1, order, kept)
