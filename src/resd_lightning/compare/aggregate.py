"""What a variant's runs come to together: means over seeds with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from resd_lightning.compare.curve import RunNumbers
from resd_lightning.compare.interval import Estimate, estimate
from resd_lightning.compare.study import SCORES, Score, Study
from resd_lightning.costs import UNITS, Unit


@dataclass(frozen=True)
class Reached:
    """How far a variant's runs came on the way to one level.

    Attributes:
        num_reached: Runs that came to it.
        num_runs: All runs.
        spent: What it took; None unless all of them came to it, for the mean over the fast ones alone would flatter.
    """

    num_reached: int
    num_runs: int
    spent: Mapping[Unit, Estimate] | None


@dataclass(frozen=True)
class VariantNumbers:
    """Estimates over a variant's finished runs.

    Attributes:
        end: Scores of the last validation within the budget.
        ranked: Scores of the validation that the paper's choice of a checkpoint takes.
        area: Mean height of each score's curve over the budget.
        reached: Spending until the study's metric first comes to each level.
        total: All that a run spent, beyond the budget too.
        share_at_end: The part of the budget that was spent at the end, in the run of the smallest and of the largest.
        updates: Updates of a run.
    """

    end: Mapping[Score, Estimate]
    ranked: Mapping[Score, Estimate]
    area: Mapping[Score, Estimate]
    reached: Mapping[float, Reached]
    total: Mapping[Unit, Estimate]
    share_at_end: tuple[float, float]
    updates: Estimate


def aggregate(study: Study, by_seed: Mapping[int, RunNumbers]) -> VariantNumbers:
    """Return the estimates over a variant's runs, of which there is one at least."""
    runs = list(by_seed.values())
    shares = [run.end.spent[study.currency] / study.limit for run in runs]
    return VariantNumbers(
        end={score: estimate([run.end.scores[score] for run in runs]) for score in SCORES},
        ranked={score: estimate([run.ranked.scores[score] for run in runs]) for score in SCORES},
        area={score: estimate([run.area[score] for run in runs]) for score in SCORES},
        reached={level: _reached([run.reached[level] for run in runs]) for level in study.levels},
        total={unit: estimate([run.total[unit] for run in runs]) for unit in UNITS},
        share_at_end=(min(shares), max(shares)),
        updates=estimate([run.updates for run in runs]),
    )


def _reached(spent: list[Mapping[Unit, float] | None]) -> Reached:
    done = [each for each in spent if each is not None]
    is_whole = len(done) == len(spent)
    estimates = {unit: estimate([each[unit] for each in done]) for unit in UNITS} if is_whole else None
    return Reached(len(done), len(spent), estimates)
