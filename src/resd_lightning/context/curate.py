"""CURATE: curators' operations become changes of the playbook (RESD Alg. 1 line 9).

How operations are asked for and read is in `operations`; its names are offered here as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from resd_lightning.context.answers import ProblemKind
from resd_lightning.context.duplicates import DuplicateIndex
from resd_lightning.context.operations import (
    CURATION_SCHEMA,
    MAX_ENTRY_CHARS,
    OPERATION_NAMES,
    Add,
    Delete,
    Merge,
    Operation,
    ParsedOperations,
    Update,
    curation_schema,
    parse_operations,
)
from resd_lightning.context.playbook import Playbook, PlaybookEntry, entry_id
from resd_lightning.records import Problem

__all__ = [
    "CURATION_SCHEMA",
    "MAX_ENTRY_CHARS",
    "OPERATION_NAMES",
    "Add",
    "AppliedOperation",
    "Delete",
    "Merge",
    "Operation",
    "ParsedOperations",
    "Proposal",
    "Update",
    "apply_operations",
    "curation_schema",
    "parse_operations",
]


@dataclass(frozen=True)
class Proposal:
    """What one curator wants, and on whose behalf.

    Attributes:
        operations: In the order of its answer.
        update: The run's update.
        example_id: The example whose reflection it read.
    """

    operations: tuple[Operation, ...]
    update: int
    example_id: str


@dataclass(frozen=True)
class AppliedOperation:
    """What became of one operation, for the transcript.

    Attributes:
        operation: As the curator wrote it.
        update: The run's update.
        example_id: The example on whose behalf.
        entry_id: The entry it made or changed; for a duplicate the entry that already says it; None where it came to
            nothing.
        problem: Why it was not applied; None if it was.
    """

    operation: Operation
    update: int
    example_id: str
    entry_id: str | None
    problem: Problem | None = None

    @property
    def is_applied(self) -> bool:
        """Whether it changed the playbook."""
        return self.problem is None


def apply_operations(
    playbook: Playbook, proposals: Sequence[Proposal]
) -> tuple[Playbook, tuple[AppliedOperation, ...]]:
    """Return the playbook after one update's curation, and what became of every operation.

    The curators all saw `playbook` and not each other, so an operation may name only entries that stood in it, and of
    several on one entry the first wins. A text that an entry already says (`DuplicateIndex`) is not added again,
    whoever added it. New entries are untagged and as of this step; an updated one keeps its counts; a merged one stands
    at the end under a fresh id with its parts' counts summed and the latest of their last steps.

    Args:
        playbook: As the curators saw it.
        proposals: In example order, which every rank shares: the result depends on it.

    Source: RESD Alg. 1 line 9. The authors' code has additions only, and keeps duplicates.
    """
    revision = _Revision(playbook)
    applied: list[AppliedOperation] = []
    for proposal in proposals:
        for operation in proposal.operations:
            outcome = revision.apply(operation, proposal)
            id_, problem = outcome if isinstance(outcome, tuple) else (outcome, None)
            applied.append(AppliedOperation(operation, proposal.update, proposal.example_id, id_, problem))
    return revision.playbook(), tuple(applied)


_Rejected = tuple[str | None, Problem]


class _Revision:
    """A playbook in the middle of one update's curation."""

    def __init__(self, before: Playbook) -> None:
        self._before = before
        self._next_number = before.next_number
        self._entries = {entry.id: entry for entry in before.entries}
        self._seen_ids = {entry.id.casefold(): entry.id for entry in before.entries}
        self._settled: set[str] = set()
        self._texts = DuplicateIndex()
        for entry in before.entries:
            self._texts.add(entry.id, entry.text)

    def playbook(self) -> Playbook:
        return replace(self._before, entries=tuple(self._entries.values()), next_number=self._next_number)

    def apply(self, operation: Operation, proposal: Proposal) -> str | _Rejected:
        """Return the id of the entry that was made, changed or removed, or why nothing was."""
        match operation:
            case Add():
                return self._add(operation, proposal)
            case Update():
                return self._update(operation, proposal)
            case Merge():
                return self._merge(operation, proposal)
            case Delete():
                return self._delete(operation)

    def _add(self, operation: Add, proposal: Proposal) -> str | _Rejected:
        if rejected := self._refuse_duplicate(operation.text, without=()):
            return rejected
        return self._append(
            PlaybookEntry(
                id="",
                section=operation.section,
                text=operation.text,
                last_step=self._before.step,
                created_update=proposal.update,
                sources=(proposal.example_id,),
            )
        )

    def _update(self, operation: Update, proposal: Proposal) -> str | _Rejected:
        found = self._find((operation.id,))
        if isinstance(found, Problem):
            return None, found
        (entry,) = found
        if entry.text == operation.text:
            return entry.id, Problem(ProblemKind.DUPLICATE, f"{entry.id} reads like this already")
        if rejected := self._refuse_duplicate(operation.text, without=found):
            return rejected
        self._texts.remove(entry.id)
        self._texts.add(entry.id, operation.text)
        self._settled.add(entry.id)
        sources = _joined([entry.sources, (proposal.example_id,)])
        self._entries[entry.id] = replace(entry, text=operation.text, sources=sources)
        return entry.id

    def _merge(self, operation: Merge, proposal: Proposal) -> str | _Rejected:
        found = self._find(operation.ids)
        if isinstance(found, Problem):
            return None, found
        if len(found) < 2:
            return None, Problem(ProblemKind.MISSING_FIELD, f"a merge takes two entries, this one names {len(found)}")
        if rejected := self._refuse_duplicate(operation.text, without=found):
            return rejected
        for part in found:
            self._remove(part)
        return self._append(
            PlaybookEntry(
                id="",
                section=operation.section or found[0].section,
                text=operation.text,
                helpful=sum(part.helpful for part in found),
                harmful=sum(part.harmful for part in found),
                last_step=max(part.last_step for part in found),
                created_update=proposal.update,
                sources=_joined([*(part.sources for part in found), (proposal.example_id,)]),
                merged_from=tuple(part.id for part in found),
            )
        )

    def _delete(self, operation: Delete) -> str | _Rejected:
        found = self._find((operation.id,))
        if isinstance(found, Problem):
            return None, found
        self._remove(found[0])
        return found[0].id

    def _find(self, ids: Iterable[str]) -> tuple[PlaybookEntry, ...] | Problem:
        """Return the entries of these ids, each once, if the curator saw all of them and none is settled."""
        found: dict[str, PlaybookEntry] = {}
        for id_ in ids:
            known = self._seen_ids.get(id_.casefold())
            if known is None:
                return Problem(ProblemKind.UNKNOWN_ID, f"no entry {id_!r} in the playbook that the curator saw")
            if known in self._settled:
                return Problem(ProblemKind.CONFLICT, f"an earlier operation of this update has settled {known}")
            found[known] = self._entries[known]
        return tuple(found.values())

    def _refuse_duplicate(self, text: str, *, without: Sequence[PlaybookEntry]) -> _Rejected | None:
        # The entries that the text is to replace may resemble it: rewording is what update and merge are for.
        for entry in without:
            self._texts.remove(entry.id)
        kept_id = self._texts.find(text)
        for entry in without:
            self._texts.add(entry.id, entry.text)
        if kept_id is None:
            return None
        return kept_id, Problem(ProblemKind.DUPLICATE, f"{kept_id} says it already: {self._entries[kept_id].text!r}")

    def _append(self, entry: PlaybookEntry) -> str:
        id_ = entry_id(self._next_number)
        self._next_number += 1
        self._entries[id_] = replace(entry, id=id_)
        self._texts.add(id_, entry.text)
        return id_

    def _remove(self, entry: PlaybookEntry) -> None:
        del self._entries[entry.id]
        self._texts.remove(entry.id)
        self._settled.add(entry.id)


def _joined(groups: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(source for group in groups for source in group))
