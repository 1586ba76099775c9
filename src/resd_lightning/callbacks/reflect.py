"""REFLECT on failures: what went wrong, and which lessons helped or misled (RESD Alg. 1 line 8)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from resd_lightning.algorithm import AlgorithmCallback
from resd_lightning.callbacks.asking import Question, apply_tags, ask
from resd_lightning.context.prompts import Sections
from resd_lightning.context.reflect import REFLECTION_SCHEMA, parse_reflection
from resd_lightning.records import Purpose, UpdateRecord
from resd_lightning.thinking import strip_thinking

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class ReflectOnFailures(AlgorithmCallback):
    """Has a reflection written on every failed rollout, and counts its verdicts on playbook entries.

    A reflection that can't be read leaves its rollout without one.
    """

    line = 8

    def on_rollouts_end(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        """Reflect on the failures, then apply all their tags."""
        question = Question(Purpose.REFLECT, module.context_config.reflect, REFLECTION_SCHEMA, parse_reflection)
        about = [
            (
                index,
                Sections(
                    question=rollout.example.whole_question,
                    entries=module.context.playbook(rollout.example.id).entries,
                    trial=strip_thinking(rollout.completion.text),
                    feedback=rollout.feedback.text,
                ),
            )
            for index, rollout in enumerate(record.rollouts)
            if not rollout.is_success
        ]
        reflections = [
            (index, answer.reflection) for index, answer in ask(question, module, record, about) if answer.reflection
        ]
        for index, reflection in reflections:
            record.rollouts[index] = replace(record.rollouts[index], reflection=reflection)
        record.count("reflect/usable", len(reflections))
        apply_tags(module, record, Purpose.REFLECT, [(index, reflection.tags) for index, reflection in reflections])
