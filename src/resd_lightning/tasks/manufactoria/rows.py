"""Rows of the public datasets `manufactoria/has_train` and `manufactoria/has_test`, as JSON lines or a JSON list."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from resd_lightning.records import Message
from resd_lightning.tasks.manufactoria.cases import TapeCase, read_cases
from resd_lightning.tasks.rows import Fields, read_messages, read_rows, read_text_field, require_fields


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
        ConfigError: See `read_rows`; where there is no file, the text says what to download.
    """
    absent = (
        f"Download the dataset {dataset} and save it there as JSON lines, for example "
        f'with `datasets.load_dataset("{dataset}", split="train").to_json("{path}")`. '
        "Without train_path and test_path, problems are generated."
    )
    return read_rows(path, _read_row, key=key, absent=absent)


def _read_row(fields: Fields, number: int) -> Row:
    require_fields(fields, "messages", "ground_truth", "id", "difficulty", "problem_family")
    ground_truth = fields["ground_truth"]
    if isinstance(ground_truth, str):
        try:
            ground_truth = json.loads(ground_truth)
        except json.JSONDecodeError as error:
            raise ValueError(f"ground_truth is a string but not JSON: {error.msg}") from error
    try:
        cases = read_cases(ground_truth)
    except ValueError as error:
        raise ValueError(f"ground_truth: {error}") from error
    return Row(
        id=read_text_field(fields, "id"),
        messages=read_messages(fields["messages"]),
        cases=cases,
        difficulty=read_text_field(fields, "difficulty"),
        family=read_text_field(fields, "problem_family"),
    )
