"""The light reflection on successes: which lessons helped (RESD Alg. 1, between lines 8 and 9)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from resd_lightning.algorithm import AlgorithmCallback
from resd_lightning.callbacks.asking import Question, apply_tags, ask
from resd_lightning.context.prompts import Sections
from resd_lightning.context.reflect import TAGS_SCHEMA, parse_tags
from resd_lightning.records import Purpose, UpdateRecord
from resd_lightning.thinking import strip_thinking

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class TagSuccesses(AlgorithmCallback):
    """Has the lessons tagged by every successful rollout, before the curator looks.

    Rollouts whose playbook is empty are not asked about: there is nothing to tag.
    """

    line = 8.5

    def on_rollouts_end(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        """Tag by the successes."""
        question = Question(Purpose.TAG, module.context_config.tag, TAGS_SCHEMA, parse_tags)
        about = [
            (
                index,
                Sections(
                    question=rollout.example.whole_question,
                    entries=module.context.playbook(rollout.example.id).entries,
                    solution=strip_thinking(rollout.completion.text),
                ),
            )
            for index, rollout in enumerate(record.rollouts)
            if rollout.is_success and module.context.playbook(rollout.example.id).entries
        ]
        answers = ask(question, module, record, about)
        apply_tags(module, record, Purpose.TAG, [(index, answer.tags) for index, answer in answers])
