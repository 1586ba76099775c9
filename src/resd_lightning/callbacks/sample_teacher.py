"""What the teacher's context is worth: its own answers behind its prompt, and without each section of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from resd_lightning.callbacks.probe import Probe, mean
from resd_lightning.context.prompts import SECTION_NAMES
from resd_lightning.diagnostics.sections import FULL, NOTHING, ONLY, WITHOUT
from resd_lightning.records import Completion, Feedback, Purpose, UpdateRecord
from resd_lightning.rollout.engine import GenerationRequest

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

Answers = dict[str, tuple[Completion, Feedback]]


class SampleTeacher(Probe):
    """Samples one answer of the teacher per prompt and verifies it; `in_context/headroom` is what there is to distil.

    The answers of one rollout share their noise, so that they differ by their prompts alone. A trust-region teacher
    answers with the initial weights: its mixture exists for scoring only.

    Args:
        every: See `Probe`.
        max_examples: See `Probe`.
        alone: Ask behind each section alone, too. Where two sections say the same, leaving one out costs nothing, and
            only this tells what each is worth.
    """

    def __init__(self, every: int = 5, max_examples: int = 16, alone: bool = False) -> None:
        super().__init__(every, max_examples)
        self.alone = alone

    def look(self, module: ResdModule, record: UpdateRecord, chosen: Sequence[int]) -> None:
        """Ask, verify, and put shares of right answers into the record."""
        asked = [
            (i, name, chat) for i in chosen for name, chat in self.prompts(module, record, i, alone=self.alone).items()
        ]
        completions = module.data.generate(
            [
                GenerationRequest(
                    Purpose.DIAGNOSE, record.update, record.rollouts[i].example.id, record.rollouts[i].sample, chat
                )
                for i, _, chat in asked
            ],
            module.data.rollout,
            author="teacher",
            max_prompt_tokens=max(module.teacher_prompt_config.max_tokens, module.data.max_prompt_tokens),
        )
        feedback = module.data.verify(
            [
                (record.rollouts[i].example, completion.text)
                for (i, _, _), completion in zip(asked, completions, strict=True)
            ],
            phase=str(Purpose.DIAGNOSE),
        )
        answers: dict[int, Answers] = {i: {} for i in chosen}
        for (i, name, _), completion, judged in zip(asked, completions, feedback, strict=True):
            answers[i][name] = (completion, judged)
            record.count("in_context/verify_errors", bool(judged.error))
        record.metrics |= in_context_metrics(
            [record.rollouts[i].is_success for i in chosen],
            [{name: judged.is_success for name, (_, judged) in answers[i].items()} for i in chosen],
        )
        record.observations += [
            {
                "kind": "in_context",
                "example": record.rollouts[i].example.id,
                "sample": record.rollouts[i].sample,
                "reward": record.rollouts[i].feedback.reward,
                "answers": {
                    name: {"response": completion.text, "reward": judged.reward}
                    for name, (completion, judged) in answers[i].items()
                },
            }
            for i in chosen
        ]


def in_context_metrics(student: Sequence[bool], teacher: Sequence[dict[str, bool]]) -> dict[str, float]:
    """Return shares of right answers by metric name.

    Args:
        student: Whether each rollout succeeded.
        teacher: For each rollout, whether the teacher was right, by the names of its prompts in `section_ablations`.
    """
    full = [answers[FULL] for answers in teacher]
    metrics = {
        "in_context/student": mean(student),
        "in_context/full": mean(full),
        "in_context/nothing": mean([answers[NOTHING] for answers in teacher]),
        "in_context/headroom": mean(full) - mean(student),
    }
    on_failures = [is_right for is_right, was_right in zip(full, student, strict=True) if not was_right]
    if on_failures:
        metrics["in_context/full_on_failures"] = mean(on_failures)
    for name in SECTION_NAMES:
        without = f"{WITHOUT}{name}"
        holders = [answers for answers in teacher if without in answers]
        if holders:
            metrics[f"in_context/{without}"] = mean([answers[without] for answers in holders])
            metrics[f"in_context/drop_{name}"] = mean([answers[FULL] - answers[without] for answers in holders])
        only = [answers[f"{ONLY}{name}"] for answers in teacher if f"{ONLY}{name}" in answers]
        if only:
            metrics[f"in_context/{ONLY}{name}"] = mean(only)
    return metrics
