"""Code with unit tests: programs that read and print, or functions that asserts call. Judged outside the sandbox."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, cast

from resd_lightning.config import require
from resd_lightning.records import Example, Feedback, Split
from resd_lightning.sandbox import Ended, Program, SandboxResult
from resd_lightning.tasks.code_tests import CallTest, PrintTest, read_tests
from resd_lightning.tasks.files import KEY, FileTask
from resd_lightning.tasks.python_answer import extract_program, sandbox_for_answers
from resd_lightning.tasks.rows import Fields, read_messages, read_text_field, require_fields

MAX_SOURCE_CHARS: Final = 200_000
MAX_FEEDBACK_CHARS: Final = 4_000
_SHOWN_CHARS: Final = 300
_ERROR_CHARS: Final = 600
_FORMAT: Final = (
    "A row is {id, messages, tests}, and a test either {input, output}, for a program that reads and prints, or a text "
    "like `assert f(1, [2]) == 3`; save the rows as JSON lines."
)


class CodeTask(FileTask):
    """Write a Python program that passes unit tests; both kinds of test may stand in one file.

    Programs run in the sandbox; a printing test is a run of its own, asserts on one function share one. Constructing
    reads no file.

    Args:
        train_path: File with the training rows, each with id, messages and tests, as JSON lines or a JSON list.
        test_path: File with the test rows.
        train_size: Keep only the first so many training rows, counted before val_share is held out; None keeps all.
        test_size: Keep only the first so many test rows; None keeps all.
        timeout_s: Seconds that one run may take.
        memory_mib: Memory that one run may use.
        require_isolation: Refuse to run programs unless network, files and other processes are out of their reach.
        max_shown_tests: How many failing tests a feedback text describes.
        val_share: Share of the training rows held out as "val"; 0 validates on the test rows.
        seed: Decides which rows val_share holds out.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        train_path: str | None = None,
        test_path: str | None = None,
        train_size: int | None = None,
        test_size: int | None = None,
        timeout_s: float = 5.0,
        memory_mib: int = 512,
        require_isolation: bool = False,
        max_shown_tests: int = 2,
        val_share: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(train_path, test_path, val_share, seed, train_size, test_size)
        require(max_shown_tests >= 1, f"{KEY}.max_shown_tests", "at least 1", max_shown_tests)
        self.max_shown_tests = max_shown_tests
        self.sandbox = sandbox_for_answers(timeout_s, memory_mib, require_isolation)

    @property
    def name(self) -> str:
        """The task's name in run folders and reports."""
        return "code"

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Return the split's examples in their training order, the same on every call.

        Raises:
            ConfigError: The split's path is not set or no file, a row is broken, val_share leaves nothing, or isolation
                is required and the machine has none.
        """
        found = super().examples(split)
        self.sandbox.isolation()  # says what is in force, or refuses, before the first rollout
        return found

    def read_row(self, fields: Fields, place: str) -> Example:
        """Return a row as an example whose answer is a tuple of tests.

        Raises:
            ValueError: A field is missing or has another form, or a test is of neither kind.
        """
        require_fields(fields, "id", "messages", "tests")
        read_tests(fields["tests"])
        tests = tuple(cast("list[object]", fields["tests"]))
        return Example(read_text_field(fields, "id"), read_messages(fields["messages"]), tests)

    def how_to_get(self, split: Split) -> str:
        """Return what the file has to hold."""
        return f"This task's problems come from a file. {_FORMAT}"

    def verify(self, example: Example, response: str) -> Feedback:
        """Run the response's program on every test; whatever it does, the result is a feedback.

        Raises:
            ValueError: The example's answer is not a tuple of tests, so it is not one of this task's.
            ConfigError: Isolation is required and the machine has none.
            SandboxError: The sandbox failed, not the program.
        """
        tests = read_tests(example.answer)
        source = extract_program(response, "def ")
        if source is None:
            text = (
                "No program was found in the response. Answer with the whole program in one block fenced by ```python."
            )
            return Feedback(0.0, (False,) * len(tests), text)
        if len(source) > MAX_SOURCE_CHARS:
            text = f"The program has {len(source)} characters and was not run; at most {MAX_SOURCE_CHARS} are allowed."
            return Feedback(0.0, (False,) * len(tests), text)
        problems = self._problems(source, tests)
        passed = tuple(not problem for problem in problems)
        if all(passed):
            return Feedback(1.0, passed, f"All {len(passed)} tests passed.")
        lines = [f"Passed {sum(passed)} of {len(passed)} tests."]
        failing = [f"Test {number}: {problem}" for number, problem in enumerate(problems, start=1) if problem]
        lines += failing[: self.max_shown_tests]
        if len(failing) > self.max_shown_tests:
            lines.append(f"{len(failing) - self.max_shown_tests} more failing tests are not shown.")
        return Feedback(0.0, passed, "\n".join(lines)[:MAX_FEEDBACK_CHARS])

    def _problems(self, source: str, tests: Sequence[PrintTest | CallTest]) -> list[str]:
        """Return what is wrong with each test; empty where it passes."""
        problems = [""] * len(tests)
        is_late = False
        by_function: dict[str, list[tuple[int, CallTest]]] = {}
        for number, test in enumerate(tests):
            if isinstance(test, CallTest):
                by_function.setdefault(test.function, []).append((number, test))
            else:
                if is_late:
                    problems[number] = "it was not run, as the program took too long on an earlier one."
                    continue
                result = self.sandbox.run(Program(source, stdin=test.input))
                is_late = result.ended is Ended.TIMEOUT  # many tests that hang would outlast any judge's patience
                problems[number] = _problem_of_print(test, result)
        for function, numbered in by_function.items():
            calls = tuple(test.arguments for _, test in numbered)
            result = self.sandbox.run(Program(source, function=function, calls=calls))
            for at, (number, test) in enumerate(numbered):
                problems[number] = _problem_of_call(test, result, at)
        return problems


def _problem_of_print(test: PrintTest, result: SandboxResult) -> str:
    shown = f"for the input {_quote(test.input.rstrip())} "
    if result.ended is not Ended.OK:
        return shown + _how_it_failed(result)
    printed, wanted = _lines(result.stdout), _lines(test.output)
    if printed == wanted:
        return ""
    if len(printed) == len(wanted) == 1:
        return f"{shown}it should print {_quote(wanted[0])}, but printed {_quote(printed[0])}."
    at = next((at for at, (is_, should) in enumerate(zip(printed, wanted, strict=False)) if is_ != should), -1)
    if at >= 0:
        return f"{shown}line {at + 1} of its output should be {_quote(wanted[at])}, but is {_quote(printed[at])}."
    return f"{shown}it should print {len(wanted)} lines, but printed {len(printed)}; as far as both go they agree."


def _problem_of_call(test: CallTest, result: SandboxResult, at: int) -> str:
    shown = f"`{_clip(test.text)}`: "
    if at >= len(result.calls):
        return shown + _how_it_failed(result)
    outcome = result.calls[at]
    if outcome.error:
        return shown + (outcome.error if outcome.error.startswith("it returned") else f"it raised {outcome.error}")
    return "" if test.holds(outcome.value) else f"{shown}it returned {_clip(repr(outcome.value))}."


def _how_it_failed(result: SandboxResult) -> str:
    match result.ended:
        case Ended.TIMEOUT:
            return f"the program was stopped after {result.seconds:.1f} s."
        case Ended.MEMORY:
            return "the program ran out of memory."
        case Ended.OUTPUT_LIMIT:
            return "the program was stopped, as it printed or returned too much."
    said = result.stderr.strip()[-_ERROR_CHARS:]
    return f"the program ended with exit status {result.exit_status}.{f'{chr(10)}{said}' if said else ''}"


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _quote(text: str) -> str:
    return _clip(repr(text))


def _clip(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[: _SHOWN_CHARS - 3]}..."
