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
    noisy = tempered - noise.log_()  # -log(Exp(1)) is standard Gumbel
    drawn = first_in_nucleus(noisy, tempered, sampling.top_p)
    return noisy, tempered.gather(-1, drawn).squeeze(-1) - tempered.logsumexp(dim=-1)


def first_in_nucleus(
    noisy: Float[Tensor, "batch vocab"], logits: Float[Tensor, "batch vocab"], top_p: float
) -> Int[Tensor, "batch 1"]:
    """Return the token of each row that has the largest of `noisy` within the nucleus of `logits`.

    The nucleus is the smallest set of likeliest tokens that holds `top_p` of the mass; tokens as likely as its last
    belong to it, so it doesn't depend on how equals are ordered. A token is in it where all likelier ones together hold
    less than `top_p`. That is one sum, so nothing is sorted: the largest is looked at, and if it lies outside, as at
    most a share 1 - `top_p` of samples does, it is set to minus infinity in `noisy` with all that are no likelier.
    """
    drawn = noisy.argmax(dim=-1, keepdim=True)  # (batch, vocab) -> (batch, 1)
    if top_p >= 1.0:
        return drawn
    mass = logits.softmax(dim=-1)
    while True:
        is_likelier = logits > logits.gather(-1, drawn)
        is_outside = (mass * is_likelier).sum(dim=-1, keepdim=True) >= top_p
        if not bool(is_outside.any()):
            return drawn
        noisy.masked_fill_(is_outside & ~is_likelier, -torch.inf)
        drawn = noisy.argmax(dim=-1, keepdim=True)
