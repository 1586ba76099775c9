"""Playbooks in files: JSON or Markdown, by the file's ending; and the one that a run starts from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from resd_lightning.config import ConfigError, ContextConfig
from resd_lightning.context.markdown import from_markdown, to_markdown
from resd_lightning.context.playbook import Playbook, json_object
from resd_lightning.context.store import GLOBAL, ContextStore

logger = logging.getLogger(__name__)

ENDINGS = (".json", ".md")


def read_playbooks(path: Path) -> dict[str, Playbook]:
    """Return a file's playbooks by key: `GLOBAL` where it holds one, else the ids of their examples.

    Raises:
        ConfigError: The file can't be read, or isn't a playbook; names the file, and the line or the entry and field.
    """
    check_ending(path)
    try:
        text = path.read_bytes().decode("utf-8")  # bytes, since reading as text would turn a lesson's \r into \n
        return {GLOBAL: from_markdown(text)} if path.suffix == ".md" else playbooks_from_json(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # UnicodeDecodeError is one
        raise ConfigError(f"{path}: {error}") from error


def playbooks_from_json(text: str) -> dict[str, Playbook]:
    """Return the playbooks that `ContextStore.to_json` wrote: one, or one for each example.

    Raises:
        ValueError: See `Playbook.from_json`.
    """
    content = json_object(text)
    if "entries" in content:
        return {GLOBAL: Playbook.from_dict(content)}
    playbooks: dict[str, Playbook] = {}
    for example_id, playbook in content.items():
        if not example_id or not isinstance(playbook, dict):
            raise ValueError("a playbook must be an object with entries, or of such objects by example id")
        try:
            playbooks[example_id] = Playbook.from_dict(playbook)
        except ValueError as error:
            raise ValueError(f"example {example_id}: {error}") from error
    return playbooks


def playbooks_text(playbooks: Mapping[str, Playbook], path: Path) -> str:
    """Return what a file of this ending holds.

    Raises:
        ConfigError: Another ending, or several playbooks for Markdown, which holds one.
    """
    check_ending(path)
    if path.suffix == ".md":
        if list(playbooks) != [GLOBAL]:
            raise ConfigError(f"{path}: Markdown holds one playbook, and there is one for each example: choose one")
        return to_markdown(playbooks[GLOBAL])
    store = ContextStore("global" if GLOBAL in playbooks else "example")
    for key, playbook in playbooks.items():
        store.put_playbook(key, playbook)
    return store.to_json()


def check_ending(path: Path) -> None:
    """Refuse a file that is neither JSON nor Markdown by its name."""
    if path.suffix not in ENDINGS:
        raise ConfigError(f"{path}: a playbook's file ends in {' or '.join(ENDINGS)}")


def read_initial_playbook(config: ContextConfig) -> Playbook | None:
    """Return the playbook that a run starts from, its entries as of the run's beginning; None for an empty one.

    Its context updates are counted on, so that pruning finds its entries as old as they were.

    Raises:
        ConfigError: Names the key, the file, and the line or the entry and field.
    """
    key, path = "model.context.initial_playbook", config.initial_playbook
    if path is None:
        return None
    if not Path(path).is_file():
        raise ConfigError(f"{key}: no file at {path}")
    try:
        playbooks = read_playbooks(Path(path))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    if list(playbooks) != [GLOBAL]:
        raise ConfigError(f"{key}: {path} holds playbooks by example: take one by `resd playbook export --example`")
    playbook = playbooks[GLOBAL]
    if config.max_entries is not None and len(playbook) > config.max_entries:
        logger.warning("%s has %d entries: the first update prunes to %d", key, len(playbook), config.max_entries)
    return playbook.replace_entries(replace(entry, created_update=0) for entry in playbook.entries)
