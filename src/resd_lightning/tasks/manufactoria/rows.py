"""Rows of the public datasets `manufactoria/has_train` and `manufactoria/has_test`, as JSON lines or a JSON list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from resd_lightning.records import Message
from resd_lightning.tasks.manufactoria.cases import TapeCase, read_cases


@dataclass(frozen=True)
class Row:
    """One problem of a public dataset; its other columns (name, dataset) are not used.

    Attributes:
        id: Unique within the file.
        messages: The chat, with the language's description and the problem.
        cases: The test tapes, from the column ground_truth.
        difficulty: As the dataset grades it.
        family: The column problem_family.
    """

    id: str
    messages: tuple[Message, ...]
    cases: tuple[TapeCase, ...]
    difficulty: str
    family: str


def load_rows(path: Path, *, key: str, dataset: str) -> tuple[Row, ...]:
    """Read a file of public rows, one JSON object per line or all in one JSON list.

    Args:
        path: The file.
        key: The config key that named it, for errors.
        dataset: The dataset that belongs there, for errors.

    Raises:
        FileNotFoundError: Nothing is there; the text says what to download.
        ValueError: The file is empty or not UTF-8, or a row is broken; the text names the file and the line, or in a
            list the row.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{key}: {path} is not a file. Download the dataset {dataset} and save it there as JSON lines, for example "
            f'with `datasets.load_dataset("{dataset}", split="train").to_json("{path}")`. '
            "Without train_path and test_path, problems are generated."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {path} is not UTF-8 text (JSON lines or a JSON list expected): {error}") from error
    rows: list[Row] = []
    seen: dict[str, str] = {}
    for where, value in _decode(text, f"{key}: {path}"):
        try:
            row = _read_row(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if row.id in seen:
            raise ValueError(f"{where}: the id {row.id!r} is already taken ({seen[row.id]})")
        seen[row.id] = where
        rows.append(row)
    if not rows:
        raise ValueError(f"{key}: {path} holds no rows")
    return tuple(rows)


def _decode(text: str, source: str) -> Iterator[tuple[str, object]]:
    """Yield each row's JSON value, with the words that say where it stands."""
    if text.lstrip().startswith("["):
        try:
            values: object = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}, line {error.lineno}: broken JSON: {error.msg}") from error
        if isinstance(values, list):
            yield from ((f"{source}, row {number}", value) for number, value in enumerate(values, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{source}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}, line {number}: broken JSON: {error.msg}") from error


def _read_row(value: object) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"a row must be an object, got {type(value).__name__}")
    for field in ("messages", "ground_truth", "id", "difficulty", "problem_family"):
        if field not in value:
            raise ValueError(f"the field {field} is missing")
    for field in ("id", "difficulty", "problem_family"):
        if not isinstance(value[field], str) or not value[field]:
            raise ValueError(f"{field} must be a non-empty string, got {value[field]!r:.60}")
    ground_truth: object = value["ground_truth"]
    if isinstance(ground_truth, str):
        try:
            ground_truth = json.loads(ground_truth)
        except json.JSONDecodeError as error:
            raise ValueError(f"ground_truth is a string but not JSON: {error.msg}") from error
    try:
        cases = read_cases(ground_truth)
    except ValueError as error:
        raise ValueError(f"ground_truth: {error}") from error
    return Row(value["id"], _read_messages(value["messages"]), cases, value["difficulty"], value["problem_family"])


def _read_messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages must be a non-empty list")
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError("messages must hold objects with the strings role and content")
        messages.append(Message(role=message["role"], content=message["content"]))
    return tuple(messages)
