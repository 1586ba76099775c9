from __future__ import annotations

import pytest

from resd_lightning import costs as costs_module
from resd_lightning.costs import Costs, spent_on_training
from resd_lightning.records import Completion, Purpose


def test_requests_and_tokens_add_up_per_purpose_and_skipped_ones_cost_nothing() -> None:
    costs = Costs()
    costs.count(Purpose.ROLLOUT, [Completion("a", (1, 2, 3), (4,)), Completion("b", (1,), (2, 3))])
    costs.count(Purpose.ROLLOUT, [Completion("", (1,) * 99, (), is_skipped=True)])
    costs.count(Purpose.CURATE, [Completion("c", (1,), (2,))])
    assert costs.take() == {
        "requests/rollout": 2,
        "tokens/rollout_prompt": 4,
        "tokens/rollout_generated": 3,
        "requests/curate": 1,
        "tokens/curate_prompt": 1,
        "tokens/curate_generated": 1,
    }


def test_taking_starts_again_from_zero() -> None:
    costs = Costs()
    costs.add_time("train", 1.5)
    costs.add_time("train", 0.5)
    assert costs.take() == {"time/train_s": 2.0}
    assert costs.take() == {}


def test_time_is_booked_also_where_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 20.0, 21.0])
    monkeypatch.setattr(costs_module.time, "perf_counter", lambda: next(clock))
    costs = Costs()
    with pytest.raises(KeyError), costs.timed("verify"):
        raise KeyError
    with costs.timed("verify"):
        pass
    assert costs.take() == {"time/verify_s": 3.5}


def test_what_an_update_spent_on_training_in_each_unit() -> None:
    line = {
        "updates_done": 4,
        "phase": "train",
        "prompts/drawn": 32.0,
        "requests/rollout": 64.0,
        "requests/reflect": 10.0,
        "rollout/response_tokens": 12.0,
        "tokens/rollout_generated": 500.0,
        "tokens/rollout_prompt": 9000.0,
        "tokens/reflect_generated": 70.0,
        "tokens/curate_generated": 5.0,
        "time/rollout_s": 1.5,
        "time/train_s": 2.0,
    }
    watched = {"requests/diagnose": 16.0, "tokens/diagnose_generated": 90.0, "tokens/rescore_generated": 40.0}
    watched |= {"time/diagnose_s": 3.0, "time/rescore_s": 1.0, "time/draw_s": 0.5}
    assert spent_on_training(line | watched) == spent_on_training(line)  # observers don't bring a budget nearer
    spent = spent_on_training(line)
    assert spent == {"prompts": 32, "rollouts": 64, "generated_tokens": 575, "seconds": 3.5}
