"""`resd playbook edit` and `import`: a run's checkpoint with another playbook, as a new checkpoint beside it."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from resd_lightning.checkpoint import LAST, find_checkpoint, load_checkpoint, stored_context
from resd_lightning.config import ConfigError
from resd_lightning.context.files import playbooks_from_json, read_playbooks
from resd_lightning.context.playbook import Playbook, PlaybookEntry, entry_id
from resd_lightning.context.store import GLOBAL
from resd_lightning.run_folder import RunFolder, replace_text

logger = logging.getLogger(__name__)


def edit(run: str, ckpt_path: str = LAST) -> None:
    """Edit a run's playbook in $EDITOR; what comes of it is a new checkpoint, from which `resd fit` can go on.

    Nothing is overwritten. What can't be read as a playbook is kept as text, to be mended and imported.

    Args:
        run: Folder of the run.
        ckpt_path: The checkpoint to edit; last is the run's latest.

    Raises:
        ConfigError: There is no such checkpoint, the editor fails, or its text is no playbook.
    """
    folder = RunFolder(Path(run))
    path = find_checkpoint(ckpt_path, folder)
    store = stored_context(load_checkpoint(path))
    draft = folder.edited_playbook()
    replace_text(draft, store.to_json())
    original = draft.read_bytes()
    try:
        _open_editor(draft)
        edited = playbooks_from_json(draft.read_bytes().decode("utf-8"))
        written = _write_checkpoint(folder, path, edited)
    except ValueError as error:  # of the editor, of UTF-8 or of the playbook; ConfigError is one
        if draft.is_file() and draft.read_bytes() != original:
            mend = f"your text is in {draft}: mend it, then resd playbook import {run} {draft} --ckpt_path {ckpt_path}"
            raise ConfigError(f"{error}; {mend}") from error
        draft.unlink(missing_ok=True)
        raise
    draft.unlink()
    _report(folder, written)


def import_playbook(run: str, file: str, ckpt_path: str = LAST) -> None:
    """Put a file's playbook in the place of a run's; what comes of it is a new checkpoint, as of `edit`.

    Args:
        run: Folder of the run.
        file: The playbook (.json or .md).
        ckpt_path: The checkpoint whose playbook is replaced; last is the run's latest.

    Raises:
        ConfigError: There is no such checkpoint, or the file holds no playbook for it.
    """
    folder = RunFolder(Path(run))
    path = find_checkpoint(ckpt_path, folder)
    try:
        written = _write_checkpoint(folder, path, read_playbooks(Path(file)))
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error
    _report(folder, written)


def _open_editor(draft: Path) -> None:
    editor = shlex.split(os.environ.get("EDITOR", ""))
    if not editor:
        raise ConfigError("EDITOR names no editor: set it, for example EDITOR=nano")
    try:
        status = subprocess.run([*editor, str(draft)], check=False).returncode
    except OSError as error:
        raise ConfigError(f"EDITOR {editor[0]}: {error.strerror}") from error
    if status != 0:
        raise ConfigError(f"EDITOR {editor[0]} ended with status {status}")
    if not draft.is_file():
        raise ConfigError(f"EDITOR {editor[0]} left no file at {draft}")


def _write_checkpoint(folder: RunFolder, path: Path, edited: Mapping[str, Playbook]) -> Path | None:
    """Write the checkpoint with other playbooks and return its path; None where they are those it has."""
    checkpoint = load_checkpoint(path)
    store = stored_context(checkpoint)
    before = dict(store.playbooks) or ({GLOBAL: Playbook()} if store.scope == "global" else {})
    if set(before) != set(edited):
        unlike = sorted(set(before) ^ set(edited))[0]
        raise ValueError(
            f"the run has {_kind(before)}, and the text has {_kind(edited)}"
            if GLOBAL in {*before, *edited}
            else f"example {unlike}: the run has a playbook for it, and the text has none, or the other way round"
        )
    after = {key: put_in_place(before[key], playbook) for key, playbook in edited.items()}
    if after == before:
        return None
    state = cast("dict[str, dict[str, object]]", checkpoint["resd"])
    state["context"]["playbooks"] = {key: playbook.to_dict() for key, playbook in after.items()}
    target = folder.edited_checkpoint(cast("int", state["updates"]))
    scratch = Path(f"{target}.new")
    torch.save(checkpoint, scratch)
    os.replace(scratch, target)
    return target


def put_in_place(before: Playbook, edited: Playbook) -> Playbook:
    """Return the edited playbook on the run's own counters.

    Its entries stay as old as they were. A new entry under a number that the run has given away before gets the next
    free one: an id is never reused.
    """
    next_number = max(before.next_number, edited.next_number)
    known = {entry.id.casefold() for entry in before.entries}
    entries: list[PlaybookEntry] = []
    for entry in edited.entries:
        id_, number = entry.id, re.fullmatch(r"[eE](\d+)", entry.id)
        if id_.casefold() not in known and number is not None and int(number[1]) < before.next_number:
            id_, next_number = entry_id(next_number), next_number + 1
            logger.warning("entry %s: the run had another entry of this id: it becomes %s", entry.id, id_)
        entries.append(replace(entry, id=id_, last_step=entry.last_step + before.step - edited.step))
    return Playbook(tuple(entries), before.step, next_number)


def _kind(playbooks: Mapping[str, Playbook]) -> str:
    return "one playbook for all examples" if GLOBAL in playbooks else "one playbook for each example"


def _report(folder: RunFolder, written: Path | None) -> None:
    if written is None:
        logger.info("nothing has changed: no checkpoint is written")
        return
    logger.info("wrote %s; go on with it:", written)
    logger.info("resd fit --config %s --ckpt_path %s", folder.config, written)
