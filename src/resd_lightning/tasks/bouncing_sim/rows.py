"""Rows of the public datasets `bouncingsim/bouncingsim-MULTIOBJ_MULTIOBJ-easy` and alike."""

from __future__ import annotations

import json
import re
from typing import Final, cast

from resd_lightning.records import Example
from resd_lightning.tasks.bouncing_sim.asserts import read_asserts
from resd_lightning.tasks.rows import Fields, read_messages, read_text_field, require_fields

DATASETS: Final = "bouncingsim/bouncingsim-MULTIOBJ_MULTIOBJ-easy (or -medium, and alike)"
_BASE64: Final = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")


def read_public_row(fields: Fields) -> Example:
    """Return a public row as an example whose answer is a tuple of asserts.

    Raises:
        ValueError: A field is missing or has another form than the public rows'.
    """
    require_fields(fields, "messages", "ground_truth", "id")
    ground_truth = fields["ground_truth"]
    asserts = _decode_asserts(ground_truth) if isinstance(ground_truth, str) else ground_truth
    try:
        read_asserts(asserts)
    except ValueError as error:
        raise ValueError(f"ground_truth: {error}") from error
    answer = tuple(cast("list[str]", asserts))
    return Example(read_text_field(fields, "id"), read_messages(fields["messages"]), answer)


def how_to_get(path: str) -> str:
    """Return the sentence that says what to download, and how to save it."""
    return (
        f"Download the dataset {DATASETS} and save it there as JSON lines, for example with "
        f'`datasets.load_dataset(NAME, split=SPLIT).to_json("{path}")`.'
    )


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
