from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest
from lightning.pytorch import Trainer

from resd_lightning.callbacks import ReflectOnFailures, ReflectWrongly
from resd_lightning.config import ConfigError
from resd_lightning.micro.world import RULES, lesson
from resd_lightning.module import ResdModule
from resd_lightning.records import Completion, Example, Feedback, Reflection, Rollout, UpdateRecord
from resd_lightning.tasks.finer import FinerTask

TRAINER = cast("Trainer", None)
RIGHT = lesson("m3", RULES[5])
LESSONS = {lesson("m3", rule) for rule in RULES}


def insights(monkeypatch: pytest.MonkeyPatch, insight: str, share: float, update: int = 0) -> list[str]:
    """Return what is left of the insights on 400 failures, all of which the reflector had called `insight`."""

    def reflect(self: ReflectOnFailures, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        record.rollouts[:] = [replace(each, reflection=Reflection(insight)) for each in record.rollouts]

    monkeypatch.setattr(ReflectOnFailures, "on_rollouts_end", reflect)
    failures = [
        Rollout(Example(str(i), (), ""), 0, Completion("", (), ()), Feedback(0.0, (False,), "wrong"))
        for i in range(400)
    ]
    record = UpdateRecord(update, failures, {})
    ReflectWrongly(share).on_rollouts_end(
        TRAINER, cast("ResdModule", SimpleNamespace(data=SimpleNamespace(seed=1))), record
    )
    left = [each.reflection.key_insight for each in record.rollouts if each.reflection is not None]
    assert record.metrics.get("reflect/made_wrong", 0) == sum(each != insight for each in left)
    return left


def test_the_share_is_made_wrong_with_another_rule_of_the_same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    left = insights(monkeypatch, RIGHT, 0.25)
    wrong = [each for each in left if each != RIGHT]
    assert 70 < len(wrong) < 130
    assert set(wrong) == LESSONS - {RIGHT}
    assert insights(monkeypatch, RIGHT, 0.0) == [RIGHT] * 400
    assert RIGHT not in insights(monkeypatch, RIGHT, 1.0)


def test_which_ones_depends_on_the_update_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert insights(monkeypatch, RIGHT, 0.5) == insights(monkeypatch, RIGHT, 0.5)
    assert insights(monkeypatch, RIGHT, 0.5) != insights(monkeypatch, RIGHT, 0.5, update=1)


def test_an_insight_that_names_no_rule_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(insights(monkeypatch, "m3", 1.0)) == {"m3"}


def test_other_tasks_and_impossible_shares_are_refused() -> None:
    module = cast("ResdModule", SimpleNamespace(data=SimpleNamespace(task=FinerTask())))
    with pytest.raises(
        ConfigError, match=r"ReflectWrongly knows .* TapeMachinesTask only, and data\.task is a FinerTask"
    ):
        ReflectWrongly(0.5).setup(TRAINER, module, "fit")
    with pytest.raises(ConfigError, match="wrong_share"):
        ReflectWrongly(1.5)
