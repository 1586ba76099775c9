"""Run folders and studies written by hand, so that every number that must come of them can be too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from resd_lightning.compare.curve import Curve, RunNumbers, measure, read_curve
from resd_lightning.compare.study import Study, Variant
from resd_lightning.config import BudgetConfig
from resd_lightning.run_folder import RunFolder, append_lines


def study(**changes: object) -> Study:
    """Return a study of one variant at 100 generated tokens."""
    wanted: dict[str, object] = {
        "variants": {"resd": Variant()},
        "budget": BudgetConfig(generated_tokens=100),
        "seeds": [0],
        "levels": [],
    }
    return Study(**(wanted | changes))  # type: ignore[arg-type]


def update(
    updates: int, *, tokens: float, prompts: float = 0, rollouts: float = 4, seconds: float = 2
) -> dict[str, object]:
    """Return an update's line; a quarter of its tokens are the reflector's."""
    return {
        "updates_done": updates,
        "phase": "train",
        "prompts/drawn": prompts,
        "requests/rollout": rollouts,
        "tokens/rollout_generated": tokens * 3 / 4,
        "tokens/rollout_prompt": 1000,
        "tokens/reflect_generated": tokens / 4,
        "time/rollout_s": seconds / 2,
        "time/train_s": seconds / 2,
        "train/loss": 0.5,
    }


def validation(updates: int, *scores: float, k: int = 4) -> dict[str, object]:
    """Return a validation's line; one score stands for all four."""
    per_task_mean, per_task_best, per_test_mean, per_test_best = scores if len(scores) == 4 else scores * 4
    return {
        "updates_done": updates,
        "phase": "val",
        f"val/per_task/mean@{k}": per_task_mean,
        f"val/per_task/best@{k}": per_task_best,
        f"val/per_test/mean@{k}": per_test_mean,
        f"val/per_test/best@{k}": per_test_best,
        "tokens/validate_generated": 5000,
        "time/validate_s": 100.0,
    }


def four_updates(*scores: float) -> list[dict[str, object]]:
    """Return a run of four updates of 30 tokens, validated before them and after the second, third and fourth.

    A validation's line stands before its update's where it was due, as the loop writes them, and else behind it.
    """
    start, second, third, fourth = scores
    return [
        validation(0, start),
        update(1, tokens=30, prompts=8),
        validation(2, second),
        update(2, tokens=30),
        update(3, tokens=30, prompts=8),
        validation(3, third),
        validation(4, fourth),
        update(4, tokens=30),
    ]


def write_run(path: Path, lines: Sequence[dict[str, object]], *, is_finished: bool = True) -> RunFolder:
    """Write what a run leaves, as far as a comparison reads it."""
    folder = RunFolder(path)
    folder.last_checkpoint.parent.mkdir(parents=True)
    folder.last_checkpoint.write_bytes(b"")
    append_lines(folder.metrics, lines)
    facts = {"is_finished": is_finished, "spent": {"requests/rollout": 16}, "versions": {"torch": "2"}}
    folder.summary.write_text(json.dumps(facts))
    return folder


def numbers(tmp_path: Path, lines: Sequence[dict[str, object]], **changes: object) -> RunNumbers:
    """Return what a hand-made run comes to in a study."""
    return measure(curve(tmp_path, lines), study(**changes))


def curve(tmp_path: Path, lines: Sequence[dict[str, object]]) -> Curve:
    """Return a hand-made run's curve."""
    return read_curve(write_run(tmp_path / "run", lines), 4)
