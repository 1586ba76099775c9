"""Test tapes for a puzzle: near misses first, so that a program that is almost right fails some of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Final

from resd_lightning.tasks.manufactoria.machine import COLOURS
from resd_lightning.tasks.manufactoria.puzzles import Puzzle

MAX_TAPES: Final = 35
MAX_TAPE_LENGTH: Final = 20
_ACCEPTED: Final = 17
_REJECTED: Final = MAX_TAPES - _ACCEPTED
_NEAR_SHARE: Final = 0.6  # of each kind; the rest is random, longer, and hits what nobody thought of
_RANDOM_DRAWS: Final = 400


def draw_tapes(puzzle: Puzzle, rng: random.Random) -> tuple[str, ...]:
    """Return up to 35 distinct tapes of at most 20 colours, shortest first, the empty one among them.

    About half are to be accepted. The pattern itself is always there, and most of the rejected miss it by little.
    """
    chosen: dict[bool, set[str]] = {True: set(), False: set()}
    word = puzzle.pattern
    # The nearest misses are never left to chance: a pattern cut short, and a count that is off by one either way.
    for tape in ("", word, word[:-1], word[1:], word[0] + word, word + word[-1]):
        chosen[puzzle.accepts(tape)].add(tape)
    for tapes, share in ((_near_misses(word, rng), _NEAR_SHARE), (_random_tapes(word, rng), 1.0)):
        limits = {True: round(_ACCEPTED * share), False: round(_REJECTED * share)}
        for tape in tapes:
            kind = puzzle.accepts(tape)
            if len(chosen[kind]) < limits[kind]:
                chosen[kind].add(tape)
            if all(len(chosen[kind]) >= limit for kind, limit in limits.items()):
                break
    return tuple(sorted(chosen[True] | chosen[False], key=lambda tape: (len(tape), tape)))


def _near_misses(pattern: str, rng: random.Random) -> list[str]:
    """Edit the pattern in every small way, alone and in noise; the puzzle says which edits still count."""
    edits = [pattern[:-1], pattern[1:], pattern[::-1], pattern * 2, pattern[:-1] * 3]
    for at in range(len(pattern)):
        edits.append(pattern[:at] + pattern[at + 1 :])  # one colour missing: counts are off by one
        edits.append(pattern[:at] + pattern[at] + pattern[at:])  # one colour doubled
        edits.append(pattern[:at] + pattern)  # a false start, which a matcher must fall back from
        edits += [pattern[:at] + colour + pattern[at + 1 :] for colour in COLOURS if colour != pattern[at]]
        edits += [pattern[:at] + colour + pattern[at:] for colour in COLOURS]  # a stranger in between
    edits = [edit for edit in dict.fromkeys(edits) if 0 < len(edit) <= MAX_TAPE_LENGTH]
    surrounded = [
        _noise(rng, rng.randint(0, room // 2)) + edit + _noise(rng, rng.randint(0, room // 2))
        for edit in edits
        for room in (MAX_TAPE_LENGTH - len(edit),)
    ]
    tapes = edits + surrounded
    rng.shuffle(tapes)
    return tapes


def _random_tapes(pattern: str, rng: random.Random) -> Iterator[str]:
    """Draw tapes of all lengths: noise, noise without one colour, and the pattern's colours scattered in noise."""
    for _ in range(_RANDOM_DRAWS):
        length = rng.randint(1, MAX_TAPE_LENGTH)
        yield _noise(rng, length)
        others = COLOURS.replace(rng.choice(COLOURS), "")
        yield _noise(rng, length, others)
        scattered = list(_noise(rng, rng.randint(0, MAX_TAPE_LENGTH - len(pattern)), others))
        places = sorted(rng.randint(0, len(scattered)) for _ in pattern)
        for offset, (place, colour) in enumerate(zip(places, pattern, strict=True)):
            scattered.insert(place + offset, colour)
        yield "".join(scattered)


def _noise(rng: random.Random, length: int, colours: str = COLOURS) -> str:
    return "".join(rng.choices(colours, k=length))
