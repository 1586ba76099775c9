"""`resd playbook export`: a playbook as a file for people, or for another run to start from."""

from __future__ import annotations

import logging
from pathlib import Path

from resd_lightning.config import ConfigError
from resd_lightning.context.files import playbooks_text
from resd_lightning.context.store import GLOBAL
from resd_lightning.playbook_command.source import find_playbook, find_playbooks
from resd_lightning.run_folder import replace_text

logger = logging.getLogger(__name__)


def export_playbook(source: str, file: str, example: str | None = None) -> None:
    """Write a playbook to a new file, as JSON or Markdown by its ending.

    Args:
        source: RUN, RUN@UPDATE (a validated one, best or last), a checkpoint (.ckpt), or a file (.json or .md).
        file: File to write (.json or .md); it must not exist.
        example: Whose playbook, where a run has one for each example; null writes all of them.

    Raises:
        ConfigError: There is no such playbook, or the file can't be written.
    """
    playbooks = find_playbooks(source) if example is None else {GLOBAL: find_playbook(source, example)}
    write_new(Path(file), playbooks_text(playbooks, Path(file)))
    logger.info("wrote %d entries to %s", sum(map(len, playbooks.values())), file)


def write_new(path: Path, text: str) -> None:
    """Write a file that doesn't exist yet.

    Raises:
        ConfigError: It does, or its folder doesn't.
    """
    if path.exists():
        raise ConfigError(f"{path} exists already")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: no folder at {path.parent}")
    replace_text(path, text)
