"""One run as a curve: what it had spent and how well it did at each validation, and what follows from that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from resd_lightning.compare.study import SCORES, Score, Study
from resd_lightning.config import Currency
from resd_lightning.costs import UNITS, Unit, spent_on_training
from resd_lightning.metrics import best_step
from resd_lightning.run_folder import RunFolder, read_lines


@dataclass(frozen=True)
class Point:
    """A validation.

    Attributes:
        updates: Policy updates behind it; a fraction where the point lies between two validations.
        spent: What training had cost by then, in each unit; validations cost nothing.
        scores: What it measured.
    """

    updates: float
    spent: Mapping[Unit, float]
    scores: Mapping[Score, float]


@dataclass(frozen=True)
class RunNumbers:
    """What a run comes to within its budget.

    Attributes:
        curve: The validations within the budget, and the point at the budget between the last of them and the next.
        end: The last validation within the budget.
        ranked: The validation within the budget that the paper's choice of a checkpoint takes.
        area: Mean height of the curve over the budget, by score.
        reached: The spending at which the curve first comes to each level; None where it doesn't.
        total: All that the run spent, beyond the budget too.
        updates: All updates that the run made.
    """

    curve: tuple[Point, ...]
    end: Point
    ranked: Point
    area: Mapping[Score, float]
    reached: Mapping[float, Mapping[Unit, float] | None]
    total: Mapping[Unit, float]
    updates: int


@dataclass(frozen=True)
class Curve:
    """A whole run, beyond its budget too.

    Attributes:
        points: Its validations in order, the first before any update.
        total: All that it spent.
        updates: All updates that it made.
    """

    points: Sequence[Point]
    total: Mapping[Unit, float]
    updates: int


class NoNumbersError(ValueError):
    """A run's validations measured nothing."""


def read_curve(folder: RunFolder, samples: int) -> Curve:
    """Return a run's curve.

    A validation whose every prompt was too long has no numbers and is left out.

    Args:
        folder: The run's folder.
        samples: Responses per prompt in validation; k of mean@k.

    Raises:
        NoNumbersError: No validation has numbers, or the one before the first update has none.
    """
    names = {score: f"val/{score}@{samples}" for score in SCORES}
    lines = list(read_lines(folder.metrics))
    costs = {int(str(line["updates_done"])): spent_on_training(line) for line in lines if line["phase"] == "train"}
    points = []
    for line in lines:
        updates = int(str(line["updates_done"]))
        scores = {score: float(str(line.get(name, math.nan))) for score, name in names.items()}
        if line["phase"] == "val" and not any(map(math.isnan, scores.values())):
            points.append(Point(updates, _sum(cost for update, cost in costs.items() if update <= updates), scores))
    if not points or points[0].updates != 0:
        raise NoNumbersError(f"{folder.metrics} has no numbers of a validation before the first update")
    return Curve(points, _sum(costs.values()), max(costs, default=0))


def measure(whole: Curve, study: Study) -> RunNumbers:
    """Return what a run comes to at the study's budget; between validations, curves are straight lines."""
    currency, limit = study.currency, study.limit
    within = [point for point in whole.points if point.spent[currency] <= limit]
    beyond = [point for point in whole.points if point.spent[currency] > limit]
    curve = list(within)
    if beyond:
        last, following = within[-1].spent[currency], beyond[0].spent[currency]
        curve.append(_between(within[-1], beyond[0], (limit - last) / (following - last)))
    history = {int(point.updates): {str(score): value for score, value in point.scores.items()} for point in within}
    chosen = best_step(history, SCORES)
    return RunNumbers(
        curve=tuple(curve),
        end=within[-1],
        ranked=next(point for point in within if point.updates == chosen),
        area={score: _area(curve, score, currency, limit) for score in SCORES},
        reached={level: _first_at(curve, study.metric, level) for level in study.levels},
        total=whole.total,
        updates=whole.updates,
    )


def _area(curve: Sequence[Point], score: Score, currency: Currency, limit: int) -> float:
    """Return the curve's mean height over the budget; a run that ends earlier keeps its last height."""
    corners = [(point.spent[currency], point.scores[score]) for point in curve]
    corners.append((float(limit), corners[-1][1]))
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(corners)) / limit


def _first_at(curve: Sequence[Point], metric: Score, level: float) -> Mapping[Unit, float] | None:
    if curve[0].scores[metric] >= level:
        return curve[0].spent
    for one, other in pairwise(curve):
        low, high = one.scores[metric], other.scores[metric]
        if high >= level:  # and low is below it, or the walk would have ended before
            return _between(one, other, (level - low) / (high - low)).spent
    return None


def _between(one: Point, other: Point, share: float) -> Point:
    def mix(a: float, b: float) -> float:
        return a + share * (b - a)

    return Point(
        mix(one.updates, other.updates),
        {unit: mix(one.spent[unit], other.spent[unit]) for unit in UNITS},
        {score: mix(one.scores[score], other.scores[score]) for score in SCORES},
    )


def _sum(costs: Iterable[Mapping[Unit, float]]) -> dict[Unit, float]:
    every = list(costs)
    return {unit: sum(cost[unit] for cost in every) for unit in UNITS}
