"""The environment's verdict on a program: per test tape, and in words (RESD Alg. 1 line 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from resd_lightning.records import Feedback
from resd_lightning.tasks.manufactoria.answer import extract_program
from resd_lightning.tasks.manufactoria.cases import TapeCase
from resd_lightning.tasks.manufactoria.machine import EMPTY, NODE_LIMIT, NONE_ID, Program, Run, Visit
from resd_lightning.tasks.manufactoria.output_pattern import matches_output
from resd_lightning.tasks.manufactoria.syntax import ManufactoriaSyntaxError, parse

MAX_SOURCE_CHARS: Final = 20_000
MAX_NODES: Final = 1_000
MAX_FEEDBACK_CHARS: Final = 6_000
_NAME_CHARS: Final = 32
_LINE_CHARS: Final = 120
_TAPE_CHARS: Final = 40
_TRACE_HEAD: Final = 8
_TRACE_TAIL: Final = 4


def judge(cases: Sequence[TapeCase], response: str, max_shown_tapes: int) -> Feedback:
    """Return reward 1.0 if the response's program passes every test, else 0.0, and say what went wrong where.

    The text shows the failing tapes, never what a right program looks like, and is at most `MAX_FEEDBACK_CHARS` long.
    """
    source = extract_program(response)
    if source is None:
        return _no_run(
            cases, "No program was found in the response. Answer with the complete program in one block fenced by ```."
        )
    if len(source) > MAX_SOURCE_CHARS:
        return _no_run(
            cases, f"The program has {len(source)} characters and was not run; at most {MAX_SOURCE_CHARS} are allowed."
        )
    try:
        program = parse(source)
    except ManufactoriaSyntaxError as error:
        quoted = f"\n    {_clip(error.source, _LINE_CHARS)}" if error.source.strip() else ""
        problem, fix = (_clip(text, 2 * _LINE_CHARS) for text in (error.problem, error.fix))
        return _no_run(
            cases, f"The program has a syntax error, so no tape was run. Line {error.line}: {problem}.{quoted}\n{fix}"
        )
    if len(program.nodes) > MAX_NODES:
        return _no_run(
            cases, f"The program has {len(program.nodes)} nodes and was not run; at most {MAX_NODES} are allowed."
        )
    runs = [program.run(case["input"]) for case in cases]
    passed = tuple(is_accepted(case, run) == case["expected_accepted"] for case, run in zip(cases, runs, strict=True))
    if all(passed):
        return Feedback(1.0, passed, f"All {len(passed)} tests passed.")
    failures = [(case, run) for case, run, is_passed in zip(cases, runs, passed, strict=True) if not is_passed]
    return Feedback(0.0, passed, _describe(program, failures, len(cases), max_shown_tapes))


def is_accepted(case: TapeCase, run: Run) -> bool:
    """Whether the run counts as accepting: it finished, and left the output that a checking case asks for."""
    if not run.finished or run.tape is None:
        return False
    return not case["check_output"] or matches_output(case["expected_output"], run.tape)


def _no_run(cases: Sequence[TapeCase], text: str) -> Feedback:
    return Feedback(0.0, (False,) * len(cases), text)


def _describe(program: Program, failures: Sequence[tuple[TapeCase, Run]], tests: int, max_shown_tapes: int) -> str:
    """Say how many tests failed and which way, then show the smallest failing tapes."""
    to_accept = sum(case["expected_accepted"] for case, _ in failures)
    parts = [f"Passed {tests - len(failures)} of {tests} tests."]
    if to_accept:
        parts.append(f"{to_accept} {_tapes(to_accept)} should be accepted and {_were(to_accept)} not.")
    if len(failures) > to_accept:
        wrong = len(failures) - to_accept
        parts.append(f"{wrong} {_tapes(wrong)} should be rejected and {_were(wrong)} accepted.")
    text = " ".join(parts)
    smallest = sorted(failures, key=lambda failure: (len(failure[0]["input"]), failure[0]["input"]))
    for shown, (case, run) in enumerate(smallest[:max_shown_tapes]):
        block = _describe_failure(program, case, run)
        if len(text) + len(block) + 1 > MAX_FEEDBACK_CHARS - _LINE_CHARS:  # leaves room for the closing line
            max_shown_tapes = shown
            break
        text += f"\n{block}"
    hidden = len(failures) - max_shown_tapes
    return (
        f"{text}\n{hidden} more failing {_tapes(hidden)} {'is' if hidden == 1 else 'are'} not shown."
        if 0 < hidden < len(failures)
        else text
    )


def _describe_failure(program: Program, case: TapeCase, run: Run) -> str:
    visits = list(program.trace(case["input"]))
    expected = "accepted" if case["expected_accepted"] else "rejected"
    if case["check_output"] and case["expected_accepted"]:
        expected += f" with the output {_tape(case['expected_output'])}"
    return (
        f"- Tape {_tape(case['input'])}: should be {expected}; {_outcome(program, run, visits)}\n"
        f"  Trace: {_render_trace(visits)}"
    )


def _outcome(program: Program, run: Run, visits: list[Visit]) -> str:
    """Say in one sentence how the run ended, and at which node that was decided."""
    if run.tape is not None and run.finished:
        return f"it reached end with the tape {_tape(run.tape)}."
    last = visits[-1]
    if run.reason == "loop":
        if last in visits[:-1]:
            return f"it looped: it came back to {_name(last.node)} with the same tape {_tape(last.tape)}."
        return (
            f"it was stopped as a loop after {NODE_LIMIT} nodes, at {_name(last.node)} with {len(last.tape)} symbols."
        )
    before = visits[-2]
    node = program.nodes[before.node]
    branch = node.branch(before.tape)
    route = "NEXT" if not node.pulls else f"the [{branch}] branch"
    where = f"at {node.kind} {_name(node.id)} with the tape {_tape(before.tape)}"
    if run.reason == "unknown_node":
        return f"{where} {route} led to {_name(last.node)}, which is no node; the accepting node is called end."
    why = f"{route} led to {NONE_ID}" if branch in node.routes else f"{route} is missing, which means {NONE_ID}"
    looked = ""
    if branch == EMPTY:
        looked = " (the tape was empty)" if not before.tape else f" (the front {before.tape[0]} is not pulled there)"
    return f"it was rejected {where}: {why}{looked}."


def _render_trace(visits: list[Visit]) -> str:
    """Show each node with the tape on arrival, leaving out the middle of a long run."""
    shown = [f"{_name(visit.node)} {_tape(visit.tape)}" for visit in visits[:_TRACE_HEAD]]
    if len(visits) > _TRACE_HEAD + _TRACE_TAIL:
        shown.append(f"({len(visits) - _TRACE_HEAD - _TRACE_TAIL} more)")
    tail = visits[max(_TRACE_HEAD, len(visits) - _TRACE_TAIL) :]
    return " -> ".join([*shown, *(f"{_name(visit.node)} {_tape(visit.tape)}" for visit in tail)])


def _tape(tape: str) -> str:
    if len(tape) > _TAPE_CHARS:
        return f"`{tape[: _TAPE_CHARS // 2]}...{tape[-_TAPE_CHARS // 4 :]}` ({len(tape)} symbols)"
    return f"`{tape}`" if tape else "`` (empty)"


def _name(node: str) -> str:
    return _clip(node, _NAME_CHARS)


def _clip(text: str, limit: int) -> str:
    text = text.strip()
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def _tapes(number: int) -> str:
    return "tape" if number == 1 else "tapes"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"
