"""Reads a checkpoint before a run uses it: is it one, is it of this model, and what has changed since."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import is_zipfile

import torch

from resd_lightning.config import ConfigError, flat
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
    return CheckpointFacts(state["updates"], state["settings"], checkpoint.get("config") or {})


def check_compatible(path: Path, facts: CheckpointFacts, module: ResdModule, data: RolloutDataModule) -> None:
    """Refuse a checkpoint whose state can't go into this run.

    Raises:
        ConfigError: Names the setting that differs.
    """
    for key, configured in module.settings_of_state(data).items():
        if facts.settings[key] != configured:
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
