from __future__ import annotations

import pytest

from resd_lightning.callbacks import MeasureForgetting
from resd_lightning.callbacks.measure_forgetting import compare, panel_of_past
from resd_lightning.config import ConfigError
from resd_lightning.records import Example, Message
from resd_lightning.stream import PromptStream


def stream(num_examples: int, batch_size: int) -> PromptStream:
    message = Message(role="user", content="q")
    examples = [Example(f"x{place}", (message,), None) for place in range(num_examples)]
    return PromptStream(examples, batch_size=batch_size, inner_updates=2)


def panel(update: int, max_examples: int) -> list[list[str]]:
    return [[e.id for e in batch] for batch in panel_of_past(stream(12, 4), update, max_examples)]


def test_forgotten_is_what_an_earlier_scoring_solved_and_learned_what_none_did() -> None:
    solved_at = {"kept": 4, "lost": 2, "lost again": 4, "left out": 4}
    now = [{"kept": True, "lost": False, "never": False}, {"lost again": False, "new": True}, {}]
    scoring = compare(6, now, solved_at)
    assert scoring.forgotten == {"lost": 2, "lost again": 4}
    assert scoring.learned == ["new"]
    assert scoring.solved_share_by_batch == [1 / 3, 1 / 2, None]
    assert scoring.metrics() == {
        "forgetting/scored": 5.0,
        "forgetting/solved_share": 2 / 5,
        "forgetting/kept_share": pytest.approx(1 / 3),  # of kept, lost and lost again
        "forgetting/forgotten": 2.0,
        "forgetting/learned": 1.0,
    }


def test_a_share_of_nothing_is_no_number() -> None:
    assert compare(2, [{}], {"x": 1}).metrics() == {
        "forgetting/scored": 0.0,
        "forgetting/forgotten": 0.0,
        "forgetting/learned": 0.0,
    }
    assert "forgetting/kept_share" not in compare(2, [{"x": True}], {}).metrics()


def test_the_examples_scored_are_spread_over_the_run_and_stay_the_same() -> None:
    assert panel(5, 12) == panel(5, 99) == [[f"x{b}" for b in range(a, a + 4)] for a in (0, 4, 8)]
    assert panel(5, 5) == [["x0", "x2"], ["x4", "x7"], ["x9"]]
    assert panel(5, 2) == [["x0"], ["x6"], []]
    for update in range(6):  # two updates a batch
        assert panel(update, 5) == panel(5, 5)[: update // 2 + 1]


@pytest.mark.parametrize("argument", ["every_updates", "max_examples"])
def test_arguments_out_of_range_are_refused_by_name(argument: str) -> None:
    with pytest.raises(ConfigError, match=f"MeasureForgetting.{argument} must be at least 1, got 0"):
        MeasureForgetting(**{argument: 0})
