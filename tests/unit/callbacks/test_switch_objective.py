from __future__ import annotations

import logging
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
from lightning.pytorch import LightningModule, Trainer

from resd_lightning.algorithm import Phase
from resd_lightning.callbacks import SwitchObjective
from resd_lightning.records import UpdateRecord

TRAINER = cast("Trainer", None)


def go_through(switch: SwitchObjective, rates: Sequence[float], first: int = 0) -> list[dict[str, float]]:
    """Let updates of these success rates end, and return what each said of the switch."""
    records = [UpdateRecord(first + i, [], {"train/per_task": rate}) for i, rate in enumerate(rates)]
    for record in records:
        module = SimpleNamespace(data=SimpleNamespace(record=record))
        switch.on_train_epoch_end(TRAINER, cast("LightningModule", module))
    return [{n: v for n, v in record.metrics.items() if n.startswith("switch/")} for record in records]


def begun(switch: SwitchObjective, updates: int) -> list[bool]:
    return [switch.has_begun(update) for update in range(updates)]


def test_it_switches_after_the_window_reached_the_rate_and_not_before_the_window_is_full() -> None:
    switch = SwitchObjective(success_rate=0.5, window=2)
    said = go_through(switch, [0.75, 0.0, 0.5, 0.5, 0.0, 0.0])
    # The windows' rates are 0.75 (one update only), 0.375, 0.25, 0.5: update 4 is the first of the next phase.
    assert begun(switch, 7) == [False] * 4 + [True] * 3
    assert [metrics["switch/success_rate"] for metrics in said] == [0.75, 0.375, 0.25, 0.5, 0.25, 0.0]
    assert [metrics["switch/is_on"] for metrics in said] == [0, 0, 0, 0, 1, 1]  # and never back


def test_a_rate_that_is_never_reached_never_switches() -> None:
    switch = SwitchObjective(success_rate=0.5, window=2)
    go_through(switch, [0.4] * 9)
    assert not any(begun(switch, 99))


def test_at_update_is_the_first_of_the_next_phase_unless_the_rate_was_reached_earlier() -> None:
    late, early = (SwitchObjective(success_rate=0.5, window=1, at_update=3) for _ in range(2))
    go_through(late, [0.0] * 4)
    assert begun(late, 5) == [False] * 3 + [True] * 2
    go_through(early, [0.5, 0.0, 0.0])
    assert begun(early, 3) == [False, True, True]


def test_it_says_once_what_it_does(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        go_through(SwitchObjective(success_rate=None, at_update=1, rollouts_per_prompt=4), [0.25] * 3)
    assert caplog.messages == [
        "from update 1 on: objective grpo, 4 rollouts per prompt; success rate of the last 1 updates 0.25"
    ]


@pytest.mark.parametrize("stopped_after", range(6))
def test_restored_from_its_state_it_goes_on_as_it_would_have(stopped_after: int) -> None:
    rates = [0.75, 0.0, 0.25, 0.75, 0.0, 0.5]
    whole = SwitchObjective(success_rate=0.5, window=2)
    said = go_through(whole, rates)
    stopped, resumed = (SwitchObjective(success_rate=0.5, window=2) for _ in range(2))
    go_through(stopped, rates[:stopped_after])
    resumed.load_state_dict(stopped.state_dict())
    assert go_through(resumed, rates[stopped_after:], first=stopped_after) == said[stopped_after:]
    assert begun(resumed, 9) == begun(whole, 9) == [False] * 4 + [True] * 5
    assert resumed.state_dict() == whole.state_dict()


def test_its_phase_is_what_it_was_told() -> None:
    assert SwitchObjective().phase == Phase("grpo", 8)
    assert SwitchObjective("distillation", rollouts_per_prompt=1).phase == Phase("distillation", 1)
