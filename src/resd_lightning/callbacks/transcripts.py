"""Writes what every rollout went through, for people: transcripts.jsonl and the latest playbook."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.records import UpdateRecord
from resd_lightning.run_folder import Line, RunFolder, append_lines, keep_lines, replace_text

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class WriteTranscripts(Callback):
    """Appends one line per rollout and update, and rewrites the playbook's readable copy.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines past the update that is resumed from."""
        if trainer.is_global_zero:
            keep_lines(self._folder.transcripts, lambda line: int(str(line["update"])) < trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the update."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record = module.data.record
        if record is None or not trainer.is_global_zero:
            return
        append_lines(self._folder.transcripts, transcript_lines(record, module))
        replace_text(self._folder.playbook, module.context.to_json())


def transcript_lines(record: UpdateRecord, module: ResdModule) -> list[Line]:
    """Return one plain object per rollout: response, feedback, answers about it, and the teacher's prompt."""
    counts = module.objective.describe(record.rollouts, record.teacher_prompts)
    lines: list[Line] = []
    for index, rollout in enumerate(record.rollouts):
        prompt = record.teacher_prompts[index]
        lines.append(
            {
                "update": record.update,
                "example": rollout.example.id,
                "sample": rollout.sample,
                "prompt": rollout.example.messages,
                "response": rollout.completion.text,
                "response_tokens": len(rollout.completion.token_ids),
                "is_truncated": rollout.completion.is_truncated,
                "reward": rollout.feedback.reward,
                "tests_passed": rollout.feedback.tests_passed,
                "feedback": rollout.feedback.text,
                "verify_error": rollout.feedback.error,
                "answers": [
                    {
                        "purpose": str(answer.purpose),
                        "prompt": answer.messages,
                        "text": answer.text,
                        "problems": [vars(problem) for problem in answer.problems],
                    }
                    for answer in record.answers
                    if answer.rollout == index
                ],
                "operations": [op for op in record.operations if _is_told_by(index, op, record, module)],
                "teacher_sections": sorted(prompt.sections),
                "teacher_prompt": prompt.messages if prompt.is_enriched else None,
                "teacher_spans": prompt.spans,
                "teacher_skipped": prompt.is_skipped,
                **counts[index],
            }
        )
    return lines


def _is_told_by(index: int, operation: Line, record: UpdateRecord, module: ResdModule) -> bool:
    """Whether an operation stands on this rollout's line: the first of its example, or of the playbook it pruned."""
    ids = [rollout.example.id for rollout in record.rollouts]
    if "example" in operation:
        return index == ids.index(str(operation["example"]))
    return index == [module.context.key(id_) for id_ in ids].index(str(operation["playbook"]))
