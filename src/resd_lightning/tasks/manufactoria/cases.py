"""Test cases: their form in an example's answer and in public rows, read strictly."""

from __future__ import annotations

from typing import TypedDict

from resd_lightning.tasks.manufactoria.machine import COLOURS


class TapeCase(TypedDict):
    """One tape and what a right program makes of it.

    `expected_output` counts only with `check_output`: the final tape then has to be, or fully match, it.
    """

    input: str
    expected_output: str
    expected_accepted: bool
    check_output: bool


def read_cases(value: object) -> tuple[TapeCase, ...]:
    """Return the test cases of an answer or a decoded ground truth.

    Raises:
        ValueError: The value is no sequence of test cases, or an empty one; the text names the case and the field.
    """
    if not isinstance(value, list | tuple):
        raise ValueError(f"test cases must be a list, got {type(value).__name__}")
    if not value:
        raise ValueError("test cases must not be an empty list")
    return tuple(_read_case(case, f"test case {number}") for number, case in enumerate(value, start=1))


def _read_case(case: object, where: str) -> TapeCase:
    if not isinstance(case, dict):
        raise ValueError(f"{where} must be an object, got {type(case).__name__}")
    missing = [key for key in TapeCase.__annotations__ if key not in case]
    if missing:
        raise ValueError(f"{where} lacks the field {missing[0]}")
    tape, output = case["input"], case["expected_output"]
    accepted, check_output = case["expected_accepted"], case["check_output"]
    if not isinstance(tape, str) or tape.strip(COLOURS):
        raise ValueError(f"{where}: input must be a string of the colours {COLOURS}, got {_clip(tape)}")
    if not isinstance(accepted, bool):
        raise ValueError(f"{where}: expected_accepted must be true or false, got {_clip(accepted)}")
    if not isinstance(check_output, bool):
        raise ValueError(f"{where}: check_output must be true or false, got {_clip(check_output)}")
    if output is None and not check_output:
        output = ""
    if not isinstance(output, str):
        raise ValueError(f"{where}: expected_output must be a string, got {_clip(output)}")
    return TapeCase(input=tape, expected_output=output, expected_accepted=accepted, check_output=check_output)


def _clip(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
