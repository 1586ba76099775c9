"""Reads a checkpoint before a run uses it: is it one, is it of this model, and what has changed since."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast
from zipfile import is_zipfile

import torch

from resd_lightning.config import ConfigError, flat
from resd_lightning.context.store import ContextStore
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import CHECKPOINT_FORMAT, ResdModule
from resd_lightning.run_folder import RunFolder

logger = logging.getLogger(__name__)

LAST = "last"


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checkpoint says about itself.

    Attributes:
        updates: Policy updates behind it.
        settings: The settings its state only fits with, by key.
        config: The run's configuration when it was saved.
    """

    updates: int
    settings: Mapping[str, object]
    config: Mapping[str, object]


def find_checkpoint(ckpt_path: str, folder: RunFolder) -> Path:
    """Return the file that `--ckpt_path` means; `last` is the run folder's latest.

    Raises:
        ConfigError: There is none.
    """
    path = folder.last_checkpoint if ckpt_path == LAST else Path(ckpt_path)
    if not path.is_file():
        hint = f": --run_dir {folder.path} holds no run to go on with" if ckpt_path == LAST else ""
        raise ConfigError(f"--ckpt_path {ckpt_path}: no file at {path}{hint}")
    return path


def read_checkpoint(path: Path) -> CheckpointFacts:
    """Return a checkpoint's facts; its tensors stay on disk.

    Raises:
        ConfigError: The file isn't a checkpoint of this package.
    """
    checkpoint = load_checkpoint(path)
    state = cast("Mapping[str, object]", checkpoint["resd"])
    return CheckpointFacts(
        cast("int", state["updates"]),
        cast("Mapping[str, object]", state["settings"]),
        cast("Mapping[str, object]", checkpoint.get("config") or {}),
    )


def load_checkpoint(path: Path) -> dict[str, object]:
    """Return all that a checkpoint holds; its tensors stay on disk until they are used.

    Raises:
        ConfigError: The file isn't a checkpoint of this package.
    """
    if not is_zipfile(path):
        raise ConfigError(
            f"--ckpt_path {path} is not a checkpoint: it is no file that torch.save wrote, or a part of one"
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--ckpt_path {path} is not a readable checkpoint: {reason}") from error
    state = checkpoint.get("resd") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or "format" not in state:
        raise ConfigError(f"--ckpt_path {path} was not written by `resd fit`: it holds no student and no playbook")
    if state["format"] != CHECKPOINT_FORMAT:
        raise ConfigError(
            f"--ckpt_path {path} has format {state['format']}, and this version reads {CHECKPOINT_FORMAT}: go on with "
            "the version that wrote it"
        )
    return cast("dict[str, object]", checkpoint)


def stored_context(checkpoint: Mapping[str, object]) -> ContextStore:
    """Return the playbooks and solutions that a checkpoint holds."""
    state = cast("Mapping[str, Mapping[str, object]]", checkpoint["resd"])["context"]
    store = ContextStore(cast("Literal['global', 'example']", state["scope"]))
    store.load_state_dict(state)
    return store


def goes_on_here(path: Path, facts: CheckpointFacts, folder: RunFolder) -> bool:
    """Whether a run may go on from this checkpoint in the folder of that run without losing any of its updates.

    So it may from the last one, and from one beside it at the same update: the last one with an edited playbook.
    """
    own = folder.last_checkpoint
    if path.resolve() == own.resolve():
        return True
    is_beside = path.resolve().parent == own.parent.resolve() and own.is_file()
    return is_beside and read_checkpoint(own).updates == facts.updates


def check_compatible(path: Path, facts: CheckpointFacts, module: ResdModule, data: RolloutDataModule) -> None:
    """Refuse a checkpoint whose state can't go into this run.

    Raises:
        ConfigError: Names the setting that differs.
    """
    for key, configured in module.settings_of_state(data).items():
        # One that is younger than the checkpoint says nothing against it.
        if key in facts.settings and facts.settings[key] != configured:
            raise ConfigError(
                f"--ckpt_path {path} was saved with {key} = {facts.settings[key]}, but this run has {configured}"
            )


def report_differences(facts: CheckpointFacts, config: Mapping[str, object]) -> list[str]:
    """Log, and return, the keys whose value in this run differs from the checkpoint's; this run's value is used."""
    lines = differences(facts.config, config)
    for line in lines if facts.config else ():
        logger.warning("differs from the checkpoint: %s", line)
    return lines


def differences(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """Return `key: value before -> value now` for each key in which two configurations of a run differ."""
    saved, current = flat(before), flat(now)
    ignored = ("ckpt_path", "config", "overwrite", "weights_only", "verbose")
    return [
        f"{key}: {saved.get(key, '(unset)')} -> {current.get(key, '(unset)')}"
        for key in sorted(saved.keys() | current.keys())
        if key.split(".")[0] not in ignored and saved.get(key) != current.get(key)
    ]
