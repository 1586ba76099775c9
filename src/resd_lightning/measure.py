"""What an update's rollouts and context come to in numbers; everything is read off its record."""

from __future__ import annotations

from resd_lightning.context.prompts import SECTION_NAMES
from resd_lightning.context.store import ContextStore
from resd_lightning.records import UpdateRecord
from resd_lightning.tasks.base import JudgesLessons, Task


def measure_rollouts(record: UpdateRecord, num_requested: int) -> None:
    """Put success, lengths and what went wrong into the record's metrics.

    Args:
        record: The update, its rollouts verified.
        num_requested: Rollouts asked for; those missing had prompts above their limit.
    """
    rollouts = record.rollouts
    shown = max(len(rollouts), 1)
    record.metrics |= {
        "train/per_task": sum(rollout.is_success for rollout in rollouts) / shown,
        "train/per_test": sum(rollout.feedback.share_passed for rollout in rollouts) / shown,
        "rollout/response_tokens": sum(len(rollout.completion.token_ids) for rollout in rollouts) / shown,
        "rollout/truncated_share": sum(rollout.completion.is_truncated for rollout in rollouts) / shown,
        "rollout/skipped": float(num_requested - len(rollouts)),
    }
    for rollout in rollouts:
        if rollout.feedback.error:
            record.count(f"verify/{rollout.feedback.error}")


def measure_context(record: UpdateRecord, context: ContextStore, task: Task) -> None:
    """Put playbook, buffer and teacher prompts into the record's metrics.

    Args:
        record: The update, its teacher prompts built.
        context: As the teacher prompts saw it.
        task: Judges lessons where it can.
    """
    prompts = record.teacher_prompts
    shown = max(len(prompts), 1)
    record.metrics |= {
        "playbook/size": float(context.num_entries),
        "solutions/size": float(context.num_solutions),
        "teacher/enriched_share": sum(prompt.is_enriched for prompt in prompts) / shown,
        "teacher/prompt_tokens": sum(len(prompt.token_ids) for prompt in prompts) / shown,
        "teacher/skipped": float(sum(prompt.is_skipped for prompt in prompts)),
    }
    for section in SECTION_NAMES:
        record.metrics[f"teacher/{section}_share"] = sum(section in prompt.sections for prompt in prompts) / shown
    judged = [
        is_true
        for playbook in context.playbooks.values()
        for entry in playbook.entries
        if isinstance(task, JudgesLessons) and (is_true := task.is_true(entry.text)) is not None
    ]
    if judged:
        record.metrics["playbook/true_share"] = sum(judged) / len(judged)
