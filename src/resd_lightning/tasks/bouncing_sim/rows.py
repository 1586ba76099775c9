"""Rows of the public datasets `bouncingsim/bouncingsim-MULTIOBJ_MULTIOBJ-easy` and alike, as JSON lines or a list."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

from resd_lightning.records import Example, Message
from resd_lightning.tasks.bouncing_sim.asserts import read_asserts

DATASETS: Final = "bouncingsim/bouncingsim-MULTIOBJ_MULTIOBJ-easy (or -medium, and alike)"
_BASE64: Final = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")


def load_examples(path: Path, *, key: str) -> tuple[Example, ...]:
    """Read a file of public rows; as `read_examples`."""

    def read_answer(ground_truth: object) -> tuple[str, ...]:
        asserts = _decode_asserts(ground_truth) if isinstance(ground_truth, str) else ground_truth
        try:
            read_asserts(asserts)
        except ValueError as error:
            raise ValueError(f"ground_truth: {error}") from error
        return tuple(cast("list[str]", asserts))

    return read_examples(path, key=key, field="ground_truth", hint=how_to_get(str(path)), read_answer=read_answer)


def read_examples(
    path: Path, *, key: str, field: str, hint: str, read_answer: Callable[[object], object]
) -> tuple[Example, ...]:
    """Read a file of rows with messages, an id and an answer: one JSON object per line, or all in one JSON list.

    Args:
        path: The file.
        key: The config key that named it, for errors.
        field: The row's field that holds what the task verifies against.
        hint: What to do where nothing is there.
        read_answer: Makes an example's answer of that field; raises ValueError if it can't.

    Raises:
        FileNotFoundError: Nothing is there; the text says what to download.
        ValueError: The file is empty or not UTF-8, or a row is broken; the text names the file and the line, or in a
            list the row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{key}: {path} is not a file. {hint}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}: {path} is not UTF-8 text (JSON lines or a JSON list expected): {error}") from error
    examples: dict[str, Example] = {}
    for where, value in _decode(text, f"{key}: {path}"):
        try:
            example = _read_row(value, field, read_answer)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if example.id in examples:
            raise ValueError(f"{where}: the id {example.id!r} is already taken")
        examples[example.id] = example
    if not examples:
        raise ValueError(f"{key}: {path} holds no rows")
    return tuple(examples.values())


def how_to_get(path: str) -> str:
    """Return the sentence that says what to download, and how to save it."""
    return (
        f"Download the dataset {DATASETS} and save it there as JSON lines, for example with "
        f'`datasets.load_dataset(NAME, split=SPLIT).to_json("{path}")`.'
    )


def _decode(text: str, source: str) -> Iterator[tuple[str, object]]:
    """Yield each row's JSON value, with the words that say where it stands."""
    if text.lstrip().startswith("["):
        try:
            values: list[object] = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}, line {error.lineno}: broken JSON: {error.msg}") from error
        yield from ((f"{source}, row {number}", value) for number, value in enumerate(values, start=1))
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"{source}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{source}, line {number}: broken JSON: {error.msg}") from error


def _read_row(value: object, field: str, read_answer: Callable[[object], object]) -> Example:
    if not isinstance(value, dict):
        raise ValueError(f"a row must be an object, got {type(value).__name__}")
    for name in ("messages", field, "id"):
        if name not in value:
            raise ValueError(f"the field {name} is missing")
    if not isinstance(value["id"], str) or not value["id"]:
        raise ValueError(f"id must be a non-empty string, got {value['id']!r:.60}")
    answer = read_answer(value[field])
    return Example(value["id"], _read_messages(value["messages"]), answer)


def _decode_asserts(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if _BASE64.fullmatch(text):
            raise ValueError(
                "ground_truth is in the older form, a pickle compressed by zlib in base64. It is refused, as reading a "
                f"pickle can run any code: download the rows anew, {DATASETS}, whose ground_truth is a list of asserts"
            ) from error
        raise ValueError(f"ground_truth is a string but not JSON: {error.msg}") from error


def _read_messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages must be a non-empty list")
    messages: list[Message] = []
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise ValueError("messages must hold objects with the strings role and content")
        messages.append(Message(role=message["role"], content=message["content"]))
    return tuple(messages)
