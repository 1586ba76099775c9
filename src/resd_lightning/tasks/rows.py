"""Rows of a data file, as JSON lines or one JSON list: read strictly, refused by file and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from resd_lightning.config import ConfigError
from resd_lightning.records import Message

Fields = Mapping[str, object]
"""One row as it stands in the file: a JSON object."""


class Identified(Protocol):
    """What a row is made into: anything with an id that is its own."""

    @property
    def id(self) -> str:
        """Unique within the file."""
        ...


RowT = TypeVar("RowT", bound=Identified)


def read_rows(path: Path, read: Callable[[Fields, int], RowT], *, key: str, absent: str) -> tuple[RowT, ...]:
    """Return what `read` makes of each row of a file, in the file's order.

    Args:
        path: The file; UTF-8, one JSON object per line or all in one JSON list, blank lines ignored.
        read: Makes something of a row and its number, which is that of its line, or in a list its place, from 1;
            raises ValueError where the row is wrong.
        key: The config key that named the file, for errors.
        absent: A sentence on how to come by the file, for the error where there is none.

    Raises:
        ConfigError: There is no file, it is empty or not UTF-8, a row is broken, or an id appears twice; the text names
            the key, the file and the line, or in a list the row.
    """
    if not path.is_file():
        raise ConfigError(f"{key}: {path} is not a file. {absent}")
    source = f"{key}: {path}"
    rows: list[RowT] = []
    seen: dict[str, str] = {}
    for where, number, value in _decode(_read_text(path, source), source):
        if not isinstance(value, dict):
            raise ConfigError(f"{where}: a row must be an object, got {type(value).__name__}")
        try:
            row = read(value, number)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        if row.id in seen:
            raise ConfigError(f"{where}: the id {row.id!r} is already taken ({seen[row.id]})")
        seen[row.id] = where
        rows.append(row)
    if not rows:
        raise ConfigError(f"{source} holds no rows")
    return tuple(rows)


def require_fields(fields: Fields, *names: str) -> None:
    """Raise ValueError naming the first of `names` that the row lacks."""
    for name in names:
        if name not in fields:
            raise ValueError(f"the field {name} is missing")


def read_text_field(fields: Fields, name: str) -> str:
    """Return a field that has to be a string with something in it.

    Raises:
        ValueError: The field is missing, of another type, or blank.
    """
    require_fields(fields, name)
    value = fields[name]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a non-empty string, got {clip(repr(value))}")
    return value


def read_messages(value: object) -> tuple[Message, ...]:
    """Return a chat.

    Raises:
        ValueError: The value is no list of objects with a role and a content, or an empty one.
    """
    if not isinstance(value, list) or not value:
        raise ValueError("messages must be a non-empty list")
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError("messages must hold objects with the strings role and content")
        messages.append(Message(role=message["role"], content=message["content"]))
    return tuple(messages)


def clip(text: str, limit: int = 60) -> str:
    """Return the text, its middle left out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 3) * 2 // 3
    return f"{text[:head]}...{text[head + 3 - limit :]}"


def _read_text(path: Path, source: str) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")  # some editors put a byte order mark in front
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{source}, line {line}: not UTF-8 text (JSON lines or a JSON list expected): {error.reason}"
        ) from error


def _decode(text: str, source: str) -> Iterator[tuple[str, int, object]]:
    """Yield each row's JSON value and number, with the words that say where it stands."""
    if text.lstrip().startswith("["):
        values = _load_json(text, source, first_line=1)
        assert isinstance(values, list)  # what else could begin with a bracket
        yield from ((f"{source}, row {number}", number, value) for number, value in enumerate(values, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines: JSON strings may hold other separators
        if line.strip():
            yield f"{source}, line {number}", number, _load_json(line, source, first_line=number)


def _load_json(text: str, source: str, *, first_line: int) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}, line {first_line + error.lineno - 1}: broken JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, or as many brackets
        raise ConfigError(f"{source}, line {first_line}: JSON that can't be read: {error}") from error
