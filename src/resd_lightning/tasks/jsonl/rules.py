"""When an answer is right: the ways to compare it with the one expected."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from importlib.util import find_spec
from math import isfinite
from typing import Final, Literal, get_args

Match = Literal["exact", "normalised", "numeric", "math_verify", "regex"]
MATCHES: Final[tuple[Match, ...]] = get_args(Match)

_OPENERS: Final = "\"'`*_([{<“‘«„¿¡"  # noqa: RUF001  # quotation marks as people write them
_CLOSERS: Final = "\"'`*_)]}>”’»“.,;:!?…"  # noqa: RUF001  # likewise
"""Punctuation that normalising takes off an answer's ends; no sign and no leading point, as -5 and .5 are not 5."""

_NUMBER: Final = re.compile(
    r"""
    (?<![\w.])                                  # not the end of a word such as x2, or of another number
    (?P<sign> (?<!\d\s) [-+] )? \$?             # 3 - 2 ends in the number 2
    (?P<value> (?: \d{1,3}(?:,\d{3}){1,8}(?!,?\d) | \d+ ) (?:\.\d*)? | \.\d+ )
    (?P<exponent> [eE][-+]?\d+ )?
    (?: \s?/\s? (?P<divisor> \d+(?:\.\d+)? ) )?
    """,
    re.VERBOSE | re.ASCII,
)
"""A number in a text: sign, thousands with commas, point, exponent; or a fraction of two.

The bound on thousands keeps a long list such as 1,111,111,11 from being read again from each of its commas.
"""


@dataclass(frozen=True)
class Tolerance:
    """How far a number may be off: by the larger of the two.

    Attributes:
        absolute: In the number's own unit.
        relative: As a share of the expected number.
    """

    absolute: float
    relative: float

    def allows(self, found: float, expected: float) -> bool:
        """Return whether two numbers are near enough."""
        return abs(found - expected) <= max(self.absolute, self.relative * abs(expected))


@dataclass(frozen=True)
class Rule:
    """One condition on a response: its answer matches the expected one.

    Attributes:
        match: How they are compared. exact: character for character. normalised: apart from case, spaces and
            punctuation at the ends. numeric: the answer's last number is near enough. math_verify: the same value or
            expression, by the package math-verify. regex: the expected one is a pattern that is found somewhere in the
            response, whatever part of it is the answer.
        answer: The expected answer, or the pattern.

    Raises:
        ValueError: The expected answer makes no sense for the way to compare.
    """

    match: Match
    answer: str

    def __post_init__(self) -> None:
        if self.match not in MATCHES:
            raise ValueError(f"match must be one of {', '.join(MATCHES)}, got {self.match!r}")
        if self.match == "normalised" and not normalise(self.answer):
            raise ValueError(f"answer {self.answer!r} has nothing left when normalised: use match exact for it")
        if self.match == "numeric" and read_number(self.answer) is None:
            raise ValueError(f"answer must be a number for match numeric, got {self.answer!r:.60}")
        if self.match == "math_verify" and find_spec("math_verify") is None:
            raise ValueError("match math_verify needs the extra `math`: pip install 'resd-lightning[math]'")
        if self.match == "regex":
            try:
                re.compile(self.answer)
            except re.error as error:
                raise ValueError(f"answer {self.answer!r:.60} is no regular expression: {error}") from error

    def holds(self, response: str, found: str | None, tolerance: Tolerance) -> bool:
        """Return whether a response keeps the rule.

        Args:
            response: The whole response without its thinking.
            found: The answer in it, if there is one.
            tolerance: For numeric.
        """
        if self.match == "regex":
            return re.search(self.answer, response) is not None
        if found is None:
            return False
        if self.match == "exact":
            return found == self.answer.strip()
        if self.match == "normalised":
            return normalise(found) == normalise(self.answer)
        if self.match == "numeric":
            number, expected = last_number(found), read_number(self.answer)
            return number is not None and expected is not None and tolerance.allows(number, expected)
        return _is_same_mathematics(found, self.answer)

    def kind(self, tolerance: Tolerance) -> str:
        """Return words for what the rule expects, without the expected answer."""
        if self.match == "numeric":
            return f"a number (within {tolerance.absolute:g}, or {tolerance.relative:g} of its value)"
        return {
            "exact": "a certain text, character for character",
            "normalised": "a certain text, whatever its case, spaces and punctuation at the ends",
            "math_verify": "a certain mathematical value or expression",
            "regex": "a response in which a certain pattern is found",
        }[self.match]


def normalise(text: str) -> str:
    """Return the text in lower case, single-spaced, without punctuation at its ends."""
    words = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return words.lstrip(_OPENERS + " ").rstrip(_CLOSERS + " ")


def last_number(text: str) -> float | None:
    """Return the last number in a text; None if there is none, or if it is beyond what a float holds."""
    numbers = list(_NUMBER.finditer(text.replace("\N{MINUS SIGN}", "-")))
    return _value(numbers[-1]) if numbers else None


def read_number(text: str) -> float | None:
    """Return the number that a text is; None if it is anything else."""
    match = _NUMBER.fullmatch(text.replace("\N{MINUS SIGN}", "-").strip())
    return None if match is None else _value(match)


def _value(match: re.Match[str]) -> float | None:
    value = float(match["value"].replace(",", "") + (match["exponent"] or ""))
    if match["divisor"] is not None:
        divisor = float(match["divisor"])
        if divisor == 0:
            return None
        value /= divisor
    value = -value if match["sign"] == "-" else value
    return value if isfinite(value) else None


def _is_same_mathematics(found: str, expected: str) -> bool:
    from math_verify import verify

    gold = _read_mathematics(expected)
    if not gold:
        raise ValueError(f"math-verify reads no mathematics in the expected answer {expected!r:.60}")
    # Without its own time limit: that is an alarm, which would take the place of the verifier's.
    return bool(verify(gold, _read_mathematics(found), timeout_seconds=None))


def _read_mathematics(text: str) -> list[object]:
    """Return what math-verify makes of a text: expressions and the texts they were read from.

    Without marks around it, LaTeX is read in parts only (of `2^{10}` the 2), so a bare answer is first read with marks.
    """
    from math_verify import parse

    if not any(mark in text for mark in ("$", r"\(", r"\[", r"\boxed")):
        marked: list[object] = parse(f"${text}$", parsing_timeout=None)
        if any(not isinstance(part, str) for part in marked):
            return marked
    return list(parse(text, parsing_timeout=None))
