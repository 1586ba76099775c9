"""The playbook: reusable lessons with their track record, as immutable records."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

from resd_lightning.context.answers import LONE_SURROGATE, ProblemKind
from resd_lightning.records import Problem, Tag

SECTIONS = (
    "strategies",
    "formulas",
    "code_snippets",
    "common_mistakes",
    "heuristics",
    "context_clues",
    "others",
)
"""The authors' sections; a lesson that names none of them belongs to the last."""

_NUMBERED_ID = re.compile(r"[eE]([0-9]{1,18})")
_ALLOWED_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def entry_id(number: int) -> str:
    """Return the id of the playbook's entry of this number, for example `e00001`."""
    return f"e{number:05d}"


@dataclass(frozen=True)
class PlaybookEntry:
    """One lesson, how it fared, and where it came from.

    Attributes:
        id: Unique in its playbook and never reused.
        section: One of `SECTIONS`.
        text: The lesson.
        helpful: How often it was tagged helpful.
        harmful: How often it was tagged harmful.
        last_step: The playbook's context update in which it was last tagged helpful or harmful, or created.
        created_update: The run's update in which it was made.
        sources: The ids of the examples whose curators wrote it, oldest first.
        merged_from: The ids of the entries it replaced; empty unless it was merged.
    """

    id: str
    section: str
    text: str
    helpful: int = 0
    harmful: int = 0
    last_step: int = 0
    created_update: int = 0
    sources: tuple[str, ...] = ()
    merged_from: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.helpful < 0 or self.harmful < 0:
            raise ValueError(f"entry {self.id}: helpful and harmful are counts, got {self.helpful}, {self.harmful}")

    @property
    def is_unused(self) -> bool:
        """Whether it was never tagged helpful or harmful (RESD App. D)."""
        return self.helpful + self.harmful == 0

    @property
    def is_harmful(self) -> bool:
        """Whether it harmed at least as often as it helped, and did harm (RESD App. D)."""
        return self.harmful > 0 and self.harmful >= self.helpful

    @property
    def is_helpful(self) -> bool:
        """Whether it helped more often than it harmed: neither unused nor harmful (RESD App. D)."""
        return not self.is_unused and not self.is_harmful

    @property
    def utility(self) -> int:
        """How much more often it helped than harmed."""
        return self.helpful - self.harmful


@dataclass(frozen=True)
class Playbook:
    """Entries in order of their making, and the two counters that only ever grow.

    Every change returns a new playbook, so whoever holds one (a transcript, a checkpoint, a curator's prompt) keeps
    what it saw.

    Attributes:
        entries: The lessons, ids unique whatever their case.
        step: How many context updates this playbook has been through.
        next_number: The number of the next id; above every number in use, so that no id comes back after pruning.
    """

    entries: tuple[PlaybookEntry, ...] = ()
    step: int = 0
    next_number: int = 1

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for entry in self.entries:
            # Tags name entries whatever the case, so E1 beside e1 would be ambiguous.
            if entry.id.casefold() in seen:
                raise ValueError(f"entry {entry.id}: the playbook has this id twice")
            seen.add(entry.id.casefold())
        if self.next_number <= (highest := _highest_number(self.entries)):
            raise ValueError(f"next_number must be above {highest}, the highest id in use, got {self.next_number}")

    def __len__(self) -> int:
        return len(self.entries)

    def apply_tags(self, tags: Iterable[Tag]) -> tuple[Playbook, tuple[Problem, ...]]:
        """Return the playbook with the verdicts counted, and a problem per tag that names no entry.

        A helpful or harmful tag counts one and makes this step the entry's last; a neutral one changes nothing
        (RESD Alg. 1 line 8). Ids match whatever their case.
        """
        position_of = {entry.id.casefold(): i for i, entry in enumerate(self.entries)}
        entries = list(self.entries)
        problems: list[Problem] = []
        for tag in tags:
            position = position_of.get(tag.id.casefold())
            if position is None:
                problems.append(Problem(ProblemKind.UNKNOWN_ID, f"tag {tag.tag!r} for {tag.id!r}, which no entry has"))
            elif tag.tag == "helpful":
                entries[position] = replace(
                    entries[position], helpful=entries[position].helpful + 1, last_step=self.step
                )
            elif tag.tag == "harmful":
                entries[position] = replace(
                    entries[position], harmful=entries[position].harmful + 1, last_step=self.step
                )
        return self.replace_entries(entries), tuple(problems)

    def add(self, section: str, text: str, *, update: int = 0, source: str = "") -> Playbook:
        """Return the playbook with a new, untagged entry at its end.

        Args:
            section: One of `SECTIONS`.
            text: The lesson.
            update: The run's update that makes it.
            source: The id of the example that it was learned from; empty for none.
        """
        sources = (source,) if source else ()
        entry = PlaybookEntry(
            entry_id(self.next_number), section, text, last_step=self.step, created_update=update, sources=sources
        )
        return replace(self, entries=(*self.entries, entry), next_number=self.next_number + 1)

    def replace_entries(self, entries: Iterable[PlaybookEntry]) -> Playbook:
        """Return the playbook with these entries instead, its counters unchanged (what pruning does)."""
        return replace(self, entries=tuple(entries))

    def next_step(self) -> Playbook:
        """Return the playbook one context update later."""
        return replace(self, step=self.step + 1)

    def to_dict(self) -> dict[str, object]:
        """Return the playbook as plain dicts, lists, texts and whole numbers, for checkpoints and for JSON."""
        entries = [
            {**vars(entry), "sources": list(entry.sources), "merged_from": list(entry.merged_from)}
            for entry in self.entries
        ]
        return {"step": self.step, "next_number": self.next_number, "entries": entries}

    @classmethod
    def from_dict(cls, state: Mapping[str, object]) -> Playbook:
        """Return the playbook that `to_dict` described, or that a person wrote.

        Only the entries' id, section and text are required. A `next_number` that an id has reached is moved past it.

        Raises:
            ValueError: Something is missing, unknown, of a wrong type or out of range; the text names where.
        """
        _refuse_unknown_keys(state, ("step", "next_number", "entries"), "playbook")
        raw_entries = state.get("entries")
        if not isinstance(raw_entries, list):
            raise ValueError(f"playbook: entries must be a list, got {type(raw_entries).__name__}")
        entries = tuple(_entry_from(raw, f"playbook entries[{i}]") for i, raw in enumerate(raw_entries))
        step = _whole_number(state, "step", "playbook", default=0, minimum=0)
        next_number = _whole_number(state, "next_number", "playbook", default=1, minimum=1)
        return cls(entries, step, max(next_number, _highest_number(entries) + 1))

    def to_json(self) -> str:
        """Return the playbook as JSON for people to inspect and edit."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Playbook:
        """Return the playbook that JSON text holds; see `from_dict`.

        Raises:
            ValueError: The text isn't JSON (names the line), or isn't a playbook (names the entry and the field).
        """
        return cls.from_dict(json_object(text))

    def fingerprint(self) -> str:
        """Return a SHA-256 over everything in it: equal on two ranks iff their playbooks are equal."""
        content = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode("ascii")).hexdigest()


def json_object(text: str) -> dict[str, object]:
    """Return the object that JSON text holds.

    Raises:
        ValueError: The text isn't JSON (names the line), is no object, or has a key twice.
    """
    try:
        state = json.loads(text, object_pairs_hook=_refuse_repeated_keys)
    except json.JSONDecodeError as error:
        raise ValueError(f"playbook JSON, line {error.lineno}, column {error.colno}: {error.msg}") from error
    if not isinstance(state, dict):
        raise ValueError(f"playbook JSON must be an object with entries, got {type(state).__name__}")
    return state


def _highest_number(entries: Iterable[PlaybookEntry]) -> int:
    matches = (_NUMBERED_ID.fullmatch(entry.id) for entry in entries)
    return max((int(match[1]) for match in matches if match), default=0)


def _entry_from(raw: object, where: str) -> PlaybookEntry:
    if not isinstance(raw, dict):
        raise ValueError(f"{where} must be an object, got {type(raw).__name__}")
    id_ = _text(raw, "id", where)
    if not _ALLOWED_ID.fullmatch(id_):
        raise ValueError(f"{where}: id must be 1 to 64 letters, digits, '_' or '-', got {id_!r}")
    where = f"{where} (id {id_})"
    _refuse_unknown_keys(raw, tuple(field.name for field in fields(PlaybookEntry)), where)
    section = _text(raw, "section", where)
    if section not in SECTIONS:
        raise ValueError(f"{where}: section must be one of {', '.join(SECTIONS)}, got {section!r}")
    return PlaybookEntry(
        id=id_,
        section=section,
        text=_text(raw, "text", where),
        helpful=_whole_number(raw, "helpful", where, default=0, minimum=0),
        harmful=_whole_number(raw, "harmful", where, default=0, minimum=0),
        last_step=_whole_number(raw, "last_step", where, default=0, minimum=None),
        created_update=_whole_number(raw, "created_update", where, default=0, minimum=0),
        sources=_texts(raw, "sources", where),
        merged_from=_texts(raw, "merged_from", where),
    )


def _text(raw: Mapping[str, object], key: str, where: str) -> str:
    value = raw.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{where}: {key} must be a text that isn't empty, got {value!r}")
    if LONE_SURROGATE.search(value):
        raise ValueError(f"{where}: {key} holds half of a surrogate pair, which no file can store, got {value!r}")
    return value


def _texts(raw: Mapping[str, object], key: str, where: str) -> tuple[str, ...]:
    values = raw.get(key, [])
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{where}: {key} must be a list of texts, got {values!r}")
    return tuple(values)


def _whole_number(raw: Mapping[str, object], key: str, where: str, *, default: int, minimum: int | None) -> int:
    value = raw.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or (minimum is not None and value < minimum):
        rule = "a whole number" if minimum is None else f"a whole number of at least {minimum}"
        raise ValueError(f"{where}: {key} must be {rule}, got {value!r}")
    return value


def _refuse_unknown_keys(raw: Mapping[str, object], known: Iterable[str], where: str) -> None:
    if unknown := sorted(set(raw) - set(known)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(known)}")


def _refuse_repeated_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"playbook JSON: key {repeated!r} stands twice in one object")
    return content
