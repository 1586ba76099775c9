"""The asserts of an example, read as what they say and never executed."""

from __future__ import annotations

import ast
import math
from dataclasses import dataclass
from typing import Final

FUNCTION: Final = "predict_position"
MAX_ASSERT_CHARS: Final = 10_000
_FORM: Final = f"assert check_distance({FUNCTION}(t), [[x, y], ...]) <= tolerance"


@dataclass(frozen=True)
class PositionTest:
    """One assert: where the objects are at one time.

    Attributes:
        t: The time, in seconds.
        positions: The right [x, y] of each object.
        tolerance: Largest mean distance that passes, in the positions' unit.
    """

    t: float
    positions: tuple[tuple[float, float], ...]
    tolerance: float


def read_asserts(value: object) -> tuple[PositionTest, ...]:
    """Return the tests of an answer or a decoded ground truth.

    Raises:
        ValueError: The value is no sequence of asserts of the one form, or an empty one; the text names the assert.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"the asserts must be a list of strings, got {type(value).__name__}")
    if not value:
        raise ValueError("the asserts must not be an empty list")
    tests = []
    for number, text in enumerate(value, start=1):
        if not isinstance(text, str):
            raise ValueError(f"assert {number} must be a string, got {type(text).__name__}")
        try:
            tests.append(_read(text))
        except ValueError as error:
            raise ValueError(f"assert {number} must have the form `{_FORM}`: {error}, in {text[:80]!r}") from error
    return tuple(tests)


def _read(text: str) -> PositionTest:
    if len(text) > MAX_ASSERT_CHARS:
        raise ValueError(f"it has {len(text)} characters, at most {MAX_ASSERT_CHARS} are read")
    try:
        body = ast.parse(text.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # what the parser has for deep nesting
        raise ValueError(f"it is no Python ({type(error).__name__})") from error
    match body:
        case [
            ast.Assert(
                test=ast.Compare(
                    left=ast.Call(
                        func=ast.Name(id="check_distance"),
                        args=[
                            ast.Call(func=ast.Name(id="predict_position"), args=[t], keywords=[]),
                            ast.List(elts=positions),
                        ],
                        keywords=[],
                    ),
                    ops=[ast.LtE()],
                    comparators=[tolerance],
                ),
                msg=None,
            )
        ]:
            read = PositionTest(_number(t), tuple(_pair(pair) for pair in positions), _number(tolerance))
        case _:
            raise ValueError("it says something else")
    if not read.positions:
        raise ValueError("it has no positions")
    if read.tolerance <= 0:
        raise ValueError("the tolerance must be above 0")
    return read


def _pair(node: ast.expr) -> tuple[float, float]:
    match node:
        case ast.List(elts=[x, y]) | ast.Tuple(elts=[x, y]):
            return _number(x), _number(y)
    raise ValueError("a position must be [x, y]")


def _number(node: ast.expr) -> float:
    """Return a literal number, signed or not."""
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant() as operand):
            return -_number(operand)
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            number = float(value) if abs(value) < 1e300 else math.inf
            if math.isfinite(number):
                return number
    raise ValueError("times, positions and the tolerance must be finite literal numbers")
