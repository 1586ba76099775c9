"""CURATE, reading: what the curator is asked for, and what of its answer counts (RESD Alg. 1 line 9)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import get_args

from resd_lightning.config import OperationName
from resd_lightning.context.answers import ProblemKind, clean_text, plain_name, read_json_object
from resd_lightning.context.fields import first_present, named_fields, read_entry_id, read_list, read_text
from resd_lightning.context.playbook import SECTIONS
from resd_lightning.records import Problem

OPERATION_NAMES: tuple[OperationName, ...] = get_args(OperationName)
MAX_ENTRY_CHARS = 2_000
"""Longest text of an entry: a lesson that needs more isn't one, and every prompt pays for it."""
FALLBACK_SECTION = SECTIONS[-1]


@dataclass(frozen=True)
class Add:
    """A new lesson."""

    section: str
    text: str


@dataclass(frozen=True)
class Update:
    """A better wording of a lesson, whose track record stays."""

    id: str
    text: str


@dataclass(frozen=True)
class Merge:
    """One lesson in place of several; without a section it takes the first one's."""

    ids: tuple[str, ...]
    text: str
    section: str | None = None


@dataclass(frozen=True)
class Delete:
    """A lesson that should go."""

    id: str


Operation = Add | Update | Merge | Delete


@dataclass(frozen=True)
class ParsedOperations:
    """What a curator's answer came to.

    Attributes:
        operations: Well-formed and allowed, in the answer's order; whether their entries exist shows when they apply.
        problems: Everything that was dropped or forgiven.
    """

    operations: tuple[Operation, ...]
    problems: tuple[Problem, ...]


_TEXT: dict[str, object] = {"type": "string"}
_SECTION: dict[str, object] = {"type": "string", "enum": list(SECTIONS)}
_PROPERTIES: dict[OperationName, dict[str, object]] = {
    "ADD": {"section": _SECTION, "content": _TEXT},
    "UPDATE": {"id": _TEXT, "content": _TEXT},
    "MERGE": {"ids": {"type": "array", "items": _TEXT, "minItems": 2}, "section": _SECTION, "content": _TEXT},
    "DELETE": {"id": _TEXT},
}

# The names models give the fields, as plain_name writes them; the first is ours.
_OPERATIONS_NAMES = ("operations", "ops")
_TYPE_NAMES = ("type", "operation", "op", "action")
_TEXT_NAMES = ("content", "text")
_ID_NAMES = ("id", "entryid", "bulletid", "targetid")
_IDS_NAMES = ("ids", "entryids", "bulletids", "sourceids")
_SECTION_NAMES = ("section", "category")


def curation_schema(allowed: Collection[OperationName]) -> dict[str, object]:
    """Return the JSON schema of a curator's answer, for guided decoding, with only the allowed operations in it."""
    _check_allowed(allowed)
    variants = [
        {
            "type": "object",
            "properties": {"type": {"type": "string", "enum": [name]}, **_PROPERTIES[name]},
            "required": ["type", *_PROPERTIES[name]],
            "additionalProperties": False,
        }
        for name in OPERATION_NAMES
        if name in allowed
    ]
    return {
        "type": "object",
        "properties": {
            "reasoning": _TEXT,
            "analysis": _TEXT,  # what micro-lm calls its reasoning
            "operations": {"type": "array", "items": {"anyOf": variants}},
        },
        "required": ["operations"],
        "additionalProperties": False,
    }


def _check_allowed(allowed: Collection[str]) -> None:
    """Refuse names that are no operation.

    Raises:
        ValueError: Names the first that isn't known.
    """
    for name in allowed:
        if name not in OPERATION_NAMES:
            raise ValueError(f"context.operations: {name!r} is none of {', '.join(OPERATION_NAMES)}")


CURATION_SCHEMA = curation_schema(OPERATION_NAMES)
"""The schema with every operation in it."""


def parse_operations(text: str, *, allowed: Collection[OperationName]) -> ParsedOperations:
    """Return the operations in a model's answer that are well-formed and allowed.

    A bad operation is dropped by itself and reported. An unknown section isn't worth a lesson: the entry goes to the
    last section, and that is reported too.

    Args:
        text: The model's whole answer.
        allowed: The config's `context.operations`.

    Raises:
        ValueError: `allowed` holds a name that is no operation.
    """
    _check_allowed(allowed)
    reading = read_json_object(text, expected=_OPERATIONS_NAMES)
    problems = list(reading.problems)
    if reading.fields is None:
        return ParsedOperations((), tuple(problems))
    items = read_list(reading.fields, _OPERATIONS_NAMES)
    if isinstance(items, Problem):
        return ParsedOperations((), (*problems, items))
    read = [_read_operation(item, allowed, problems) for item in items]
    return ParsedOperations(tuple(operation for operation in read if operation is not None), tuple(problems))


def _read_operation(item: object, allowed: Collection[str], problems: list[Problem]) -> Operation | None:
    fields = named_fields(item, "an operation")
    if isinstance(fields, Problem):
        problems.append(fields)
        return None
    raw_name = first_present(fields, _TYPE_NAMES)
    if raw_name is None:
        problems.append(Problem(ProblemKind.MISSING_FIELD, "an operation has no type"))
        return None
    name = clean_text(raw_name).upper() if isinstance(raw_name, str) else ""
    if name not in _READERS:
        problems.append(Problem(ProblemKind.UNKNOWN_OPERATION, f"{str(raw_name)[:80]!r} is no operation"))
        return None
    if name not in allowed:
        problems.append(Problem(ProblemKind.OPERATION_NOT_ALLOWED, f"context.operations doesn't have {name}"))
        return None
    operation = _READERS[name](fields, problems)
    if isinstance(operation, Problem):
        problems.append(operation)
        return None
    return operation


_Fields = Mapping[str, object]


def _read_add(fields: _Fields, problems: list[Problem]) -> Operation | Problem:
    text = read_text(fields, _TEXT_NAMES, max_chars=MAX_ENTRY_CHARS)
    if isinstance(text, Problem):
        return text
    section = _read_section(fields)
    if isinstance(section, Problem):
        problems.append(section)
        return Add(FALLBACK_SECTION, text)
    return Add(section, text)


def _read_update(fields: _Fields, problems: list[Problem]) -> Operation | Problem:
    id_ = read_entry_id(first_present(fields, _ID_NAMES))
    if isinstance(id_, Problem):
        return id_
    text = read_text(fields, _TEXT_NAMES, max_chars=MAX_ENTRY_CHARS)
    return text if isinstance(text, Problem) else Update(id_, text)


def _read_merge(fields: _Fields, problems: list[Problem]) -> Operation | Problem:
    raw_ids = read_list(fields, _IDS_NAMES)
    if isinstance(raw_ids, Problem):
        return raw_ids
    ids: list[str] = []
    for raw_id in raw_ids:
        id_ = read_entry_id(raw_id)
        if isinstance(id_, Problem):
            return id_
        ids.append(id_)
    text = read_text(fields, _TEXT_NAMES, max_chars=MAX_ENTRY_CHARS)
    if isinstance(text, Problem):
        return text
    section = _read_section(fields)
    if isinstance(section, Problem):
        problems.append(section)
        return Merge(tuple(ids), text)
    return Merge(tuple(ids), text, section)


def _read_delete(fields: _Fields, problems: list[Problem]) -> Operation | Problem:
    id_ = read_entry_id(first_present(fields, _ID_NAMES))
    return id_ if isinstance(id_, Problem) else Delete(id_)


def _read_section(fields: _Fields) -> str | Problem:
    value = first_present(fields, _SECTION_NAMES)
    if value is None:
        return Problem(ProblemKind.MISSING_FIELD, "no section in it")
    if not isinstance(value, str):
        return Problem(ProblemKind.WRONG_TYPE, f"section is a {type(value).__name__}, not a text")
    for section in SECTIONS:
        if plain_name(value) == plain_name(section):
            return section
    return Problem(ProblemKind.UNKNOWN_SECTION, f"{value[:80]!r} is none of {', '.join(SECTIONS)}")


_READERS: dict[str, Callable[[_Fields, list[Problem]], Operation | Problem]] = {
    "ADD": _read_add,
    "UPDATE": _read_update,
    "MERGE": _read_merge,
    "DELETE": _read_delete,
}
