"""The life of each playbook entry, from the operations and tags in a run's transcripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict, cast

from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.context.reflect import parse_tags

Line = Mapping[str, object]
Place = tuple[int, int]
"""An update, and a rollout's line within it."""


class EntryLife(TypedDict):
    """One entry.

    Attributes:
        id: Its id.
        playbook: Key of its playbook; empty for the one of a run.
        section: Its section; empty where no file says it.
        text: The latest; empty where no file says it: of an entry that a run started with and lost.
        born: The update that made it; None for one that was there at the start.
        died: The update in which it went; None while it lives.
        why: What ended it: pruned, and on which occasion; deleted; or merged into another.
        helpful: Counted at the end, where playbook.json has it; else as tagged in the transcripts.
        harmful: The same.
        made_by: Rollouts whose curators wrote it, or wrote it again.
        tagged: Rollouts that judged it, with the verdict.
    """

    id: str
    playbook: str
    section: str
    text: str
    born: int | None
    died: int | None
    why: str
    helpful: int
    harmful: int
    made_by: list[Place]
    tagged: list[tuple[int, int, str]]


Entries = dict[tuple[str, str], EntryLife]
"""By playbook and by id, case folded."""


def lives(rollouts: Mapping[int, Sequence[Line]], playbooks: Mapping[str, Playbook]) -> list[EntryLife]:
    """Return all entries that a run ever had, in the order of their birth.

    Args:
        rollouts: A run's transcript by update.
        playbooks: As the run left them.
    """
    is_global = "" in playbooks or not playbooks
    entries: Entries = {}
    for update in sorted(rollouts):
        lines = rollouts[update]
        operations = [operation for line in lines for operation in cast("list[Line]", line["operations"])]
        # In the order of an update: periodic pruning, tags, curation, pruning down to the budget.
        for operation in operations:
            if operation.get("reason") == "periodic":
                _apply(operation, update, lines, entries)
        for place, line in enumerate(lines):
            _count_tags(line, (update, place), "" if is_global else str(line["example"]), entries)
        for operation in sorted(operations, key=lambda operation: operation["type"] == "PRUNE"):
            if operation.get("reason") != "periodic":
                _apply(operation, update, lines, entries)
    for playbook, left in playbooks.items():
        for entry in left.entries:
            _entry(entries, playbook, entry.id, None).update(_as_left(entry))
    return list(entries.values())


def _apply(op: Line, update: int, lines: Sequence[Line], entries: Entries) -> None:
    kind, playbook = op["type"], str(op["playbook"])
    if kind == "PRUNE":
        _end(entries, playbook, str(op["id"]), update, f"pruned ({op['reason']})")
        return
    if op["entry"] is None:
        return
    id_ = str(op["entry"])
    author = [(update, i) for i, line in enumerate(lines) if op in cast("list[Line]", line["operations"])][:1]
    if op["problem"] is not None:
        if op["problem"] == "duplicate":
            _entry(entries, playbook, id_, None)["made_by"] += author
        return
    if kind == "DELETE":
        _end(entries, playbook, id_, update, "deleted")
        return
    is_new = kind in ("ADD", "MERGE")
    life = _entry(entries, playbook, id_, update if is_new else None)
    life["text"] = str(op["text"])
    life["section"] = str(op.get("section") or life["section"])
    life["made_by"] += author
    if kind == "MERGE":
        for part in cast("list[str]", op["ids"]):
            _end(entries, playbook, part, update, f"merged into {id_}")


def _end(entries: Entries, playbook: str, id_: str, update: int, why: str) -> None:
    life = _entry(entries, playbook, id_, None)
    life["died"], life["why"] = update, why


def _count_tags(line: Line, place: Place, playbook: str, entries: Entries) -> None:
    for answer in cast("list[dict[str, str]]", line["answers"]):
        for tag in parse_tags(answer["text"]).tags if answer["purpose"] in ("reflect", "tag") else ():
            life = entries.get((playbook, tag.id.casefold()))  # tags name entries whatever the case
            if life is not None and life["died"] is None:
                life["tagged"].append((*place, tag.tag))
                life["helpful"] += tag.tag == "helpful"
                life["harmful"] += tag.tag == "harmful"


def _entry(entries: Entries, playbook: str, id_: str, born: int | None) -> EntryLife:
    """Return an entry's life, begun here where it was not known yet."""
    new: EntryLife = {
        "id": id_,
        "playbook": playbook,
        "section": "",
        "text": "",
        "born": born,
        "died": None,
        "why": "",
        "helpful": 0,
        "harmful": 0,
        "made_by": [],
        "tagged": [],
    }
    return entries.setdefault((playbook, id_.casefold()), new)


def _as_left(entry: PlaybookEntry) -> EntryLife:
    left = {key: getattr(entry, key) for key in ("section", "text", "helpful", "harmful")}
    return cast("EntryLife", left)
