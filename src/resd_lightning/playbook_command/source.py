"""Which playbook a command means: of a run, of one of its validated updates, of a checkpoint, or in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from resd_lightning.checkpoint import load_checkpoint, stored_context
from resd_lightning.config import ConfigError
from resd_lightning.context.files import read_playbooks
from resd_lightning.context.playbook import Playbook
from resd_lightning.context.store import GLOBAL
from resd_lightning.export import find_student
from resd_lightning.run_folder import RunFolder

SOURCE_HELP = "RUN, RUN@UPDATE (a validated one, best or last), a checkpoint (.ckpt), or a file (.json or .md)"


def find_playbooks(source: str) -> Mapping[str, Playbook]:
    """Return what a source holds, by key: `GLOBAL` for the one playbook of a run, else ids of examples.

    Args:
        source: A run's folder, with `@` and an update behind it if not the latest is meant; a checkpoint; or a file.

    Raises:
        ConfigError: There is nothing, or what is there can't be read.
    """
    path = Path(source)
    if path.is_file():
        return stored_context(load_checkpoint(path)).playbooks if path.suffix == ".ckpt" else read_playbooks(path)
    if path.is_dir():
        folder = RunFolder(path)
        if not folder.playbook.is_file():
            raise ConfigError(f"{source}: no {folder.playbook.name} in it: no update has written one")
        return read_playbooks(folder.playbook)
    run, at, update = source.rpartition("@")
    if at and Path(run).is_dir():
        return read_playbooks(find_student(RunFolder(Path(run)), update)[1] / "playbook.json")
    raise ConfigError(f"{source}: no such folder or file; a playbook is {SOURCE_HELP}")


def find_playbook(source: str, example: str | None = None) -> Playbook:
    """Return the one playbook of a source, with entries in it.

    Args:
        source: See `find_playbooks`.
        example: Which, where a run has one playbook for each example.

    Raises:
        ConfigError: See `find_playbooks`; or there are several and none is chosen, or it has no entries.
    """
    playbooks = find_playbooks(source)
    key = GLOBAL if example is None else example
    if key not in playbooks:
        known = [key for key in playbooks if key != GLOBAL]
        if not known:
            raise ConfigError(f"{source} holds {'one playbook for all examples' if example else 'no playbook'}")
        shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        raise ConfigError(f"{source} holds one playbook for each example: choose by --example, of {shown}")
    if not playbooks[key].entries:
        raise ConfigError(f"{source}: the playbook has no entries")
    return playbooks[key]
