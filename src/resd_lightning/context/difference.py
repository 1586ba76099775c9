"""What became of playbooks between two moments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from resd_lightning.context.playbook import Playbook, PlaybookEntry


@dataclass(frozen=True)
class Difference:
    """One entry that isn't as it was.

    Attributes:
        kind: Born or died; changed, in section or text; or tagged, where only its track record moved.
        key: Of its playbook.
        before: As it was; None for one that was born.
        after: As it is; None for one that died.
    """

    kind: Literal["born", "died", "changed", "tagged"]
    key: str
    before: PlaybookEntry | None
    after: PlaybookEntry | None

    @property
    def id(self) -> str:
        """The entry's id, behind its playbook's key where that isn't the run's one."""
        id_ = self.known[0].id
        return f"{self.key}: {id_}" if self.key else id_

    @property
    def lessons(self) -> list[str]:
        """What the entry said and says, once where that is the same."""
        return list(dict.fromkeys(f"({entry.section}) {entry.text}" for entry in self.known))

    @property
    def numbers(self) -> list[str]:
        """Helpful and harmful count and last step: each as it was and as it is, once where that is the same."""
        pairs = zip(*map(_record, self.known), strict=True)
        return [" -> ".join(dict.fromkeys(map(str, pair))) for pair in pairs]

    @property
    def known(self) -> list[PlaybookEntry]:
        """The entry as it was and as it is, as far as it existed."""
        return [entry for entry in (self.before, self.after) if entry is not None]


def differences(before: Mapping[str, Playbook], after: Mapping[str, Playbook]) -> Iterator[Difference]:
    """Yield the entries that differ: those that died, then those of `after` in its order; playbook by playbook."""
    for key in dict.fromkeys([*before, *after]):
        earlier = {entry.id: entry for entry in before.get(key, Playbook()).entries}
        now = {entry.id: entry for entry in after.get(key, Playbook()).entries}
        for id_, entry in earlier.items():
            if id_ not in now:
                yield Difference("died", key, entry, None)
        for id_, entry in now.items():
            was = earlier.get(id_)
            if was is None:
                yield Difference("born", key, None, entry)
            elif (was.section, was.text) != (entry.section, entry.text):
                yield Difference("changed", key, was, entry)
            elif _record(was) != _record(entry):
                yield Difference("tagged", key, was, entry)


def _record(entry: PlaybookEntry) -> tuple[int, int, int]:
    return entry.helpful, entry.harmful, entry.last_step
