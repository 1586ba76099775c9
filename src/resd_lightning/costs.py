"""What an update spends: requests, tokens and seconds, per purpose."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from resd_lightning.records import Completion, Purpose


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
