"""Reading JSON out of what a model wrote: tolerant, bounded, and honest about what it had to forgive."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

from json_repair import repair_json

from resd_lightning.context.spans import MAX_DEPTH, Span, find_spans
from resd_lightning.records import Problem
from resd_lightning.thinking import strip_thinking

MAX_ANSWER_CHARS = 200_000
# The next two bound the time that mending can take.
MAX_REPAIRS = 3
MAX_REPAIR_CHARS = 50_000


class ProblemKind(StrEnum):
    """Every way in which reflector and curator answers go wrong; metrics count by these names."""

    EMPTY = "empty"
    """Nothing is left after the thinking trace."""
    NO_JSON = "no_json"
    """No object could be read, however leniently."""
    NOT_AN_OBJECT = "not_an_object"
    """JSON, but a list or a single value."""
    TOO_LONG = "too_long"
    """Longer than `MAX_ANSWER_CHARS`; not parsed."""
    TOO_DEEP = "too_deep"
    """Nested deeper than `MAX_DEPTH`; not parsed."""
    TRUNCATED_JSON = "truncated_json"
    """The answer stops inside its object; the values completed before that are kept."""
    REPAIRED_JSON = "repaired_json"
    """The object had to be mended (trailing comma, quotes, comments); nothing was lost."""
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    UNKNOWN_ID = "unknown_id"
    UNKNOWN_TAG = "unknown_tag"
    UNKNOWN_OPERATION = "unknown_operation"
    OPERATION_NOT_ALLOWED = "operation_not_allowed"
    """A known operation that the config doesn't let the curator use."""
    UNKNOWN_SECTION = "unknown_section"
    """The lesson is kept, in the last of the sections."""
    EMPTY_TEXT = "empty_text"
    TEXT_TOO_LONG = "text_too_long"
    DUPLICATE = "duplicate"
    """Says again what another entry, or an earlier item of the same answer, says."""
    CONFLICT = "conflict"
    """Names an entry that an earlier operation of the same update has already changed or removed."""


@dataclass(frozen=True)
class JsonReading:
    """What `read_json_object` made of an answer.

    Attributes:
        fields: The object's fields under their plain names (`plain_name`); None if no object could be read.
        problems: Why not, or what had to be forgiven.
    """

    fields: Mapping[str, object] | None
    problems: tuple[Problem, ...] = ()


_DISALLOWED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
LONE_SURROGATE = re.compile(r"[\ud800-\udfff]")
_OBJECT_END = re.compile(r'["\]}]\s*\}[\s`"]*\Z')
_ESCAPE = re.compile(r"\\.", re.DOTALL)


def clean_text(text: str) -> str:
    """Return model text fit to store and to show: NFC, no control characters or lone surrogates, no outer whitespace.

    Newlines and tabs stay; a carriage return becomes a newline.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", _DISALLOWED.sub("", text)).strip()


def plain_name(name: str) -> str:
    """Return a field name without case, spaces and punctuation: `Key Insight` and `key_insight` are `keyinsight`."""
    return "".join(c for c in name.casefold() if c.isalnum())


def read_json_object(text: str, *, expected: Collection[str]) -> JsonReading:
    """Return the object that a model's answer holds, without its thinking.

    Prose and code fences around the object are ignored. Of several objects the last whole one with an expected field
    counts: models draft, then answer. An object that isn't valid JSON is mended where its meaning is clear. One that
    the answer stops in the middle of keeps only the values that were complete, so that no half sentence becomes a
    lesson.

    Args:
        text: The model's whole answer.
        expected: Names of which the right object has at least one, as `plain_name` writes them.
    """
    if len(text) > MAX_ANSWER_CHARS:
        return _failure(ProblemKind.TOO_LONG, f"the answer has {len(text)} characters, the limit is {MAX_ANSWER_CHARS}")
    answer = strip_thinking(text)
    if not answer:
        return _failure(ProblemKind.EMPTY, "the answer is empty, or all of it is thinking")
    other_type = _type_of_plain_json(answer)
    if other_type is not None:
        return _failure(ProblemKind.NOT_AN_OBJECT, f"the answer is a JSON {other_type}, not an object")

    spans = list(find_spans(answer))
    shallow = [span for span in spans if span.depth <= MAX_DEPTH]
    strict = [_read_strictly(span) for span in shallow]
    if right := [reading for reading in strict if _has_any(reading, expected)]:
        return right[-1]
    broken = [span for span, reading in zip(shallow, strict, strict=True) if reading.fields is None]
    mended = [_mend(span) for span in _most_promising(broken)]
    if right := [reading for reading in mended if _has_any(reading, expected)]:
        return right[0]
    if len(shallow) < len(spans):
        return _failure(ProblemKind.TOO_DEEP, f"the answer nests deeper than {MAX_DEPTH} levels")
    if wrong := [reading for reading in (*reversed(strict), *mended) if reading.fields is not None]:
        return wrong[0]
    if reasons := [reading for reading in mended if reading.problems]:
        return reasons[0]
    if spans and not spans[-1].is_closed:
        return _failure(ProblemKind.TRUNCATED_JSON, "the answer stops before the first value of its object is complete")
    return _failure(ProblemKind.NO_JSON, f"no JSON object in the answer, which begins {answer[:80]!r}")


def _most_promising(spans: list[Span]) -> list[Span]:
    """The spans worth mending: the last whole ones, then the first that opens and never closes."""
    closed = [span for span in reversed(spans) if span.is_closed]
    unclosed = [span for span in spans if not span.is_closed]
    return closed[: MAX_REPAIRS - 1] + unclosed[:1]


def _read_strictly(span: Span) -> JsonReading:
    value = _loads(span.text) if span.is_closed else None
    return JsonReading(_plain_names(value)) if isinstance(value, dict) else JsonReading(None)


def _mend(span: Span) -> JsonReading:
    """Read an object that isn't valid JSON, or that never closes."""
    if span.is_closed:
        return _repaired(span.text, ProblemKind.REPAIRED_JSON, "the object isn't valid JSON and was mended")
    if not span.complete:
        return _failure(ProblemKind.NO_JSON, "quotes inside the object's texts leave open where they end")
    if span.ends_in_text and _OBJECT_END.search(span.text[-100:]):
        # It ends as an object does, so a stray quote only makes it look like a text: nothing was cut.
        return _repaired(span.text, ProblemKind.REPAIRED_JSON, "quotes in the object don't match and were mended")
    return _repaired(span.complete, ProblemKind.TRUNCATED_JSON, "the answer stops inside its object")


def _repaired(text: str, kind: ProblemKind, detail: str) -> JsonReading:
    value = _loads(text)
    if not isinstance(value, dict):
        if len(text) > MAX_REPAIR_CHARS:
            detail = (
                f"the object has {len(text)} characters and isn't valid JSON; at most {MAX_REPAIR_CHARS} are mended"
            )
            return _failure(ProblemKind.TOO_LONG, detail)
        try:
            value = repair_json(_keep_backslashes(text), return_objects=True, skip_json_loads=True)
        except (RecursionError, ValueError):  # its own guards against nesting and against numbers without end
            return JsonReading(None)
    if not isinstance(value, dict) or not value:
        return JsonReading(None)
    return JsonReading(_plain_names(value), (Problem(kind, detail),))


def _loads(text: str) -> object:
    """Return what valid JSON says (line breaks in strings allowed), or None."""
    try:
        # Numbers mean nothing in any schema here: as floats, ten thousand digits are no int() error.
        value: object = json.loads(_keep_backslashes(text), strict=False, parse_int=float)
    except (json.JSONDecodeError, RecursionError):
        return None
    return value


def _keep_backslashes(text: str) -> str:
    r"""Return JSON text in which `\b` and `\f` mean themselves, as in `\beta` and `\frac`.

    As escapes they would be control characters, which no lesson holds; models forget to double the backslash.
    """
    return _ESCAPE.sub(lambda escape: "\\" + escape[0] if escape[0] in ("\\b", "\\f") else escape[0], text)


def _type_of_plain_json(answer: str) -> str | None:
    """Return the type of an answer that is JSON as a whole (a fence aside) but no object, else None."""
    bare = answer.removesuffix("```").strip()
    if bare.startswith("```"):
        bare = bare.partition("\n")[2].strip()
    if bare[:1] in ("", "{"):
        return None
    value = _loads(bare)
    return None if value is None and bare != "null" else type(value).__name__


def _plain_names(value: dict[str, object]) -> dict[str, object]:
    return {plain_name(name): content for name, content in value.items()}


def _has_any(reading: JsonReading, expected: Collection[str]) -> bool:
    return reading.fields is not None and any(name in reading.fields for name in expected)


def _failure(kind: ProblemKind, detail: str) -> JsonReading:
    return JsonReading(None, (Problem(kind, detail),))
