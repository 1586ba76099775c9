"""The generated dataset: 874 problems of a seed with their test tapes, dealt into train and test."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, Literal

from resd_lightning.tasks.manufactoria.cases import TapeCase
from resd_lightning.tasks.manufactoria.puzzles import Puzzle, all_puzzles
from resd_lightning.tasks.manufactoria.tapes import draw_tapes

TEST_SIZE: Final = 132
"""742 problems of the 874 are left for training (RESD, Tasks)."""


@dataclass(frozen=True)
class Generated:
    """One generated problem.

    Attributes:
        id: Such as "has-train-0001": its place in the split, whatever is filtered out later.
        puzzle: What to accept.
        cases: Its test tapes with the verdict on each.
    """

    id: str
    puzzle: Puzzle
    cases: tuple[TapeCase, ...]


def generate(seed: int, split: Literal["train", "test"]) -> tuple[Generated, ...]:
    """Return one split of the 874 problems. The same seed gives the same problems and tapes on every machine."""
    puzzles = all_puzzles(seed)
    chosen = puzzles[TEST_SIZE:] if split == "train" else puzzles[:TEST_SIZE]
    return tuple(_problem(f"has-{split}-{number:04d}", puzzle, seed) for number, puzzle in enumerate(chosen, start=1))


def _problem(identifier: str, puzzle: Puzzle, seed: int) -> Generated:
    # Seeded by what the puzzle says, not by where it stands: its tapes stay when the order changes.
    rng = random.Random(f"manufactoria tapes {seed} {puzzle.family} {puzzle.statement}")
    cases = tuple(
        TapeCase(input=tape, expected_output="", expected_accepted=puzzle.accepts(tape), check_output=False)
        for tape in draw_tapes(puzzle, rng)
    )
    return Generated(identifier, puzzle, cases)
