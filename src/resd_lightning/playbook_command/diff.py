"""`resd playbook diff`: what became of a playbook between two moments."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resd_lightning.context.difference import differences
from resd_lightning.playbook_command.source import find_playbooks


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
        table.add_row(one.kind, Text(one.id), Text("\n-> ".join(one.lessons)), *one.numbers)
    Console().print(table)
