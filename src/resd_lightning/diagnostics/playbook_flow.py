"""What an update does to the playbooks: births, deaths, ages, and entries whose track record turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from resd_lightning.context.playbook import Playbook, PlaybookEntry

Judge = Callable[[str], bool | None]


def playbook_flow(
    before: Mapping[str, Playbook], after: Mapping[str, Playbook], update: int, judge: Judge | None = None
) -> dict[str, float]:
    """Return the flow between two moments, by metric name.

    Args:
        before: Playbooks by key as the update found them.
        after: As its teacher prompts saw them.
        update: The update's number, from which ages are counted.
        judge: Whether a lesson is true, None where it can't tell; None where the task can't judge at all.
    """
    earlier, now = _entries(before), _entries(after)
    # By the counters, not by the entries: one that was added and pruned in the same update was born, too.
    births = sum(playbook.next_number - before.get(key, Playbook()).next_number for key, playbook in after.items())
    gone = [entry for key, entry in earlier.items() if key not in now]
    shown = max(len(now), 1)
    flow = {
        "playbook/births": births,
        "playbook/deaths": len(earlier) + births - len(now),
        "playbook/age": sum(update - entry.created_update for entry in now.values()) / shown,
        "playbook/helpful_share": sum(entry.is_helpful for entry in now.values()) / shown,
        "playbook/harmful_share": sum(entry.is_harmful for entry in now.values()) / shown,
        "playbook/turned_helpful": _turned(earlier, now, lambda entry: entry.is_helpful),
        "playbook/turned_harmful": _turned(earlier, now, lambda entry: entry.is_harmful),
    }
    if judge is not None:
        flow["playbook/true_deaths"] = sum(judge(entry.text) is True for entry in gone)
    return {name: float(value) for name, value in flow.items()}


def _entries(playbooks: Mapping[str, Playbook]) -> dict[tuple[str, str], PlaybookEntry]:
    return {(key, entry.id): entry for key, playbook in playbooks.items() for entry in playbook.entries}


def _turned(
    earlier: Mapping[tuple[str, str], PlaybookEntry],
    now: Mapping[tuple[str, str], PlaybookEntry],
    holds: Callable[[PlaybookEntry], bool],
) -> int:
    return sum(holds(entry) and key in earlier and not holds(earlier[key]) for key, entry in now.items())
