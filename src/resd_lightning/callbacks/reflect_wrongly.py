"""A reflector that is wrong by a known share: how much error the rest of the method bears, in the micro-world."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer

from resd_lightning.callbacks.reflect import ReflectOnFailures
from resd_lightning.config import ConfigError, require
from resd_lightning.micro.world import RULES, lesson
from resd_lightning.records import Reflection, UpdateRecord
from resd_lightning.tasks.tape_machines import TapeMachinesTask

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class ReflectWrongly(ReflectOnFailures):
    """Stands in for `ReflectOnFailures`; a share of its insights name one of the machine's fifteen other rules.

    What is drawn depends on run, update and rollout alone. An insight that names no rule stays as it is. Verdicts on
    entries are the model's own.

    Args:
        wrong_share: The share.
    """

    def __init__(self, wrong_share: float = 0.25) -> None:
        require(0 <= wrong_share <= 1, "ReflectWrongly's wrong_share", "in [0, 1]", wrong_share)
        self._wrong_share = wrong_share

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse tasks whose insights can't be made wrong."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        if not isinstance(module.data.task, TapeMachinesTask):
            raise ConfigError(
                "trainer.callbacks: ReflectWrongly knows the lessons of TapeMachinesTask only, and data.task is a "
                f"{type(module.data.task).__name__}"
            )

    def on_rollouts_end(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        """Reflect, then put wrong rules in."""
        super().on_rollouts_end(trainer, module, record)
        for index, rollout in enumerate(record.rollouts):
            rng = random.Random(f"{module.data.seed}|wrong|{record.update}|{rollout.example.id}|{rollout.sample}")
            if rollout.reflection is not None and rng.random() < self._wrong_share:
                wrong = _with_another_rule(rollout.reflection, rng)
                record.rollouts[index] = replace(rollout, reflection=wrong)
                record.count("reflect/made_wrong", wrong != rollout.reflection)


def _with_another_rule(reflection: Reflection, rng: random.Random) -> Reflection:
    machine, _, stated = reflection.key_insight.partition(" ")
    others = [rule for rule in RULES if str(rule) != stated]
    if len(others) == len(RULES):
        return reflection  # it names no rule
    return replace(reflection, key_insight=lesson(machine, rng.choice(others)))
