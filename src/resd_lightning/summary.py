"""A run in numbers: summary.json, made from metrics.jsonl."""

from __future__ import annotations

import json
import math
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from resd_lightning.metrics import best_step
from resd_lightning.run_folder import RunFolder, read_lines, replace_text

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

PACKAGES = ("resd-lightning", "torch", "lightning", "transformers", "peft", "bitsandbytes")
LOWER_IS_BETTER = (
    "train/loss",
    "train/grad_norm",
    "loss/",
    "val/solved_0_of_",
    "teacher/lag",
    "verify/",
    "grpo/",
    "forgetting/forgotten",
)
LOWER_IS_BETTER_ENDS = ("skipped", "truncated", "truncated_share", "prompt_too_long")
SPENT = ("time/", "tokens/", "requests/", "prompts/")


def write_summary(folder: RunFolder, module: ResdModule, *, is_finished: bool) -> None:
    """Write `summary.json` from all lines of `metrics.jsonl`.

    Args:
        folder: The run's folder.
        module: What is trained, for the facts about it.
        is_finished: Whether the run has come to its end: to the last of its prompts or to its budget.
    """
    lines = list(read_lines(folder.metrics))
    facts: dict[str, object] = {
        "method": module.method,
        "task": type(module.data.task).__name__,
        "base": module.policy_config.base,
        "seed": module.data.seed,
        "is_finished": is_finished,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }
    replace_text(folder.summary, json.dumps(facts | summarize(lines), indent=2, ensure_ascii=False) + "\n")


def _is_better_low(name: str) -> bool:
    return name.startswith(LOWER_IS_BETTER) or name.endswith(LOWER_IS_BETTER_ENDS) or "/problem/" in name


def summarize(lines: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Return what a run's metrics come to.

    Returns:
        `updates`; `metrics`, by name with the first, last and best value; `spent`, the totals of prompts, requests,
        tokens and seconds by purpose and phase; and `best_update`, the validated update with the best sum of ranks over
        the four validation metrics (the paper's choice of checkpoint), None before the first validation. A run that was
        resumed with another number of samples per prompt is ranked over the validations that can be compared with its
        last. A nan (a validation whose every prompt was too long) is no value.
    """
    series: dict[str, list[float]] = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    validations: dict[int, dict[str, float]] = {}
    for line in lines:
        numbers = {
            name: float(value)
            for name, value in line.items()
            if isinstance(value, int | float) and "/" in name and not math.isnan(value)
        }
        for name, value in numbers.items():
            if name.startswith(SPENT):
                spent[name] += value
            else:
                series[name].append(value)
        if line["phase"] == "val":
            scores = {name: value for name, value in numbers.items() if name.startswith("val/per_")}
            if scores:
                validations[int(str(line["updates_done"]))] = scores
    ranked = sorted(validations[max(validations)]) if validations else []
    comparable = {update: scores for update, scores in validations.items() if sorted(scores) == ranked}
    return {
        "updates": max((int(str(line["updates_done"])) for line in lines), default=0),
        "best_update": best_step(comparable, ranked) if ranked else None,
        "metrics": {
            name: {
                "first": values[0],
                "last": values[-1],
                "best": (min if _is_better_low(name) else max)(values),
            }
            for name, values in sorted(series.items())
        },
        "spent": dict(sorted(spent.items())),
    }
