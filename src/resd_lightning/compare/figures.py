"""A comparison's learning curves."""

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


def draw_curves(out: Path, study: Study, samples: int, numbers: Mapping[str, Mapping[int, RunNumbers]]) -> list[Path]:
    """Draw the metric over each unit as PNG and SVG, and return the files.

    Args:
        out: Folder of the figures.
        study: What was compared.
        samples: Responses per prompt in validation.
        numbers: Finished runs by variant and seed.
    """
    # Imported here: `resd fit` must not wait for a library that it doesn't draw with.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shown = [name for name in study.variants if name in numbers]
    curves = [run.curve for name in shown for run in numbers[name].values()]
    highest = max((point.scores[study.metric] for curve in curves for point in curve), default=0.0)
    paths = []
    for unit in UNITS if shown else ():
        figure = Figure(figsize=(7, 3.8), dpi=150, layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(study.variants):
            if name in shown:
                _draw(axes, list(numbers[name].values()), study, unit, study.labels[name], place)
        axes.set(xlabel=AXIS[unit], ylabel=f"validation {study.metric}@{samples}")
        axes.set_xlim(left=0)
        axes.set_ylim(0, min(1.02, 1.15 * highest) or 1.02)  # by the runs: an interval over few seeds is far wider
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8, handlelength=3, title="seeds, their mean and its 95 % interval", title_fontsize=8)
        for suffix in ("png", "svg"):
            path = out / f"curves_{unit}.{suffix}"
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
        axes.plot(spent, scores, color=colour, linewidth=0.6, alpha=0.6)
    widths = [each.half_width for each in estimates if each.half_width is not None]
    if widths:
        axes.fill_between(grid, mean - widths, mean + widths, color=colour, alpha=0.15, linewidth=0)
