"""A comparison's figures: where its runs end, and how they come there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from resd_lightning.compare.curve import RunNumbers
from resd_lightning.compare.interval import estimate
from resd_lightning.compare.study import Study
from resd_lightning.costs import UNITS, Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AXIS: Mapping[Unit, str] = {
    "prompts": "training prompts",
    "rollouts": "training rollouts",
    "generated_tokens": "tokens generated for training: rollouts, reflections, tags, curation",
    "seconds": "seconds of training, validation left out",
}
GRID = 100
"""Points that a mean curve is drawn through."""
STYLES = ("-", "--", "-.", ":")
"""Lines differ in style as well as in colour."""
MOST_CURVES = 10
"""Variants whose curves can be told from each other; of more only the ends are drawn."""


def draw(out: Path, study: Study, samples: int, numbers: Mapping[str, Mapping[int, RunNumbers]]) -> list[Path]:
    """Draw the ends and, where they can be told apart, the curves, as PNG and SVG; return the files.

    Args:
        out: Folder of the figures.
        study: What was compared.
        samples: Responses per prompt in validation.
        numbers: Finished runs by variant and seed.
    """
    shown = {name: list(numbers[name].values()) for name in study.variants if name in numbers}
    if not shown:
        return []
    paths = draw_ends(out, study, samples, shown)
    return paths + (draw_curves(out, study, samples, shown) if len(shown) <= MOST_CURVES else [])


def draw_ends(out: Path, study: Study, samples: int, shown: Mapping[str, Sequence[RunNumbers]]) -> list[Path]:
    """Draw each run's last score within the budget as a dot, and each variant's mean with its interval."""
    # Imported here: `resd fit` must not wait for a library that it doesn't draw with.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 0.9 + 0.28 * len(shown)), dpi=150, layout="constrained")
    axes = figure.subplots()
    for row, runs in enumerate(shown.values()):
        ends = [run.end.scores[study.metric] for run in runs]
        axes.plot(ends, [row] * len(ends), "o", color="C0", markersize=4, alpha=0.5, markeredgewidth=0)
        found = estimate(ends)
        axes.errorbar(
            found.mean, row, xerr=found.half_width, fmt="|", color="black", markersize=9, capsize=3, linewidth=1
        )
    axes.set_yticks(range(len(shown)), [study.labels[name] for name in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)  # the first on top
    axes.set_xlim(-0.02, 1.02)
    unit = study.currency.replace("_", " ")
    axes.set_xlabel(f"validation {study.metric}@{samples} after {study.limit:,} {unit}")
    axes.set_title("seeds, mean, 95 % interval", fontsize=8)
    axes.grid(alpha=0.25)
    return _save(figure, out, "ends")


def draw_curves(out: Path, study: Study, samples: int, shown: Mapping[str, Sequence[RunNumbers]]) -> list[Path]:
    """Draw the metric over each unit."""
    from matplotlib.figure import Figure

    curves = [run.curve for runs in shown.values() for run in runs]
    highest = max(point.scores[study.metric] for curve in curves for point in curve)
    paths = []
    for unit in UNITS:
        figure = Figure(figsize=(8.5, 3.8), dpi=150, layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(study.variants):
            if name in shown:
                _draw(axes, shown[name], study, unit, study.labels[name], place)
        axes.set(xlabel=AXIS[unit], ylabel=f"validation {study.metric}@{samples}")
        axes.set_xlim(left=0)
        axes.set_ylim(0, min(1.02, 1.15 * highest) or 1.02)  # by the runs: an interval over few seeds is far wider
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.25)
        title = "seeds, mean, 95 % interval"
        figure.legend(loc="outside right upper", fontsize=8, handlelength=3, title=title, title_fontsize=8)
        paths += _save(figure, out, f"curves_{unit}")
    return paths


def _save(figure: Figure, out: Path, name: str) -> list[Path]:
    from matplotlib import rc_context

    paths = []
    for suffix in ("png", "svg"):
        path = out / f"{name}.{suffix}"
        with rc_context({"svg.hashsalt": "resd"}):  # the same numbers make the same file
            figure.savefig(path, metadata={"Date": None} if suffix == "svg" else None)
        paths.append(path)
    return paths


def _draw(axes: Axes, runs: Sequence[RunNumbers], study: Study, unit: Unit, label: str, place: int) -> None:
    """Draw one variant's runs, and their mean and its interval as far as all of them came."""
    lines = [
        ([point.spent[unit] for point in run.curve], [point.scores[study.metric] for point in run.curve])
        for run in runs
    ]
    grid = np.linspace(0, min(spent[-1] for spent, _ in lines), GRID)
    heights = np.stack([np.interp(grid, spent, scores) for spent, scores in lines])  # (run, point)
    estimates = [estimate(column.tolist()) for column in heights.T]
    mean = np.array([each.mean for each in estimates])
    colour, style = f"C{place % 10}", STYLES[place % len(STYLES)]
    axes.plot(grid, mean, color=colour, linestyle=style, linewidth=2, label=label)
    for spent, scores in lines:
        axes.plot(spent, scores, color=colour, linewidth=0.6, alpha=0.35)
    widths = [each.half_width for each in estimates if each.half_width is not None]
    if widths:
        axes.fill_between(grid, mean - widths, mean + widths, color=colour, alpha=0.1, linewidth=0)
