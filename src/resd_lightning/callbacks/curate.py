"""CURATE: turn reflections into playbook entries (RESD Alg. 1 line 9)."""

from __future__ import annotations

from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer

from resd_lightning.algorithm import AlgorithmCallback, algorithm_callbacks
from resd_lightning.callbacks.asking import Question, ask
from resd_lightning.context.curate import Proposal, apply_operations
from resd_lightning.context.operations import curation_schema, parse_operations
from resd_lightning.context.prompts import Sections
from resd_lightning.records import Purpose, UpdateRecord

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class CuratePlaybook(AlgorithmCallback):
    """Asks a curator for each prompt with a reflection on a failure, and applies all their operations in prompt order.

    With several rollouts per prompt the first reflection speaks for the prompt. Curators of one update don't see each
    other's additions; duplicates among them are merged.
    """

    line = 9
    needs = "ReflectOnFailures"

    def on_rollouts_end(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        """Curate, then let the budget be enforced."""
        config, context = module.context_config, module.context
        question = Question(
            Purpose.CURATE,
            config.curate,
            curation_schema(config.operations),
            partial(parse_operations, allowed=config.operations),
        )
        speakers: dict[str, int] = {}
        for index, rollout in enumerate(record.rollouts):
            if rollout.reflection is not None:
                speakers.setdefault(rollout.example.id, index)
        about = [
            (
                index,
                Sections(
                    question=record.rollouts[index].example.whole_question,
                    entries=context.playbook(example_id).entries,
                    reflection=record.rollouts[index].reflection,
                ),
            )
            for example_id, index in speakers.items()
        ]
        proposals: dict[str, list[Proposal]] = defaultdict(list)
        for index, answer in ask(question, module, record, about):
            example_id = record.rollouts[index].example.id
            proposals[context.key(example_id)].append(Proposal(answer.operations, record.update, example_id))
        for key, of_one_playbook in proposals.items():
            self._apply(module, record, key, of_one_playbook)
        for callback in algorithm_callbacks(trainer):
            callback.on_curation_end(trainer, module, record)

    @staticmethod
    def _apply(module: ResdModule, record: UpdateRecord, key: str, proposals: list[Proposal]) -> None:
        playbook, applied = apply_operations(module.context.playbooks[key], proposals)
        module.context.put_playbook(key, playbook)
        for outcome in applied:
            name = type(outcome.operation).__name__.upper()
            if outcome.problem is None:
                record.count(f"playbook/applied_{name.lower()}")
            else:
                record.count(f"{Purpose.CURATE}/problem/{outcome.problem.kind}")
        record.log_operations(
            {
                "type": type(outcome.operation).__name__.upper(),
                "playbook": key,
                "example": outcome.example_id,
                "entry": outcome.entry_id,
                "problem": None if outcome.problem is None else outcome.problem.kind,
                **vars(outcome.operation),
            }
            for outcome in applied
        )
