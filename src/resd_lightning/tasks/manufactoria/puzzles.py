"""The three families of puzzles: which tapes each accepts, in a sentence and as a predicate."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from resd_lightning.tasks.manufactoria.machine import COLOURS

FAMILIES: Final = ("contains_count", "contains_ordered", "contains_substring")
DIFFICULTIES: Final = ("easy", "medium", "hard")
FAMILY_SIZES: Final = {"contains_count": 194, "contains_ordered": 340, "contains_substring": 340}
_MAX_PATTERN: Final = 6
_PATTERNS_BY_LENGTH: Final = {1: 4, 2: 16, 3: 64, 4: 96, 5: 80, 6: 80}  # 340; all there are up to length 3


class Puzzle(Protocol):
    """A set of tapes to accept."""

    @property
    def family(self) -> str:
        """One of `FAMILIES`."""
        ...

    @property
    def pattern(self) -> str:
        """The shortest accepted tape, of one to six colours."""
        ...

    @property
    def statement(self) -> str:
        """The problem in words, as the prompt puts it."""
        ...

    @property
    def difficulty(self) -> Literal["easy", "medium", "hard"]:
        """By the states that a program has to tell apart."""
        ...

    def accepts(self, tape: str) -> bool:
        """Whether a right program accepts the tape."""
        ...


@dataclass(frozen=True)
class Substring:
    """Accept tapes that hold the pattern in one piece."""

    pattern: str
    family: str = "contains_substring"

    @property
    def statement(self) -> str:
        """The problem in words."""
        return f"contain {_spell(self.pattern)} as neighbouring symbols in exactly this order, anywhere on the tape"

    @property
    def difficulty(self) -> Literal["easy", "medium", "hard"]:
        """Easy up to two colours, medium up to four."""
        return _grade(len(self.pattern))

    def accepts(self, tape: str) -> bool:
        """Whether the tape holds the pattern."""
        return self.pattern in tape


@dataclass(frozen=True)
class Ordered:
    """Accept tapes that hold the pattern's colours in its order, with anything in between."""

    pattern: str
    family: str = "contains_ordered"

    @property
    def statement(self) -> str:
        """The problem in words."""
        return (
            f"contain {_spell(self.pattern)} in this order, with any number of other symbols before, between or after"
        )

    @property
    def difficulty(self) -> Literal["easy", "medium", "hard"]:
        """Easy up to two colours, medium up to four."""
        return _grade(len(self.pattern))

    def accepts(self, tape: str) -> bool:
        """Whether the pattern is a subsequence of the tape."""
        rest = iter(tape)
        return all(colour in rest for colour in self.pattern)


@dataclass(frozen=True)
class Bound:
    """How often one colour has to occur: at least, or exactly, `count` times."""

    colour: str
    count: int
    is_exact: bool

    def holds(self, tape: str) -> bool:
        """Whether the tape keeps the bound."""
        found = tape.count(self.colour)
        return found == self.count if self.is_exact else found >= self.count


@dataclass(frozen=True)
class Count:
    """Accept tapes in which one colour, or each of two, occurs as often as asked."""

    bounds: tuple[Bound, ...]
    family: str = "contains_count"

    @property
    def pattern(self) -> str:
        """The wanted colours, each as often as asked."""
        return "".join(bound.colour * bound.count for bound in self.bounds)

    @property
    def statement(self) -> str:
        """The problem in words."""
        parts = (f"{'exactly' if b.is_exact else 'at least'} {b.count} {b.colour}" for b in self.bounds)
        return f"contain {' and '.join(parts)}, at any positions"

    @property
    def difficulty(self) -> Literal["easy", "medium", "hard"]:
        """As for a pattern of the same length, but never easy with two colours to count at once."""
        return _grade(len(self.pattern) if len(self.bounds) == 1 else max(3, len(self.pattern)))

    def accepts(self, tape: str) -> bool:
        """Whether the tape keeps all bounds."""
        return all(bound.holds(tape) for bound in self.bounds)


def all_puzzles(seed: int) -> tuple[Puzzle, ...]:
    """Return the 874 distinct puzzles of a seed, shuffled; families have the sizes of the paper's dataset."""
    rng = random.Random(f"manufactoria puzzles {seed}")
    puzzles: list[Puzzle] = [*_counts(rng)]
    puzzles += [Ordered(pattern) for pattern in _patterns(rng)]
    puzzles += [Substring(pattern) for pattern in _patterns(rng)]
    rng.shuffle(puzzles)
    return tuple(puzzles)


def _patterns(rng: random.Random) -> list[str]:
    """Draw 340 patterns: every short one, and of each greater length some."""
    chosen: list[str] = []
    for length, number in _PATTERNS_BY_LENGTH.items():
        chosen += rng.sample(["".join(colours) for colours in itertools.product(COLOURS, repeat=length)], number)
    return chosen


def _counts(rng: random.Random) -> list[Count]:
    """Draw 194 counts: all 48 of one colour, and of two colours the 90 without "exactly" and some with it."""
    one = [
        Count((Bound(colour, count, is_exact),))
        for colour in COLOURS
        for count in range(1, _MAX_PATTERN + 1)
        for is_exact in (False, True)
    ]
    pairs = [(a, b) for a in range(1, _MAX_PATTERN) for b in range(1, _MAX_PATTERN) if a + b <= _MAX_PATTERN]
    at_least = [
        Count((Bound(first, a, False), Bound(second, b, False)))
        for first, second in itertools.combinations(COLOURS, 2)
        for a, b in pairs
    ]
    exact = [
        Count((Bound(first, a, True), Bound(second, b, False)))
        for first, second in itertools.permutations(COLOURS, 2)
        for a, b in pairs
    ]
    return [*one, *at_least, *rng.sample(exact, FAMILY_SIZES["contains_count"] - len(one) - len(at_least))]


def _spell(symbols: Sequence[str]) -> str:
    return f"`{''.join(symbols)}`"


def _grade(length: int) -> Literal["easy", "medium", "hard"]:
    if length <= 2:
        return "easy"
    return "medium" if length <= 4 else "hard"
