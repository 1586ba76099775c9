"""Rows of the public datasets `manufactoria/has_train` and `manufactoria/has_test`."""

from __future__ import annotations

import json
from dataclasses import dataclass

from resd_lightning.records import Example
from resd_lightning.tasks.manufactoria.cases import read_cases
from resd_lightning.tasks.rows import Fields, read_messages, read_text_field, require_fields


@dataclass(frozen=True)
class GradedExample(Example):
    """An example whose answer is a tuple of test cases.

    Attributes:
        difficulty: As the dataset or the generator grades it; the config filters by it.
    """

    difficulty: str = ""


def read_public_row(fields: Fields) -> GradedExample:
    """Return a public row as an example; its columns name and dataset are not used.

    Raises:
        ValueError: A field is missing or has another form than the public rows'.
    """
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
    return GradedExample(
        id=read_text_field(fields, "id"),
        messages=read_messages(fields["messages"]),
        answer=cases,
        family=read_text_field(fields, "problem_family"),
        difficulty=read_text_field(fields, "difficulty"),
    )
