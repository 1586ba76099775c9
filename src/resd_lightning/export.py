"""`resd export`: the student of a run, for use without this package."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import cast

from resd_lightning.config import ConfigError
from resd_lightning.run_folder import RunFolder

logger = logging.getLogger(__name__)


def export(run_dir: str, out: str, update: str = "best") -> None:
    """Write the student adapter of a run in PEFT's format, with tokenizer, playbook and the run's configuration.

    Args:
        run_dir: Folder of the run.
        out: Folder to write; it must not exist.
        update: Which validated student: best (by the sum of ranks over the validation metrics), last, or a number of
            updates.

    Raises:
        ConfigError: The folder holds no run, or no student of that update.
    """
    target = Path(out)
    if target.exists():
        raise ConfigError(f"--out {out} exists already")
    folder = RunFolder(Path(run_dir))
    chosen, student = find_student(folder, update)
    shutil.copytree(student, target)
    shutil.copy(folder.config, target)  # how the base was held in memory, among all else
    logger.info("exported the student of update %d to %s", chosen, target)


def find_student(folder: RunFolder, update: str) -> tuple[int, Path]:
    """Return the updates behind a validated student, and the folder of its weights.

    Args:
        folder: Of the run.
        update: best, last, or a number of updates.

    Raises:
        ConfigError: The folder holds no run, or no student of that update.
    """
    students = {int(path.name.removeprefix("update-")): path for path in folder.students()}
    if not students:
        raise ConfigError(f"run_dir {folder.path} holds no validated student")
    chosen = _choose(update, students, folder)
    if chosen not in students:
        raise ConfigError(f"--update {update}: run_dir {folder.path} has students of updates {sorted(students)}")
    return chosen, students[chosen]


def _choose(update: str, students: dict[int, Path], folder: RunFolder) -> int:
    if update == "last":
        return max(students)
    if update == "best":
        if not folder.summary.is_file():
            raise ConfigError(f"run_dir {folder.path} has no summary.json to choose the best update by")
        return cast("int", json.loads(folder.summary.read_text())["best_update"])
    if not update.isdecimal():
        raise ConfigError(f"--update must be best, last or a number, got {update!r}")
    return int(update)
