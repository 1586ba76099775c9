"""Fits a prompt to its token limit by dropping the least useful parts first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from resd_lightning.context.prompts import Sections


def fit(sections: Sections, count_tokens: Callable[[Sections], int], limit: int) -> Sections | None:
    """Return the fullest version of `sections` whose prompt has at most `limit` tokens, or None if there is none.

    Dropped in this order, as little of each as needed: playbook entries of low utility, the trial, the feedback from
    its oldest line on. The question, the reflection and the solution are never cut: without the first there is no task,
    and half a lesson misleads.

    Args:
        sections: What the prompt would hold without a limit.
        count_tokens: Length of the whole prompt, chat template included, that sections would make.
        limit: Most tokens allowed.
    """
    if count_tokens(sections) <= limit:
        return sections
    worst_first = sorted(sections.entries, key=lambda entry: (entry.utility, entry.last_step))
    lines = sections.feedback.splitlines()

    def without_worst(dropped: int) -> Sections:
        gone = {entry.id for entry in worst_first[:dropped]}
        return replace(sections, entries=tuple(entry for entry in sections.entries if entry.id not in gone))

    bare = replace(sections, entries=(), trial="")

    def without_oldest(dropped: int) -> Sections:
        return replace(bare, feedback="\n".join(lines[dropped:]))

    for version, parts in ((without_worst, len(worst_first)), (lambda _: bare, 0), (without_oldest, len(lines))):
        if count_tokens(version(parts)) <= limit:
            return _least_dropped(version, parts, count_tokens, limit)
    return None


def _least_dropped(
    version: Callable[[int], Sections], parts: int, count_tokens: Callable[[Sections], int], limit: int
) -> Sections:
    low, high = 0, parts  # version(high) fits; find the least number of dropped parts that does
    while low < high:
        middle = (low + high) // 2
        if count_tokens(version(middle)) <= limit:
            high = middle
        else:
            low = middle + 1
    return version(high)
