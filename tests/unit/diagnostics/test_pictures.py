from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from resd_lightning.diagnostics.pictures import (
    COLUMNS,
    MAX_LINES,
    forgetting_picture,
    lay_out,
    successes_picture,
    token_losses_picture,
)


def test_tokens_are_laid_out_in_lines_that_are_broken_where_full_and_behind_line_breaks() -> None:
    half = "x" * (COLUMNS // 2)
    words, places = lay_out(["a", " b\n", "", half, half, "c", "y" * 2 * COLUMNS, "d"])
    assert words == ["a", " b⏎", "∅", half, half, "c", "y" * 2 * COLUMNS, "d"]
    middle = 1 + COLUMNS // 2
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, COLUMNS // 2), (3, 0), (4, 0)]
    assert middle + COLUMNS // 2 > COLUMNS  # which is why the fifth stands on a line of its own


def test_lines_beyond_the_most_are_left_out() -> None:
    words, places = lay_out(["a\n"] * (MAX_LINES + 5))
    assert len(words) == len(places) == MAX_LINES
    picture = token_losses_picture({"tokens": ["a\n"] * (MAX_LINES + 5), "losses": [0.1] * (MAX_LINES + 5)}, "x")
    assert picture.axes[0].get_title(loc="left") == "x (the last 5 tokens left out)"


def test_a_tokens_ground_is_as_dark_as_its_loss() -> None:
    seen = {"tokens": ["rule ", "$x$", "\u200b", "é"], "losses": [0.0, 2.0, 1.0, -1e-8]}
    picture = token_losses_picture(seen, "$n$-th example, update 1, reward 0")
    axes = picture.axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    shades = colormaps["YlOrRd"]
    assert [box.get_facecolor() for box in boxes] == [to_rgba(shades(shade)) for shade in (0.0, 1.0, 0.5, 0.0)]
    assert [(box.get_x(), box.get_width()) for box in boxes] == [(0, 5), (5, 3), (8, 1), (9, 1)]
    assert [text.get_text() for text in axes.texts] == ["rule ", "$x$", "\u200b", "é"]
    FigureCanvasAgg(picture).draw()  # dollars are no mathematics


def test_a_response_without_any_loss_can_be_drawn() -> None:
    FigureCanvasAgg(token_losses_picture({"tokens": ["a"], "losses": [0.0]}, "x")).draw()


def test_bars_are_shares_of_prompts_and_stack_to_one() -> None:
    lines = [
        {"updates_done": 0, "samples": 4, "by_prompt": {"a": 4}},  # another number of samples
        {"updates_done": 4, "samples": 2, "by_prompt": {"a": 0, "b": 0, "c": 1, "d": 2}},
        {"updates_done": 8, "samples": 2, "by_prompt": {"a": 2, "b": 0, "c": 2, "d": 2}},
    ]
    picture = successes_picture(lines)
    axes = picture.axes[0]
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [[0.5, 0.25], [0.25, 0.0], [0.25, 0.75]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["4", "8"]
    assert [text.get_text() for text in picture.legends[0].get_texts()] == ["2/2", "1/2", "0/2"]
    FigureCanvasAgg(picture).draw()


def test_the_picture_has_a_colour_for_every_share_and_none_where_nothing_was_scored() -> None:
    def colours(*columns: list[float | None]) -> set[tuple[int, ...]]:
        canvas = FigureCanvasAgg(forgetting_picture([(2 * i, shares) for i, shares in enumerate(columns)]))
        canvas.draw()
        image = np.asarray(canvas.buffer_rgba())[..., :3]
        matrix = image[:, : image.shape[1] * 3 // 4].reshape(-1, 3)  # without the scale beside it
        found, counts = np.unique(matrix, axis=0, return_counts=True)
        areas = found[counts > len(matrix) / 100]  # not the blends along edges and letters
        return {tuple(pixel) for pixel in areas.tolist()} - {(255, 255, 255)}

    low, high = colours([0.0], [0.0]), colours([1.0], [1.0])
    assert len(low) == len(high) == 1
    assert low != high
    assert colours([0.0], [0.0, 1.0]) == low | high
    assert colours([0.0], [0.0, None]) == low
    assert len(colours(*[[0.5]] * 40)) == 1
