"""`resd playbook show`, `grep` and `stats`: playbooks on the terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from resd_lightning.config import ConfigError
from resd_lightning.context.duplicates import DuplicateIndex
from resd_lightning.context.playbook import SECTIONS, Playbook, PlaybookEntry
from resd_lightning.playbook_command.source import find_playbooks

Order = Literal["made", "id", "section", "helpful", "harmful", "utility", "last_step"]

_ORDERS: dict[Order, Callable[[PlaybookEntry], object]] = {
    "made": lambda entry: 0,  # as they stand; sorting is stable
    "id": lambda entry: entry.id,
    "section": lambda entry: entry.section,
    "helpful": lambda entry: -entry.helpful,
    "harmful": lambda entry: -entry.harmful,
    "utility": lambda entry: -entry.utility,
    "last_step": lambda entry: -entry.last_step,
}


def show(source: str, sort: Order = "made", section: str | None = None) -> None:
    """Show a playbook: each entry, how it fared, and where it came from.

    Args:
        source: RUN, RUN@UPDATE (a validated one, best or last), a checkpoint (.ckpt), or a file (.json or .md).
        sort: By this; numbers from the highest down.
        section: Entries of this section only.

    Raises:
        ConfigError: There is no such playbook, or no such section.
    """
    if section is not None and section not in SECTIONS:
        raise ConfigError(f"--section must be one of {', '.join(SECTIONS)}, got {section!r}")
    for key, playbook in find_playbooks(source).items():
        shown = sorted(playbook.entries, key=_ORDERS[sort])  # type: ignore[arg-type]
        title = f"{name_of(source, key)}: {len(playbook)} entries, {playbook.step} context updates"
        Console().print(entries_table(title, [e for e in shown if section in (None, e.section)]))


def grep(pattern: str, sources: list[str], ignore_case: bool = False) -> int:
    """Show the entries whose text a regular expression finds; the exit status is 1 where there are none.

    Args:
        pattern: A regular expression of Python.
        sources: RUN, RUN@UPDATE (a validated one, best or last), a checkpoint (.ckpt), or a file (.json or .md).
        ignore_case: Upper and lower case are the same.

    Raises:
        ConfigError: The pattern is none, or there is no such playbook.
    """
    try:
        sought = re.compile(pattern, re.IGNORECASE if ignore_case else 0)
    except re.error as error:
        raise ConfigError(f"pattern {pattern!r}: {error}") from error
    is_found = False
    for source in sources:
        for key, playbook in find_playbooks(source).items():
            if found := [entry for entry in playbook.entries if sought.search(entry.text)]:
                is_found = True
                Console().print(entries_table(f"{name_of(source, key)}: {len(found)} of {len(playbook)}", found))
    return 0 if is_found else 1


def stats(source: str) -> None:
    """Show a playbook in numbers: classes, tags, sections, lengths, and entries that say the same.

    Args:
        source: RUN, RUN@UPDATE (a validated one, best or last), a checkpoint (.ckpt), or a file (.json or .md).

    Raises:
        ConfigError: There is no such playbook.
    """
    for key, playbook in find_playbooks(source).items():
        table = Table("what", "number", title=Text(name_of(source, key)), title_justify="left", title_style="bold")
        for name, number in playbook_stats(playbook).items():
            table.add_row(name, f"{number:g}")
        Console().print(table)


def playbook_stats(playbook: Playbook) -> dict[str, float]:
    """Return a playbook's numbers by name; the classes are those of pruning (RESD App. D)."""
    entries = playbook.entries
    index, duplicates = DuplicateIndex(), 0
    for entry in entries:
        duplicates += index.find(entry.text) is not None
        index.add(entry.id, entry.text)
    sections = Counter(entry.section for entry in entries)
    return {
        "context updates": playbook.step,
        "entries made": playbook.next_number - 1,
        "entries": len(entries),
        "helpful": sum(entry.is_helpful for entry in entries),
        "harmful": sum(entry.is_harmful for entry in entries),
        "unused": sum(entry.is_unused for entry in entries),
        "helpful tags": sum(entry.helpful for entry in entries),
        "harmful tags": sum(entry.harmful for entry in entries),
        "tagged in the last update": sum(not e.is_unused and e.last_step == playbook.step for e in entries),
        "examples that taught them": len({source for entry in entries for source in entry.sources}),
        "words": sum(len(entry.text.split()) for entry in entries),
        "duplicates": duplicates,
        **{f"section {name}": number for name, number in sections.most_common()},
    }


def entries_table(title: str, entries: Iterable[PlaybookEntry]) -> Table:
    """Return entries for a terminal, one a row."""
    table = Table(
        box=SIMPLE_HEAD, padding=0, pad_edge=False, title=Text(title), title_justify="left", title_style="bold"
    )
    for column in ("id", "section", "lesson", "helpful", "harmful", "last step", "update", "examples"):
        is_number = column in ("helpful", "harmful", "last step", "update")
        width = {"lesson": 16, "examples": 11, "helpful": 7, "harmful": 7, "update": 6}.get(column)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold", min_width=width)
    for entry in entries:
        numbers = (entry.helpful, entry.harmful, entry.last_step, entry.created_update)
        # Text and not str: a lesson may hold brackets, which rich would take for markup.
        table.add_row(
            entry.id, entry.section, Text(entry.text), *map(str, numbers), Text(", ".join(entry.sources) or "-")
        )
    return table


def name_of(source: str, key: str) -> str:
    """Return how a playbook is called in a title."""
    return f"{source}, example {key}" if key else source
