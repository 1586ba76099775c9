"""`resd playbook diff`: what became of a playbook between two moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.playbook_command.source import find_playbooks


@dataclass(frozen=True)
class Difference:
    """One entry that isn't as it was.

    Attributes:
        kind: Born or died; changed, in section or text; or tagged, where only its track record moved.
        key: Of its playbook.
        before: As it was; None for one that was born.
        after: As it is; None for one that died.
    """

    kind: Literal["born", "died", "changed", "tagged"]
    key: str
    before: PlaybookEntry | None
    after: PlaybookEntry | None


def diff(before: str, after: str) -> None:
    """Show which entries were born, died or changed between two playbooks, and whose tags moved.

    Entries are compared by their ids, which within a run are never reused.

    Args:
        before: RUN, RUN@UPDATE (a validated one, best or last), a checkpoint (.ckpt), or a file (.json or .md).
        after: The same.

    Raises:
        ConfigError: There is no such playbook.
    """
    found = list(differences(find_playbooks(before), find_playbooks(after)))
    if not found:
        Console().print(Text(f"{before} and {after}: no entry differs"))
        return
    table = Table(title=Text(f"{before} -> {after}"), title_justify="left", title_style="bold")
    for column in ("what", "id", "lesson", "helpful", "harmful", "last step"):
        table.add_column(column, justify="left" if column in ("what", "id", "lesson") else "right", overflow="fold")
    for one in found:
        table.add_row(one.kind, *_cells(one))
    Console().print(table)


def differences(before: Mapping[str, Playbook], after: Mapping[str, Playbook]) -> Iterator[Difference]:
    """Yield the entries that differ: those that died, then those of `after` in its order; playbook by playbook."""
    for key in dict.fromkeys([*before, *after]):
        earlier = {entry.id: entry for entry in before.get(key, Playbook()).entries}
        now = {entry.id: entry for entry in after.get(key, Playbook()).entries}
        for id_, entry in earlier.items():
            if id_ not in now:
                yield Difference("died", key, entry, None)
        for id_, entry in now.items():
            was = earlier.get(id_)
            if was is None:
                yield Difference("born", key, None, entry)
            elif (was.section, was.text) != (entry.section, entry.text):
                yield Difference("changed", key, was, entry)
            elif _record(was) != _record(entry):
                yield Difference("tagged", key, was, entry)


def _record(entry: PlaybookEntry) -> tuple[int, int, int]:
    return entry.helpful, entry.harmful, entry.last_step


def _cells(one: Difference) -> tuple[str | Text, ...]:
    known = [entry for entry in (one.before, one.after) if entry is not None]
    lessons = list(dict.fromkeys(f"({entry.section}) {entry.text}" for entry in known))
    numbers = [dict.fromkeys(map(str, pair)) for pair in zip(*map(_record, known), strict=True)]
    id_ = f"{one.key}: {known[0].id}" if one.key else known[0].id
    return Text(id_), Text("\n-> ".join(lessons)), *(" -> ".join(pair) for pair in numbers)
