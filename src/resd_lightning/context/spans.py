"""Where in a model's answer an object may stand: brackets followed over text that may be broken or cut."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_DEPTH = 32
"""Levels of nesting; the schemas need four. Deeper text is a loop that the model fell into, not an answer."""
# These bound the time that an answer of nothing but brackets can take.
MAX_OBJECTS = 64
MAX_UNCLOSED = 4

# An opening brace that a first key, a comment or the closing brace follows: prose such as {1, 2}, \frac{1}{2} or
# {{ name }} doesn't start an object.
_OBJECT_START = re.compile(r"""\{(?=\s*(?:["'“}#]|//|/\*|\w+\s*:))""")
_JSON_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|["{}\[\],:]', re.DOTALL)
_CLOSER = {"{": "}", "[": "]"}


@dataclass(frozen=True)
class Span:
    """A stretch of an answer that may be an object.

    Attributes:
        text: From the opening brace to its closing one, or to the end of the answer.
        is_closed: The closing brace was found.
        ends_in_text: Going by the double quotes, the span ends inside a text.
        depth: Levels of nesting.
        complete: The text up to its last complete value, brackets closed: all there is to trust in a cut answer. Empty
            where quotes and brackets contradict each other.
    """

    text: str
    is_closed: bool
    ends_in_text: bool
    depth: int
    complete: str


def find_spans(answer: str) -> Iterator[Span]:
    """Yield the outermost objects of the answer in order, and each place where one opens and never closes."""
    position, unclosed = 0, 0
    for _ in range(MAX_OBJECTS):
        start = _OBJECT_START.search(answer, position)
        if start is None or unclosed == MAX_UNCLOSED:
            return
        span = _span_from(answer, start.start())
        unclosed += not span.is_closed
        yield span
        position = start.start() + (len(span.text) if span.is_closed else 1)


def _span_from(answer: str, start: int) -> Span:
    """Follow brackets from an opening brace; text in double quotes doesn't count."""
    open_brackets: list[str] = []
    depth = 0
    complete_end, closers = start + 1, "}"
    token, previous, string_end = "", "", -1
    for match in _JSON_TOKEN.finditer(answer, start):
        token = match[0]
        if token == '"':  # opens a text that never ends
            break
        if token in _CLOSER:
            open_brackets.append(token)
            depth = max(depth, len(open_brackets))
            if depth > MAX_DEPTH:
                break
        elif token in _CLOSER.values():
            open_brackets.pop()  # a bracket of the wrong kind is the mending's business
            complete_end, closers = match.end(), _closing(open_brackets)
            if not open_brackets:
                return _closed_span(answer, start, match.end(), depth)
        elif token == ",":
            complete_end, closers = match.start(), _closing(open_brackets)
        elif len(token) > 1 and (previous == ":" or open_brackets[-1] == "["):
            string_end = match.end()
        previous = token
    if string_end > 0 and not answer[string_end:].strip("` \n\t"):
        # Only closing brackets are missing: the last value is whole.
        complete_end, closers = string_end, _closing(open_brackets)
    return Span(answer[start:], False, token == '"', depth, answer[start:complete_end] + closers)


def _closed_span(answer: str, start: int, end: int, depth: int) -> Span:
    # A quote right behind the last brace: the brace stood in a text with quotes of its own, and what looks like an
    # object is half of one. Unless the whole object is quoted.
    if answer[end : end + 1] == '"' and answer[start - 1 : start] != '"':
        return Span(answer[start:], False, False, depth, "")
    return Span(answer[start:end], True, False, depth, answer[start:end])


def _closing(open_brackets: list[str]) -> str:
    return "".join(_CLOSER[bracket] for bracket in reversed(open_brackets))
