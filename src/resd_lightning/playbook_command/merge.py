"""`resd playbook merge`: several playbooks as one."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from resd_lightning.config import ConfigError
from resd_lightning.context.duplicates import DuplicateIndex
from resd_lightning.context.files import playbooks_text
from resd_lightning.context.playbook import Playbook, PlaybookEntry, entry_id
from resd_lightning.context.store import GLOBAL
from resd_lightning.playbook_command.convert import write_new
from resd_lightning.playbook_command.source import find_playbook

logger = logging.getLogger(__name__)


def merge(sources: list[str], *, out: str) -> None:
    """Merge playbooks into a new file: lessons that say the same become one, with their counts summed.

    Args:
        sources: Two or more of: RUN, RUN@UPDATE (a validated one, best or last), a checkpoint, or a file.
        out: File to write (.json or .md); it must not exist.

    Raises:
        ConfigError: There is no such playbook, or the file can't be written.
    """
    if len(sources) < 2:
        raise ConfigError(f"resd playbook merge takes two playbooks or more, got {len(sources)}")
    playbooks = [find_playbook(source) for source in sources]
    merged = merge_playbooks(playbooks)
    write_new(Path(out), playbooks_text({GLOBAL: merged}, Path(out)))
    logger.info("merged %d entries into %d, in %s", sum(map(len, playbooks)), len(merged), out)


def merge_playbooks(playbooks: Sequence[Playbook]) -> Playbook:
    """Return one playbook with the entries of all, in order; of those that say the same (`DuplicateIndex`) the first.

    That one gets the counts of the others, their examples, and the latest of their last steps. An entry keeps its id
    unless an earlier one has it; then it gets the next free number.
    The longest playbook's context updates are counted on, and entries stay as old as they were.
    """
    step = max(playbook.step for playbook in playbooks)
    next_number = max(playbook.next_number for playbook in playbooks)
    merged: dict[str, PlaybookEntry] = {}
    texts, taken = DuplicateIndex(), set[str]()
    for playbook in playbooks:
        for entry in playbook.entries:
            last_step = entry.last_step + step - playbook.step
            if (kept_id := texts.find(entry.text)) is not None:
                kept = merged[kept_id]
                merged[kept_id] = replace(
                    kept,
                    helpful=kept.helpful + entry.helpful,
                    harmful=kept.harmful + entry.harmful,
                    last_step=max(kept.last_step, last_step),
                    sources=tuple(dict.fromkeys((*kept.sources, *entry.sources))),
                )
                continue
            id_ = entry.id
            if id_.casefold() in taken:
                id_, next_number = entry_id(next_number), next_number + 1
            taken.add(id_.casefold())
            merged[id_] = replace(entry, id=id_, last_step=last_step)
            texts.add(id_, entry.text)
    return Playbook(tuple(merged.values()), step, next_number)
