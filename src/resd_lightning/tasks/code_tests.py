"""The unit tests of a code problem: what a program prints, or what its functions return."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Literal

from resd_lightning.sandbox.runner import plain


@dataclass(frozen=True)
class PrintTest:
    """What the program reads, and what it has to print; spaces at line ends and empty lines at the end don't count."""

    input: str
    output: str


@dataclass(frozen=True)
class CallTest:
    """One assert, read and never executed: `f(...) == value`, `!=`, `is`, `is not`, alone, or after `not`.

    Attributes:
        text: The assert.
        function: The function's name.
        arguments: Its positional arguments.
        wanted: The value compared with; None where the value's truth is meant.
        relation: How it is compared.
    """

    text: str
    function: str
    arguments: tuple[object, ...]
    wanted: object
    relation: Literal["==", "!=", "is", "is not", "true", "false"]

    def holds(self, value: object) -> bool:
        """Whether the returned value passes."""
        match self.relation:
            case "==":
                return value == self.wanted
            case "!=":
                return value != self.wanted
            case "is":
                return value is self.wanted
            case "is not":
                return value is not self.wanted
            case "true":
                return bool(value)
            case "false":
                return not value


def read_tests(value: object) -> tuple[PrintTest | CallTest, ...]:
    """Return the tests of an answer or a row.

    Raises:
        ValueError: The value is no sequence of tests, or an empty one; the text names the test.
    """
    if not isinstance(value, list | tuple) or not value:
        raise ValueError(f"tests must be a non-empty list, got {value!r:.60}")
    tests: list[PrintTest | CallTest] = []
    for number, test in enumerate(value, start=1):
        match test:
            case {"input": str(given), "output": str(output)}:
                tests.append(PrintTest(given, output))
            case str():
                try:
                    tests.append(_read_assert(test))
                except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
                    what = "`assert f(literals) == literal` (or !=, is, alone, after not)"
                    raise ValueError(f"test {number} must have the form {what}, got {test!r:.80}") from error
            case _:
                raise ValueError(f"test {number} must be an assert or have the strings input and output: {test!r:.60}")
    return tuple(tests)


def _read_assert(text: str) -> CallTest:
    [statement] = ast.parse(text.strip()).body
    if not isinstance(statement, ast.Assert):
        raise ValueError("no assert")
    match statement.test:
        case ast.Compare(left=call, ops=[ast.Eq()], comparators=[wanted]):
            return CallTest(text, *_read_call(call), _literal(wanted), "==")
        case ast.Compare(left=call, ops=[ast.NotEq()], comparators=[wanted]):
            return CallTest(text, *_read_call(call), _literal(wanted), "!=")
        case ast.Compare(left=call, ops=[ast.Is()], comparators=[ast.Constant(value=None | True | False as single)]):
            return CallTest(text, *_read_call(call), single, "is")
        case ast.Compare(left=call, ops=[ast.IsNot()], comparators=[ast.Constant(value=None | True | False as single)]):
            return CallTest(text, *_read_call(call), single, "is not")
        case ast.UnaryOp(op=ast.Not(), operand=call):
            return CallTest(text, *_read_call(call), None, "false")
        case call:
            return CallTest(text, *_read_call(call), None, "true")


def _read_call(node: ast.expr) -> tuple[str, tuple[object, ...]]:
    match node:
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
            return name, tuple(_literal(argument) for argument in arguments)
    raise ValueError("no call of a function")


def _literal(node: ast.expr) -> object:
    value: object = ast.literal_eval(node)
    plain(value)  # what can't go to the sandbox, as bytes, is refused with the row
    return value
