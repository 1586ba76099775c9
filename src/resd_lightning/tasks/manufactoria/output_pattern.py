"""Whether a final tape is, or fully matches, an expected output.

Matching steps a set of remaining expressions over the tape (Antimirov's partial derivatives), so that it takes time in
proportion to pattern times tape. The `re` module backtracks: a pattern such as `(R*)*B` would hang verification.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Final

from resd_lightning.tasks.manufactoria.machine import COLOURS

_MAX_TOKENS: Final = 200  # bounds the depth of the recursion
_MAX_NODES: Final = 200  # of an expression with its {m,n} written out; bounds the time per symbol
_TOKEN: Final = re.compile(r"\[\^?(?:[A-Z](?:-[A-Z])?)+\]|\{\d{1,3}(?:,\d{0,3})?\}|\(\?:|[()|*+?.]|[A-Z]")


@dataclass(frozen=True, slots=True)
class _Symbol:
    colours: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Cat:
    parts: tuple[_Expression, ...]  # the empty one matches the empty tape


@dataclass(frozen=True, slots=True)
class _Alt:
    choices: tuple[_Expression, ...]


@dataclass(frozen=True, slots=True)
class _Star:
    body: _Expression


_Expression = _Symbol | _Cat | _Alt | _Star


class _UnsupportedError(ValueError):
    """The text is no expression of the kind matched here."""


def matches_output(expected: str, tape: str) -> bool:
    """Whether the tape equals the expected output, or fully matches it as a regular expression.

    Understood are colours, `.`, classes, groups, `|`, `*`, `+`, `?`, `{m,n}`, lazy forms and the anchors `^` and `$` at
    the ends. Anything else, an invalid expression included, is compared as plain text only.
    """
    if expected == tape:
        return True
    expression = _compile(expected)
    if expression is None:
        return False
    remaining: frozenset[_Expression] = frozenset((expression,))
    for colour in tape:
        remaining = frozenset(rest for part in remaining for rest in _after(part, colour))
        if not remaining:
            return False
    return any(_is_nullable(part) for part in remaining)


def _is_nullable(expression: _Expression) -> bool:
    match expression:
        case _Symbol():
            return False
        case _Star():
            return True
        case _Cat(parts):
            return all(_is_nullable(part) for part in parts)
        case _Alt(choices):
            return any(_is_nullable(choice) for choice in choices)


@functools.lru_cache(maxsize=20_000)
def _after(expression: _Expression, colour: str) -> frozenset[_Expression]:
    """Return the expressions one of which the rest has to match, once the colour is read."""
    match expression:
        case _Symbol(colours):
            return frozenset((_Cat(()),)) if colour in colours else frozenset()
        case _Alt(choices):
            return frozenset(rest for choice in choices for rest in _after(choice, colour))
        case _Star(body):
            return frozenset(_join(rest, (expression,)) for rest in _after(body, colour))
        case _Cat(parts):
            found: set[_Expression] = set()
            for at, part in enumerate(parts):
                found.update(_join(rest, parts[at + 1 :]) for rest in _after(part, colour))
                if not _is_nullable(part):
                    break
            return frozenset(found)


def _join(first: _Expression, others: tuple[_Expression, ...]) -> _Expression:
    head = first.parts if isinstance(first, _Cat) else (first,)
    return _Cat((*head, *others))


@functools.lru_cache(maxsize=1_000)
def _compile(pattern: str) -> _Expression | None:
    """Return the expression, or None for a text that is to be compared as it stands."""
    body = pattern.removeprefix("^")
    if body.endswith("$"):
        body = body[:-1]
    tokens = _TOKEN.findall(body)
    if "".join(tokens) != body or len(tokens) > _MAX_TOKENS:
        return None
    try:
        expression, end = _read_alternatives(tokens, 0)
        return expression if end == len(tokens) and _size(expression) <= _MAX_NODES else None
    except _UnsupportedError:
        return None


def _read_alternatives(tokens: list[str], at: int) -> tuple[_Expression, int]:
    choices: list[_Expression] = []
    while True:
        parts: list[_Expression] = []
        while at < len(tokens) and tokens[at] not in ("|", ")"):
            part, at = _read_repeated(tokens, at)
            parts.append(part)
        choices.append(_Cat(tuple(parts)))
        if at == len(tokens) or tokens[at] == ")":
            return (choices[0] if len(choices) == 1 else _Alt(tuple(choices))), at
        at += 1


def _read_repeated(tokens: list[str], at: int) -> tuple[_Expression, int]:
    atom, at = _read_atom(tokens, at)
    if at == len(tokens) or tokens[at][0] not in "*+?{":
        return atom, at
    quantifier = tokens[at]
    at += 1
    if at < len(tokens) and tokens[at] == "?":  # lazy: the same, where the whole tape has to match
        at += 1
    if quantifier[0] != "{":
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[quantifier]
    else:
        first, comma, last = quantifier[1:-1].partition(",")
        low = int(first)
        high = (int(last) if last else None) if comma else low
    if high is not None and high < low:
        raise _UnsupportedError
    required = (atom,) * low
    optional: tuple[_Expression, ...] = (_Star(atom),) if high is None else (_Alt((_Cat(()), atom)),) * (high - low)
    repeated = _Cat((*required, *optional))
    if _size(repeated) > _MAX_NODES:
        raise _UnsupportedError
    return repeated, at


def _read_atom(tokens: list[str], at: int) -> tuple[_Expression, int]:
    token = tokens[at]
    if token in ("(", "(?:"):
        body, at = _read_alternatives(tokens, at + 1)
        if at == len(tokens):
            raise _UnsupportedError
        return body, at + 1
    if token == ".":
        return _Symbol(frozenset(COLOURS)), at + 1
    if token[0] == "[":
        try:
            members = re.compile(token)
        except re.error as error:
            raise _UnsupportedError from error
        return _Symbol(frozenset(filter(members.fullmatch, COLOURS))), at + 1
    if token[0] in "*+?{":
        raise _UnsupportedError
    return _Symbol(frozenset(token)), at + 1


def _size(expression: _Expression) -> int:
    match expression:
        case _Symbol():
            return 1
        case _Star(body):
            return 1 + _size(body)
        case _Cat(parts) | _Alt(parts):
            return 1 + sum(_size(part) for part in parts)
