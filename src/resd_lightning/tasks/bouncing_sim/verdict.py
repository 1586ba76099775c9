"""The environment's verdict on a program: per time, and in words (RESD Alg. 1 line 4).

The sandbox brings the positions back as data; whether they are right is decided here, in this process.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from resd_lightning.records import Feedback
from resd_lightning.sandbox import Ended, Program, Sandbox, SandboxResult
from resd_lightning.tasks.bouncing_sim.asserts import FUNCTION, PositionTest
from resd_lightning.tasks.python_answer import extract_program

MAX_SOURCE_CHARS: Final = 200_000
MAX_FEEDBACK_CHARS: Final = 4_000
_ERROR_CHARS: Final = 600
_VALUE_CHARS: Final = 60


@dataclass(frozen=True)
class _Verdict:
    """What one test says: nothing wrong, or what."""

    t: float
    problem: str = ""


def judge(tests: Sequence[PositionTest], response: str, sandbox: Sandbox, max_shown_times: int) -> Feedback:
    """Return reward 1.0 if every test passes, else 0.0, and say what went wrong when.

    The text tells distances, never a right position, and is at most `MAX_FEEDBACK_CHARS` long.

    Raises:
        ConfigError: Isolation is required and the machine has none.
        SandboxError: The sandbox failed.
    """
    source = extract_program(response, f"def {FUNCTION}")
    if source is None:
        return _no_run(
            tests,
            f"No program was found in the response. Answer with one block fenced by ```python that defines {FUNCTION}.",
        )
    if len(source) > MAX_SOURCE_CHARS:
        return _no_run(
            tests, f"The program has {len(source)} characters and was not run; at most {MAX_SOURCE_CHARS} are allowed."
        )
    result = sandbox.run(Program(source, function=FUNCTION, calls=tuple((test.t,) for test in tests)))
    if not result.calls and result.ended is Ended.EXCEPTION:
        said = result.stderr.strip()[-_ERROR_CHARS:] or f"It exited with status {result.exit_status}."
        return _no_run(tests, f"The program failed before {FUNCTION} had returned anything, so no test passed.\n{said}")
    verdicts = [
        _Verdict(test.t, _problem_of_call(test, result, number, sandbox.limits.wall_s))
        for number, test in enumerate(tests)
    ]
    passed = tuple(not verdict.problem for verdict in verdicts)
    if all(passed):
        return Feedback(1.0, passed, f"All {len(passed)} tests passed.")
    return Feedback(0.0, passed, _describe(verdicts, max_shown_times))


def problem_with(value: object, test: PositionTest) -> str:
    """Return what is wrong with a returned value; empty if the test passes.

    The test is the assert's: the mean over the objects of the Euclidean distance is within the tolerance.
    """
    if not isinstance(value, list | tuple):
        return f"it returned {_clip(value)}, not a list of [x, y] positions"
    wanted = len(test.positions)
    if len(value) != wanted:
        return f"it returned {len(value)} positions for {wanted} {'object' if wanted == 1 else 'objects'}"
    distances = []
    for number, (position, (x, y)) in enumerate(zip(value, test.positions, strict=True), start=1):
        if not _is_pair(position):
            return f"it returned {_clip(position)} for object {number}, not [x, y]"
        if not all(_is_finite(coordinate) for coordinate in position):
            return f"it returned {_clip(position)} for object {number}, which is no finite position"
        distances.append(math.hypot(position[0] - x, position[1] - y))
    mean = sum(distances) / wanted
    if mean <= test.tolerance:
        return ""
    off = ", ".join(f"object {number} by {_far(distance)}" for number, distance in enumerate(distances, start=1))
    return f"the mean distance {_far(mean)} is above {test.tolerance:g}: off is {off}"


def _problem_of_call(test: PositionTest, result: SandboxResult, number: int, wall_s: float) -> str:
    if number < len(result.calls):
        outcome = result.calls[number]
        if not outcome.error:
            return problem_with(outcome.value, test)
        said = outcome.error
        return said if said.startswith("it returned") else f"it raised {said}"
    if number > len(result.calls):
        return "it was not reached any more"
    match result.ended:
        case Ended.TIMEOUT:
            return f"the program was stopped here, after {wall_s:g} s for all times together"
        case Ended.MEMORY:
            return "the program ran out of memory here"
        case Ended.OUTPUT_LIMIT:
            return "the program was stopped here, as it printed or returned too much"
        case _:
            return f"the program ended here, with exit status {result.exit_status}, without returning"


def _describe(verdicts: Sequence[_Verdict], max_shown_times: int) -> str:
    """Say until when it was right, then the earliest failures of each kind; equal problems are one line."""
    in_time = sorted(verdicts, key=lambda verdict: verdict.t)
    right = [verdict.t for verdict in takewhile(lambda verdict: not verdict.problem, in_time)]
    until = f"right up to t = {right[-1]:g}" if right else f"wrong from the first time, t = {in_time[0].t:g}"
    text = f"Passed {sum(not verdict.problem for verdict in verdicts)} of {len(verdicts)} tests: {until}."
    times: dict[str, list[float]] = {}
    for verdict in in_time:
        if verdict.problem:
            times.setdefault(verdict.problem, []).append(verdict.t)
    shown: Counter[str] = Counter()
    hidden = 0
    for problem, at in times.items():
        kind = " ".join(problem.split()[:2])  # the mean, it returned, it raised, the program, it was
        more = f" and {len(at) - 1} later {'time' if len(at) == 2 else 'times'}" if len(at) > 1 else ""
        line = f"\n- t = {at[0]:g}{more}: {problem}."
        if shown[kind] == max_shown_times or len(text) + len(line) > MAX_FEEDBACK_CHARS - 80:
            hidden += len(at)
            continue
        shown[kind] += 1
        text += line
    return f"{text}\n{hidden} more failing {'time is' if hidden == 1 else 'times are'} not shown." if hidden else text


def _no_run(tests: Sequence[PositionTest], text: str) -> Feedback:
    return Feedback(0.0, (False,) * len(tests), text)


def _is_pair(position: object) -> bool:
    return (
        isinstance(position, list | tuple)
        and len(position) == 2
        and all(isinstance(coordinate, int | float) and not isinstance(coordinate, bool) for coordinate in position)
    )


def _is_finite(coordinate: float) -> bool:
    try:
        return math.isfinite(coordinate)
    except OverflowError:  # an int past the floats
        return False


def _far(distance: float) -> str:
    return f"{distance:.1f}" if distance < 1e6 else f"{distance:.1e}"


def _clip(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # an int with more digits than Python writes
        return "a number of too many digits"
    return text if len(text) <= _VALUE_CHARS else f"{text[: _VALUE_CHARS - 3]}..."
