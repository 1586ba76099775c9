"""REFLECT: what the reflector is asked for, and what of its answer counts (RESD Alg. 1 line 8)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from resd_lightning.context.answers import ProblemKind, clean_text, read_json_object
from resd_lightning.context.fields import first_present, named_fields, read_entry_id, read_list, read_text
from resd_lightning.records import Problem, Reflection, Tag, TagKind

TAG_KINDS: tuple[TagKind, ...] = get_args(TagKind)
MAX_REFLECTION_TEXT_CHARS = 8_000
"""Longest text of one field: the teacher's prompt holds a reflection whole or not at all."""

_TAG_LIST_SCHEMA: dict[str, object] = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"id": {"type": "string"}, "tag": {"type": "string", "enum": list(TAG_KINDS)}},
        "required": ["id", "tag"],
        "additionalProperties": False,
    },
}
REFLECTION_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {
        "analysis": {"type": "string"},
        "error": {"type": "string"},
        "root_cause": {"type": "string"},
        "right_approach": {"type": "string"},
        "key_insight": {"type": "string"},
        "tags": _TAG_LIST_SCHEMA,
    },
    "required": ["key_insight", "tags"],
    "additionalProperties": False,
}
"""What a reflection on a failure looks like, for guided decoding."""
TAGS_SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"analysis": {"type": "string"}, "tags": _TAG_LIST_SCHEMA},
    "required": ["tags"],
    "additionalProperties": False,
}
"""What the light reflection on a success looks like, for guided decoding."""

# The names models give the fields, as plain_name writes them; the first is ours.
_INSIGHT_NAMES = ("keyinsight", "insight", "keytakeaway", "lesson")
_OPTIONAL_NAMES = {
    "analysis": ("analysis", "reasoning"),
    "error": ("error", "erroridentification", "whatwentwrong"),
    "root_cause": ("rootcause", "rootcauseanalysis", "cause"),
    "right_approach": ("rightapproach", "correctapproach", "correctedapproach"),
}
_TAGS_NAMES = ("tags", "bullettags", "entrytags")
_TAG_ID_NAMES = ("id", "bulletid", "entryid")
_TAG_NAMES = ("tag", "label", "verdict")


@dataclass(frozen=True)
class ParsedReflection:
    """What the reflector's answer came to.

    Attributes:
        reflection: None where the answer holds no insight.
        problems: Everything that was dropped or forgiven.
    """

    reflection: Reflection | None
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class ParsedTags:
    """What the light reflection on a success came to.

    Attributes:
        tags: One verdict per entry at most; whether the entry exists is for the playbook to say.
        problems: Everything that was dropped or forgiven.
    """

    tags: tuple[Tag, ...]
    problems: tuple[Problem, ...]


def parse_reflection(text: str) -> ParsedReflection:
    """Return the reflection in a model's answer.

    The insight alone is indispensable. Other texts that are missing stay empty, a bad tag is dropped by itself, and an
    answer without tags is still a reflection; all of it is reported.

    Source: RESD Alg. 1 line 8.
    """
    reading = read_json_object(text, expected=_INSIGHT_NAMES + _TAGS_NAMES)
    if reading.fields is None:
        return ParsedReflection(None, reading.problems)
    problems = list(reading.problems)
    key_insight = read_text(reading.fields, _INSIGHT_NAMES, max_chars=MAX_REFLECTION_TEXT_CHARS)
    texts = {field: _read_optional(reading.fields, names, problems) for field, names in _OPTIONAL_NAMES.items()}
    tags = _read_tags(reading.fields, problems)
    if isinstance(key_insight, Problem):
        return ParsedReflection(None, (*problems, key_insight))
    return ParsedReflection(Reflection(key_insight=key_insight, tags=tags, **texts), tuple(problems))


def parse_tags(text: str) -> ParsedTags:
    """Return the verdicts in a model's answer about a success, which asks for no other field.

    Source: RESD tags successes too, before the curator sees the playbook.
    """
    reading = read_json_object(text, expected=_TAGS_NAMES)
    problems = list(reading.problems)
    tags = _read_tags(reading.fields, problems) if reading.fields is not None else ()
    return ParsedTags(tags, tuple(problems))


def _read_optional(fields: Mapping[str, object], names: tuple[str, ...], problems: list[Problem]) -> str:
    text = read_text(fields, names, max_chars=MAX_REFLECTION_TEXT_CHARS)
    if isinstance(text, str):
        return text
    if text.kind not in (ProblemKind.MISSING_FIELD, ProblemKind.EMPTY_TEXT):
        problems.append(text)
    return ""


def _read_tags(fields: Mapping[str, object], problems: list[Problem]) -> tuple[Tag, ...]:
    items = read_list(fields, _TAGS_NAMES)
    if isinstance(items, Problem):
        problems.append(items)
        return ()
    tags: dict[str, Tag] = {}
    for item in items:
        tag = _read_tag(item)
        if isinstance(tag, Problem):
            problems.append(tag)
        elif tag.id.casefold() in tags:
            # The first verdict wins: one answer must not count an entry twice.
            problems.append(Problem(ProblemKind.DUPLICATE, f"a second verdict ({tag.tag}) on {tag.id}"))
        else:
            tags[tag.id.casefold()] = tag
    return tuple(tags.values())


def _read_tag(item: object) -> Tag | Problem:
    fields = named_fields(item, "a tag")
    if isinstance(fields, Problem):
        return fields
    id_ = read_entry_id(first_present(fields, _TAG_ID_NAMES))
    if isinstance(id_, Problem):
        return id_
    verdict = first_present(fields, _TAG_NAMES)
    if verdict is None:
        return Problem(ProblemKind.MISSING_FIELD, f"no verdict on {id_}")
    if not isinstance(verdict, str):
        return Problem(ProblemKind.WRONG_TYPE, f"the verdict on {id_} is a {type(verdict).__name__}, not a text")
    for kind in TAG_KINDS:
        if clean_text(verdict).casefold() == kind:
            return Tag(id_, kind)
    return Problem(ProblemKind.UNKNOWN_TAG, f"{verdict[:80]!r} on {id_} is none of {', '.join(TAG_KINDS)}")
