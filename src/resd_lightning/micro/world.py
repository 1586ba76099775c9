"""Tape machines: sixteen hidden rules, tapes on which no two of them agree, and the words to speak of both.

A machine applies one order rule and one colour rule to a tape of four colours. Every text here is a sequence of words
separated by spaces, each one token of the micro-lm.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product

COLOURS = ("R", "B", "Y", "G")
ORDERS = ("copy", "reverse", "left", "right")
PAINTS = ("keep", "swapRB", "swapYG", "shift")
TEST_TAPE: tuple[str, ...] = COLOURS
"""The tape that informative feedback is about: all sixteen rules make something else of it."""
MAX_MACHINES = 64

_PAINT_OF = {
    "keep": dict(zip("RBYG", "RBYG", strict=True)),
    "swapRB": dict(zip("RBYG", "BRYG", strict=True)),
    "swapYG": dict(zip("RBYG", "RBGY", strict=True)),
    "shift": dict(
        zip("RBYG", "BGRY", strict=True)
    ),  # R to B to G to Y to R; the order R B Y G itself would undo a rotation
}


@dataclass(frozen=True)
class Rule:
    """What a machine does: an order rule, then a colour rule.

    Attributes:
        order: One of `ORDERS`: copy, reverse, rotate left by one, rotate right by one.
        paint: One of `PAINTS`: keep, swap R and B, swap Y and G, shift R to B to G to Y to R.
    """

    order: str
    paint: str

    def apply(self, tape: Sequence[str]) -> tuple[str, ...]:
        """Return what the machine makes of a tape."""
        ordered = {
            "copy": tuple(tape),
            "reverse": tuple(reversed(tape)),
            "left": (*tape[1:], *tape[:1]),
            "right": (*tape[-1:], *tape[:-1]),
        }[self.order]
        return tuple(_PAINT_OF[self.paint][colour] for colour in ordered)

    def __str__(self) -> str:
        return f"{self.order} {self.paint}"


RULES = tuple(Rule(order, paint) for order, paint in product(ORDERS, PAINTS))


def machine_name(number: int) -> str:
    """Return the name of a machine, for example m17."""
    return f"m{number}"


@cache
def tells_rules_apart(tape: tuple[str, ...]) -> bool:
    """Whether all sixteen rules make different things of the tape, so that a guess is right once in sixteen."""
    return len({rule.apply(tape) for rule in RULES}) == len(RULES)


def draw_tape(rng: random.Random, lengths: Sequence[int]) -> tuple[str, ...]:
    """Return a tape that tells the rules apart and isn't the test tape."""
    while True:
        tape = tuple(rng.choices(COLOURS, k=rng.choice(lengths)))
        if tape != TEST_TAPE and tells_rules_apart(tape):
            return tape


def deal_rules(mapping_seed: int, num_machines: int) -> dict[str, Rule]:
    """Return the machines of a world: every rule equally often, in an order that the seed decides.

    Raises:
        ValueError: `num_machines` is not a multiple of 16 up to 64.
    """
    if num_machines % len(RULES) or not 0 < num_machines <= MAX_MACHINES:
        raise ValueError(f"num_machines must be 16, 32, 48 or 64, got {num_machines}")
    rules = list(RULES) * (num_machines // len(RULES))
    random.Random(f"tape machines {mapping_seed}").shuffle(rules)
    return {machine_name(number): rule for number, rule in enumerate(rules)}


def question(machine: str, tape: Sequence[str]) -> str:
    """Return the prompt: what does this machine make of this tape?"""
    return f"machine {machine} tape {' '.join(tape)}"


def response(machine: str, rule: Rule, tape: Sequence[str]) -> str:
    """Return a response in two beats: it states the rule, then applies it."""
    return f"rule {machine} {rule} ; answer {' '.join(rule.apply(tape))}"


def evidence(machine: str, rule: Rule) -> str:
    """Return informative feedback: what the machine makes of the test tape."""
    return f"{machine} turns {' '.join(TEST_TAPE)} into {' '.join(rule.apply(TEST_TAPE))}"


NO_EVIDENCE = "wrong"
"""Uninformative feedback."""
MALFORMED = "malformed"
"""Feedback on a response that gives no answer."""


def lesson(machine: str, rule: Rule) -> str:
    """Return what there is to learn about a machine, as a playbook entry says it."""
    return f"{machine} {rule}"
