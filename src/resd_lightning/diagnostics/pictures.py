"""Pictures: tokens shaded by their loss (as RESD Fig. 5), successes (as RESD Fig. 4), and what is forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from resd_lightning.run_folder import Line

COLUMNS = 100
"""Characters to a line of a token picture."""
MAX_LINES = 40
"""Lines of a token picture; what a long response has beyond is left out, and said to be."""
CHARACTER_INCHES, LINE_INCHES = 0.092, 0.24
MIN_COLUMNS = 60
MAX_TICKS = 12
"""Most updates named along the lower edge of what is forgotten; more would run into each other."""


def token_losses_picture(seen: Line, title: str) -> Figure:
    """Return a response's tokens, each on a ground as dark as its loss; `seen` is a line of kind `token_losses`."""
    losses = cast("Sequence[float]", seen["losses"])
    words, places = lay_out(cast("Sequence[str]", seen["tokens"]))
    lines = places[-1][0] + 1
    width = max(MIN_COLUMNS, *(column + len(word) for word, (_, column) in zip(words, places, strict=True)))
    left_out = len(losses) - len(words)
    figure = Figure(figsize=(width * CHARACTER_INCHES + 0.4, lines * LINE_INCHES + 1.1), layout="constrained")
    axes = figure.add_subplot(xlim=(0, width), ylim=(lines, 0))
    axes.axis("off")
    title += f" (the last {left_out} tokens left out)" if left_out else ""
    axes.set_title(title, size=9, loc="left", parse_math=False)
    shade = Normalize(0, max(losses) or 1)
    colours = colormaps["YlOrRd"]
    for word, (line, column), loss in zip(words, places, losses, strict=False):
        ground = colours(shade(loss))
        axes.add_patch(Rectangle((column, line), len(word), 1, facecolor=ground, edgecolor="white", linewidth=0.5))
        axes.text(
            column + len(word) / 2,
            line + 0.5,
            word,
            parse_math=False,
            family="monospace",
            size=9,
            ha="center",
            va="center",
            color="white" if shade(loss) > 0.75 else "black",
        )
    bar = figure.colorbar(ScalarMappable(shade, colours), ax=axes, orientation="horizontal", aspect=60, pad=0.02)
    bar.set_label("loss, nats", size=8)
    bar.ax.tick_params(labelsize=8)
    return figure


def lay_out(tokens: Sequence[str]) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the tokens of the first `MAX_LINES` lines as they are shown, and the line and column of each.

    Lines are broken where they are full, and behind a token that holds a line break.
    """
    words: list[str] = []
    places: list[tuple[int, int]] = []
    line = column = 0
    for token in tokens:
        word = token.replace("\n", "⏎").replace("\t", "→") or "∅"
        if column and column + len(word) > COLUMNS:
            line, column = line + 1, 0
        if line >= MAX_LINES:
            break
        words.append(word)
        places.append((line, column))
        line, column = (line + 1, 0) if "\n" in token else (line, column + len(word))
    return words, places


def successes_picture(lines: Sequence[Line]) -> Figure:
    """Return how many prompts were solved in none, one, ... all of their samples, validation by validation.

    Args:
        lines: Those of kind `successes`, in order; validations with another number of samples than the last's are left
            out.
    """
    samples = cast("int", lines[-1]["samples"])
    kept = [line for line in lines if line["samples"] == samples]
    counts = [list(cast("dict[str, int]", line["by_prompt"]).values()) for line in kept]
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="policy updates", ylabel="share of validation prompts", ylim=(0, 1), xlim=(-0.6, len(kept) - 0.4)
    )
    bottoms = [0.0] * len(kept)
    for solved in range(samples + 1):
        shares = [ns.count(solved) / len(ns) for ns in counts]
        colour = colormaps["viridis"](solved / samples)
        axes.bar(range(len(kept)), shares, bottom=bottoms, width=0.9, color=colour, label=f"{solved}/{samples}")
        bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
    every = -(-len(kept) // 16)
    axes.set_xticks(range(0, len(kept), every), [str(line["updates_done"]) for line in kept[::every]])
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside right center", title="solved", frameon=False)
    return figure


def forgetting_picture(columns: Sequence[tuple[int, Sequence[float | None]]]) -> Figure:
    """Return the matrix of what past prompts come to: a row per prompt batch, a column per scoring.

    Args:
        columns: For each scoring the updates done, and the share solved of each prompt batch seen; None stays blank.
    """
    num_batches = max(len(shares) for _, shares in columns)
    matrix = np.full((num_batches, len(columns)), np.nan)
    for column, (_, shares) in enumerate(columns):
        matrix[: len(shares), column] = np.array(shares, dtype=float)  # None becomes nan
    figure = Figure(layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(matrix, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    named = range(0, len(columns), -(-len(columns) // MAX_TICKS))
    axes.set_xticks(named, [str(columns[column][0]) for column in named])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="policy updates done", ylabel="prompt batch, in the order seen")
    figure.colorbar(image, label="share solved")
    return figure
