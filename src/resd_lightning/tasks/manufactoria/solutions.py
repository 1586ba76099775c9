"""A right program for every puzzle: proof that each can be solved, and realistic load for the interpreter.

Nothing of this reaches a prompt or a feedback text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from resd_lightning.tasks.manufactoria.machine import COLOURS, END_ID, NONE_ID
from resd_lightning.tasks.manufactoria.puzzles import Count, Ordered, Puzzle, Substring

_State = tuple[int, ...]
_Step = Callable[[_State, str], _State]


def solve(puzzle: Puzzle) -> str:
    """Return a program that accepts exactly the puzzle's tapes, by way of a finite automaton.

    A state reads one symbol with two pullers: a puller leaves colours that are not its own, so PULLER_RB's EMPTY branch
    goes on to PULLER_YG, whose EMPTY branch is taken only at the end of the tape.

    Raises:
        TypeError: The puzzle is of a family that this does not know.
    """
    start, step, is_accepting = _automaton(puzzle)
    names: Final[dict[_State, str]] = {start: "q0"}
    lines = ["START start:", f"    NEXT {names[start]}"]
    waiting = [start]
    while waiting:
        state = waiting.pop()
        targets: dict[str, str] = {}
        for colour in COLOURS:
            after = step(state, colour)
            if _is_trap(after, step):
                targets[colour] = END_ID if is_accepting(after) else NONE_ID
                continue
            if after not in names:
                names[after] = f"q{len(names)}"
                waiting.append(after)
            targets[colour] = names[after]
        name = names[state]
        verdict = END_ID if is_accepting(state) else NONE_ID
        lines += [f"PULLER_RB {name}:", *(f"    [{c}] {targets[c]}" for c in "RB"), f"    [EMPTY] {name}_yg"]
        lines += [f"PULLER_YG {name}_yg:", *(f"    [{c}] {targets[c]}" for c in "YG"), f"    [EMPTY] {verdict}"]
    return "\n".join([*lines, "END end"])


def _automaton(puzzle: Puzzle) -> tuple[_State, _Step, Callable[[_State], bool]]:
    """Return the start state, the transition function and the accepting states of a puzzle."""
    match puzzle:
        case Substring(pattern=pattern):
            return (0,), _substring_step(pattern), lambda state: state == (len(pattern),)
        case Ordered(pattern=pattern):
            full = len(pattern)
            return (
                (0,),
                lambda state, colour: (state[0] + (state[0] < full and pattern[state[0]] == colour),),
                lambda state: state == (full,),
            )
        case Count(bounds=bounds):
            return (
                (0,) * len(bounds),
                lambda state, colour: tuple(
                    # an exact count has to see one too many, a lower bound stops counting when it is met
                    min(seen + (bound.colour == colour), bound.count + bound.is_exact)
                    for seen, bound in zip(state, bounds, strict=True)
                ),
                lambda state: state == tuple(bound.count for bound in bounds),
            )
        case _:
            raise TypeError(f"no automaton for a {type(puzzle).__name__}")


def _substring_step(pattern: str) -> _Step:
    """Knuth-Morris-Pratt as an automaton: the state is the longest prefix that the tape so far ends with."""

    def step(state: _State, colour: str) -> _State:
        (matched,) = state
        if matched == len(pattern):
            return state
        ending = pattern[:matched] + colour
        return (max(length for length in range(len(ending) + 1) if ending.endswith(pattern[:length])),)

    return step


def _is_trap(state: _State, step: _Step) -> bool:
    """Whether the rest of the tape changes nothing any more."""
    return all(step(state, colour) == state for colour in COLOURS)
