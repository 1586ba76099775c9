"""Fits a prompt to its token limit by dropping the least useful parts first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

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

    def without_worst(base: Sections, dropped: int) -> Sections:
        gone = {entry.id for entry in worst_first[:dropped]}
        return replace(base, entries=tuple(entry for entry in sections.entries if entry.id not in gone))

    without_trial = replace(sections, trial="")

    def without_oldest(dropped: int) -> Sections:
        return replace(without_trial, entries=(), feedback="\n".join(lines[dropped:]))

    # Where dropping the trial makes room, the entries come back as far as it reaches.
    for version, parts in (
        (partial(without_worst, sections), len(worst_first)),
        (partial(without_worst, without_trial), len(worst_first)),
        (without_oldest, len(lines)),
    ):
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
