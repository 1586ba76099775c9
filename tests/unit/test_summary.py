from __future__ import annotations

import json
import math

from resd_lightning.summary import summarize


def train(updates: int, **metrics: float) -> dict[str, object]:
    return {"updates_done": updates, "phase": "train", **{key.replace("__", "/"): v for key, v in metrics.items()}}


def val(updates: int, *scores: float, k: int = 4) -> dict[str, object]:
    names = (f"val/per_task/mean@{k}", f"val/per_task/best@{k}", f"val/per_test/mean@{k}", f"val/per_test/best@{k}")
    return {"updates_done": updates, "phase": "val", **dict(zip(names, scores, strict=True))}


def test_first_last_and_best_by_which_way_is_better() -> None:
    lines = [
        train(1, train__loss=0.5, train__per_task=0.1),
        train(2, train__loss=0.2, train__per_task=0.4),
        train(3, train__loss=0.3, train__per_task=0.2),
    ]
    summary = summarize(lines)
    assert summary["updates"] == 3
    assert summary["metrics"] == {
        "train/loss": {"first": 0.5, "last": 0.3, "best": 0.2},
        "train/per_task": {"first": 0.1, "last": 0.2, "best": 0.4},
    }


def test_spent_adds_up_over_updates_and_validations() -> None:
    lines = [
        train(1, time__rollout_s=1.5, tokens__rollout_generated=10, requests__rollout=2),
        {**val(1, 0, 0, 0, 0), "time/validate_s": 2.0, "requests/rollout": 1},
        train(2, time__rollout_s=0.5, tokens__rollout_generated=7, requests__rollout=2),
    ]
    summary = summarize(lines)
    assert summary["spent"] == {
        "requests/rollout": 5,
        "time/rollout_s": 2.0,
        "time/validate_s": 2.0,
        "tokens/rollout_generated": 17,
    }
    assert not any(name.startswith(("time/", "tokens/", "requests/")) for name in summary["metrics"])


def test_best_update_has_the_best_sum_of_ranks() -> None:
    lines = [
        val(0, 0.1, 0.1, 0.1, 0.9),  # ranks 3, 3, 3, 1: 10
        val(4, 0.3, 0.2, 0.3, 0.2),  # ranks 1, 2, 1, 3: 7
        val(8, 0.2, 0.3, 0.2, 0.5),  # ranks 2, 1, 2, 2: 7; the earlier of equal ones wins
    ]
    assert summarize(lines)["best_update"] == 4


def test_before_any_validation_there_is_no_best_update() -> None:
    assert summarize([])["best_update"] is None
    assert summarize([])["updates"] == 0
    assert summarize([train(1, train__loss=0.5)])["best_update"] is None


def test_validations_with_another_k_than_the_last_are_not_ranked() -> None:
    lines = [val(0, 0.9, 0.9, 0.9, 0.9, k=2), val(4, 0.2, 0.2, 0.2, 0.2), val(8, 0.1, 0.1, 0.1, 0.1)]
    assert summarize(lines)["best_update"] == 4


def test_a_nan_is_no_value() -> None:
    nan = math.nan
    assert summarize([val(0, nan, nan, nan, nan)])["best_update"] is None
    summary = summarize([val(0, nan, nan, nan, nan), val(4, 0.2, 0.2, 0.2, 0.2), val(8, nan, nan, nan, nan)])
    assert summary["best_update"] == 4
    assert summary["metrics"]["val/per_task/mean@4"] == {"first": 0.2, "last": 0.2, "best": 0.2}
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
