"""The subcommands of `resd playbook` by name."""

from __future__ import annotations

from collections.abc import Callable

from resd_lightning.playbook_command.convert import export_playbook
from resd_lightning.playbook_command.diff import diff
from resd_lightning.playbook_command.edit import edit, import_playbook
from resd_lightning.playbook_command.look import grep, show, stats
from resd_lightning.playbook_command.merge import merge

COMMANDS: dict[str, str | Callable[..., object]] = {
    "_help": (
        "Read, search, compare, edit, merge and try playbooks. `resd playbook try SOURCE` takes the options of "
        "`resd validate` behind it."
    ),
    "show": show,
    "grep": grep,
    "diff": diff,
    "stats": stats,
    "edit": edit,
    "export": export_playbook,
    "import": import_playbook,
    "merge": merge,
}
