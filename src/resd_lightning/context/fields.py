"""One field of an object that a model wrote: under whichever of its names, as a clean text or an entry id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resd_lightning.context.answers import ProblemKind, clean_text, plain_name
from resd_lightning.records import Problem

MAX_ID_CHARS = 100
_ID_WRAPPING = " \t\n[](){}<>`'\"#:,."
"""What models put around an id they quote: [e00001], `e00001`, #e00001."""


def named_fields(item: object, what: str) -> dict[str, object] | Problem:
    """Return an object's fields under their plain names, or a problem that says `what` isn't an object."""
    if not isinstance(item, dict):
        return Problem(ProblemKind.WRONG_TYPE, f"{what} is a {type(item).__name__}, not an object")
    return {plain_name(name): content for name, content in item.items()}


def first_present(fields: Mapping[str, object], names: Sequence[str]) -> object:
    """Return what stands under the first of the names that is there and isn't null; None if none is."""
    return next((fields[name] for name in names if fields.get(name) is not None), None)


def read_text(fields: Mapping[str, object], names: Sequence[str], *, max_chars: int) -> str | Problem:
    """Return the clean text under the first of the names that is there, or what is wrong with it."""
    value = first_present(fields, names)
    if value is None:
        return Problem(ProblemKind.MISSING_FIELD, f"no {names[0]} in it")
    if not isinstance(value, str):
        return Problem(ProblemKind.WRONG_TYPE, f"{names[0]} is a {type(value).__name__}, not a text")
    text = clean_text(value)
    if not text:
        return Problem(ProblemKind.EMPTY_TEXT, f"{names[0]} is empty")
    if len(text) > max_chars:
        return Problem(ProblemKind.TEXT_TOO_LONG, f"{names[0]} has {len(text)} characters, the limit is {max_chars}")
    return text


def read_list(fields: Mapping[str, object], names: Sequence[str]) -> list[object] | Problem:
    """Return the list under the first of the names that is there, or what is wrong with it."""
    value = first_present(fields, names)
    if value is None:
        return Problem(ProblemKind.MISSING_FIELD, f"no {names[0]} in it")
    if not isinstance(value, list):
        return Problem(ProblemKind.WRONG_TYPE, f"{names[0]} is a {type(value).__name__}, not a list")
    return value


def read_entry_id(value: object) -> str | Problem:
    """Return the entry id that a model wrote, without the brackets and quotes it put around it."""
    if value is None:
        return Problem(ProblemKind.MISSING_FIELD, "no id in it")
    if not isinstance(value, str):
        return Problem(ProblemKind.WRONG_TYPE, f"an id is a {type(value).__name__}, not a text")
    id_ = clean_text(value).strip(_ID_WRAPPING)
    if not id_:
        return Problem(ProblemKind.EMPTY_TEXT, "an id is empty")
    if len(id_) > MAX_ID_CHARS:
        return Problem(ProblemKind.TEXT_TOO_LONG, f"an id has {len(id_)} characters, the limit is {MAX_ID_CHARS}")
    return id_
