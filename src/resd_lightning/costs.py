"""What an update spends: requests, tokens and seconds, per purpose."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

from resd_lightning.records import Completion, Purpose

Unit = Literal["prompts", "rollouts", "generated_tokens", "seconds"]
"""What training is paid in: the currencies that a budget may have, and seconds."""

UNITS: tuple[Unit, ...] = get_args(Unit)

OBSERVING = (Purpose.VALIDATE, Purpose.PREDICT, Purpose.RESCORE, Purpose.DIAGNOSE, "draw")
"""Phases that only watch: what they spend is booked on the update they fall into, and is no cost of training."""

PROMPTS_DRAWN = "prompts/drawn"
"""Name of the metric that counts the prompts which an update is the first to see."""


class Costs:
    """Counters that run since they were last taken."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = defaultdict(float)

    def count(self, purpose: Purpose, completions: Sequence[Completion]) -> None:
        """Add the requests and tokens of some completions; skipped ones cost nothing."""
        done = [completion for completion in completions if not completion.is_skipped]
        self._totals[f"requests/{purpose}"] += len(done)
        self._totals[f"tokens/{purpose}_prompt"] += sum(len(completion.prompt_ids) for completion in done)
        self._totals[f"tokens/{purpose}_generated"] += sum(len(completion.token_ids) for completion in done)

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Add the wall time spent inside to `time/<phase>_s`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add_time(phase, time.perf_counter() - start)

    def add_time(self, phase: str, seconds: float) -> None:
        """Add wall time to `time/<phase>_s`."""
        self._totals[f"time/{phase}_s"] += seconds

    def take(self) -> dict[str, float]:
        """Return the totals since the last call and start again from zero."""
        totals, self._totals = dict(self._totals), defaultdict(float)
        return totals


def spent_on_training(line: Mapping[str, object]) -> dict[Unit, float]:
    """Return what one update cost, from its line in metrics.jsonl; validations have lines of their own.

    Seconds are those of its phases: rolling out, verifying, asking, teacher prompts, gradients. What `OBSERVING` phases
    spent is left out, so that a run that is watched ends where one that isn't does.

    Raises:
        KeyError: The line is not an update's.
    """
    numbers = {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
    return {
        "prompts": numbers[PROMPTS_DRAWN],
        "rollouts": numbers[f"requests/{Purpose.ROLLOUT}"],
        "generated_tokens": _sum_of_training(numbers, "tokens/", "_generated"),
        "seconds": _sum_of_training(numbers, "time/", "_s"),
    }


def _sum_of_training(numbers: Mapping[str, float], prefix: str, suffix: str) -> float:
    return sum(
        value
        for name, value in numbers.items()
        if name.startswith(prefix)
        and name.endswith(suffix)
        and name.removeprefix(prefix).removesuffix(suffix) not in OBSERVING
    )
