from __future__ import annotations

import json
from pathlib import Path

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.records import Example, Feedback
from resd_lightning.tasks.code import CodeTask
from resd_lightning.tasks.code_tests import read_tests

TASK = CodeTask(timeout_s=20.0)
CALLS = (
    "assert double(2) == 4",
    "assert double('ab') != 'ab'",
    "assert double((1,)) == (1, 1)",
    "assert not double([])",
    "assert double({}) is None",
    "assert double(1.5)",
)
DOUBLE = "def double(x):\n    return None if x == {} else x * 2"
PRINTS = ({"input": "1 2\n", "output": "3\n"}, {"input": "5 6", "output": "11"})


def verify(program: str, tests: tuple[object, ...], task: CodeTask = TASK) -> Feedback:
    return task.verify(Example("e", ({"role": "user", "content": "?"},), tests), f"Here:\n```python\n{program}\n```")


def test_asserts_are_judged_each_on_its_own() -> None:
    assert verify(DOUBLE, CALLS) == Feedback(1.0, (True,) * 6, "All 6 tests passed.")
    feedback = verify("def double(x):\n    return x + x if x != 2 else 5", CALLS)
    assert feedback.tests_passed == (False, True, True, True, False, True)
    assert "Passed 4 of 6 tests.\nTest 1: `assert double(2) == 4`: it returned 5.\nTest 5: " in feedback.text
    assert "it raised TypeError: unsupported operand" in feedback.text


def test_printed_lines_are_compared_without_spaces_at_their_ends() -> None:
    assert verify("print(sum(map(int, input().split())), end='  \\n\\n')", PRINTS).reward == 1.0
    feedback = verify("input(); print(3)", PRINTS)
    assert feedback == Feedback(
        0.0,
        (True, False),
        "Passed 1 of 2 tests.\nTest 2: for the input '5 6' it should print '11', but printed '3'.",
    )


@pytest.mark.parametrize(
    ("printed", "words"),
    [
        ("1\n 2\n3\n", "line 2 of its output should be '2', but is ' 2'."),
        ("1\n2\n", "it should print 3 lines, but printed 2; as far as both go they agree."),
        ("1\n2\n3\n4", "it should print 3 lines, but printed 4; as far as both go they agree."),
        ("", "line 1 of its output should be '1', but is ''."),
    ],
)
def test_of_several_lines_the_first_wrong_one_is_named(printed: str, words: str) -> None:
    text = verify(f"print({printed!r}, end='')", ({"input": "3\n", "output": "1\n2\n3\n"},)).text
    assert text == f"Passed 0 of 1 tests.\nTest 1: for the input '3' {words}"


def test_both_kinds_of_test_stand_together_and_functions_run_apart() -> None:
    tests = (PRINTS[0], "assert f(1) == 1", "assert g() == [1]")
    program = (
        "def f(x): return x\nseen = []\ndef g():\n    seen.append(1)\n    return seen\n"
        "if __name__ == '__main__': print(3)"
    )
    assert verify(program, tests).tests_passed == (True, True, True)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("def double(x): return object()", "it returned data of type object, not plain data"),
        ("x = 1", "the program defines no function double"),
        ("def double(:", "SyntaxError"),
        ("import os\nprint('All 6 tests passed.')\nos._exit(0)", "the program ended with exit status 0."),
        ("class Any:\n    __eq__ = lambda *a: True\ndef double(x): return Any()", "not plain data"),
        ("def double(x): return [x] * 10**6", "the program was stopped, as it printed or returned too much."),
        ("#" * 200_001, "The program has 200001 characters"),
    ],
)
def test_no_failure_and_no_trick_gains_a_pass(program: str, words: str) -> None:
    feedback = verify(program, CALLS)
    assert (feedback.reward, feedback.tests_passed) == (0.0, (False,) * 6)
    assert words in feedback.text
    assert len(feedback.text) <= 4000


def test_a_program_that_hangs_is_not_run_again_on_printing_tests() -> None:
    feedback = verify("while True: pass", PRINTS, CodeTask(timeout_s=0.7))
    assert feedback.tests_passed == (False, False)
    assert "the program was stopped after 0." in feedback.text
    assert "Test 2: it was not run" in feedback.text


def test_only_some_failing_tests_are_shown_and_a_missing_program_is_told() -> None:
    assert "not shown" not in verify("def double(x): return 0", CALLS[:3]).text
    assert verify("def double(x): return 0", CALLS[:1] * 4).text.endswith("\n2 more failing tests are not shown.")
    assert "No program was found" in TASK.verify(Example("e", ({"role": "user", "content": "?"},), CALLS), "no").text


@pytest.mark.parametrize(
    "bad",
    [
        "assert f(x) == 1",
        "assert f(1) == g(1)",
        "assert f(1) < 2",
        "assert f(1) is 2",
        "assert f(b'1') == 2",
        "assert m.f(1) == 2",
        "assert f(x=1) == 2",
        "f(1) == 2",
        "assert f(1) == 2; import os",
        "__import__('os')",
        "",
        {"input": "1"},
        {"input": 1, "output": "1"},
        7,
    ],
)
def test_any_other_test_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="test 2 must"):
        read_tests([CALLS[0], bad])


def test_rows_are_read_and_bad_ones_refused_by_line(tmp_path: Path) -> None:
    rows = [{"id": "a", "messages": [{"role": "user", "content": "?"}], "tests": [*CALLS, *PRINTS]}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    task = CodeTask(test_path=str(path))
    assert task.examples("val") == task.examples("test")
    assert task.examples("test")[0].answer == (*CALLS, *PRINTS)
    path.write_text(json.dumps(rows[0] | {"tests": ["assert 1"]}))
    with pytest.raises(ConfigError, match=r"test_path: .*rows.jsonl, line 1: test 1 must have the form"):
        CodeTask(test_path=str(path)).examples("test")
    with pytest.raises(ConfigError, match=r"init_args\.train_path is not set.*A row is \{id, messages, tests\}"):
        CodeTask(test_path=str(path)).examples("train")
    path.write_text(json.dumps([rows[0] | {"id": name} for name in "abcd"]))
    task = CodeTask(train_path=str(path), val_share=0.25)
    assert [len(task.examples("train")), len(task.examples("val"))] == [3, 1]


@pytest.mark.parametrize("key", ["train_size", "test_size", "timeout_s", "memory_mib", "max_shown_tests"])
def test_settings_out_of_range_are_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.task\.init_args\.{key} must be"):
        CodeTask(**{key: 0})  # type: ignore[arg-type]
