"""The mean over seeds and its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, stdev

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
        mean: Of the values.
        half_width: The interval is the mean plus and minus this; None for a single value, which says nothing of others.
        num_values: How many there were.
    """

    mean: float
    half_width: float | None
    num_values: int


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean with Student's interval: t standard errors to each side, for n - 1 degrees of freedom.

    Raises:
        ValueError: There is no value.
    """
    if not values:
        raise ValueError("no values to take the mean of")
    n = len(values)
    half_width = student_quantile(n - 1) * stdev(values) / math.sqrt(n) if n > 1 else None
    return Estimate(fmean(values), half_width, n)


@cache
def student_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Return the t between whose negative and itself Student's distribution holds `confidence`.

    By bisection of the distribution's closed form for whole degrees of freedom.

    Raises:
        ValueError: `degrees` is below 1, or `confidence` outside (0, 1).
    """
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"degrees must be at least 1 and confidence in (0, 1), got {degrees} and {confidence}")
    low, high = 0.0, math.pi / 2
    for _ in range(60):  # halvings, to the last bit
        middle = (low + high) / 2
        low, high = (middle, high) if _mass(middle, degrees) < confidence else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _mass(angle: float, degrees: int) -> float:
    """Return P(|T| <= sqrt(degrees) tan(angle)); Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine = math.cos(angle)
    first = 1.0 if degrees % 2 == 0 else cosine
    terms, term = 0.0, first
    for power in range(degrees % 2, degrees - 1, 2):  # cos^power, each with its product of odd over even numbers
        terms += term
        term *= cosine**2 * (power + 1) / (power + 2)
    series = math.sin(angle) * terms
    return series if degrees % 2 == 0 else 2 / math.pi * (angle + series)
