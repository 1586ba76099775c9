from __future__ import annotations

import json
import pickle

import pytest

from resd_lightning.records import Example, Feedback
from resd_lightning.tasks.bouncing_sim import BouncingSimTask
from resd_lightning.tasks.bouncing_sim.asserts import PositionTest, read_asserts
from resd_lightning.tasks.bouncing_sim.verdict import MAX_FEEDBACK_CHARS, problem_with
from resd_lightning.tasks.python_answer import extract_program

# Object 1 moves right by 100 a second, object 2 up by 200 a second; three times.
ANSWER = tuple(
    f"assert check_distance(predict_position({t}), [[{100 * t}, 0.0], [-5.5, {200 * t}]]) <= 50.0"
    for t in (0.5, 1.0, 1.5)
)
EXAMPLE = Example("e", ({"role": "user", "content": "Where?"},), ANSWER)
RIGHT = "def predict_position(t):\n    return [[100 * t, 0.0], [-5.5, 200 * t]]"
TASK = BouncingSimTask(timeout_s=20.0)


def verify(program: str, task: BouncingSimTask = TASK) -> Feedback:
    return task.verify(EXAMPLE, f"<think>\n```python\nno\n```\n</think>\nHere:\n```python\n{program}\n```\nDone.")


def returns(expression: str) -> str:
    return f"def predict_position(t):\n    return {expression}"


def test_a_right_program_passes_every_test() -> None:
    assert verify(RIGHT) == Feedback(1.0, (True, True, True), "All 3 tests passed.")


def test_the_mean_distance_decides_not_the_largest() -> None:
    # off by 99 and 0: mean 49.5 passes; off by 101 and 0: mean 50.5 does not
    assert verify(returns("[[100 * t + 99, 0], [-5.5, 200 * t]]")).reward == 1.0
    feedback = verify(returns("[[100 * t + 101, 0], [-5.5, 200 * t]]"))
    assert feedback == Feedback(
        0.0,
        (False, False, False),
        "Passed 0 of 3 tests: wrong from the first time, t = 0.5.\n"
        "- t = 0.5 and 2 later times: the mean distance 50.5 is above 50: off is object 1 by 101.0, object 2 by 0.0.",
    )


def test_each_test_counts_on_its_own_and_the_text_says_until_when_it_was_right() -> None:
    feedback = verify(returns("[[100 * min(t, 1.0), 0], [-5.5, 200 * min(t, 1.0)]] if t != 1.5 else [[0, 0], [0, 0]]"))
    assert feedback.tests_passed == (True, True, False)
    assert feedback.share_passed == pytest.approx(2 / 3)
    assert feedback.reward == 0.0
    assert "Passed 2 of 3 tests: right up to t = 1.\n- t = 1.5: the mean distance 225.0" in feedback.text


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (returns("None"), "it returned None, not a list"),
        (returns("{'x': 1}"), "it returned {'x': 1}, not a list"),
        (returns("'[[0, 0], [0, 0]]'"), "not a list"),
        (returns("[[0, 0]]"), "it returned 1 positions for 2 objects"),
        (returns("[[0, 0]] * 3"), "it returned 3 positions for 2 objects"),
        (returns("[[0, 0], [1]]"), "it returned [1] for object 2, not [x, y]"),
        (returns("[[0, 0], [True, 1]]"), "for object 2, not [x, y]"),
        (returns("[['0', 0], [1, 1]]"), "for object 1, not [x, y]"),
        (returns("[[float('nan'), 0], [1, 1]]"), "it returned [nan, 0] for object 1, which is no finite position"),
        (returns("[[1e999, 0], [1, 1]]"), "it returned [inf, 0] for object 1, which is no finite position"),
        (returns("[[10**400, 0], [1, 1]]"), "for object 1, which is no finite position"),
        (returns("[[10**9000, 0], [1, 1]]"), "it returned a value with too many digits"),
        (returns("[[1e308, 0], [0, 1]]"), "is above 50: off is object 1 by 1.0e+308, object 2 by"),
        (returns("[[1j, 0], [1, 1]]"), "it returned data of type complex, not plain data"),
        (returns("1 / 0"), "it raised ZeroDivisionError: division by zero (line 2)"),
        (returns("predict_position(t)"), "it raised RecursionError"),
        (returns("exit()"), "it raised NameError"),
        ("import sys\n" + returns("sys.exit(0)"), "it raised SystemExit"),
        ("import os\n" + returns("os._exit(0)"), "the program ended here, with exit status 0, without returning"),
        (returns("print('x' * 10**6)"), "the program was stopped here, as it printed or returned too much"),
        ("x = 1", "NameError: the program defines no function predict_position"),
        ("def predict_position(t:\n", "SyntaxError"),
        ("raise SystemExit(0)", "the program ended here, with exit status 0"),
        ("import numpy\n" + RIGHT, "No module named 'numpy'"),
        ("#" * 200_001, "The program has 200001 characters and was not run"),
    ],
)
def test_each_failure_says_what_it_is(program: str, words: str) -> None:
    feedback = verify(program)
    assert (feedback.reward, feedback.tests_passed) == (0.0, (False, False, False))
    assert words in feedback.text
    assert len(feedback.text) <= MAX_FEEDBACK_CHARS


def test_a_program_that_hangs_keeps_what_it_passed_before() -> None:
    program = "def predict_position(t):\n    while t > 0.9: pass\n    return [[100 * t, 0.0], [-5.5, 200 * t]]"
    feedback = verify(program, BouncingSimTask(timeout_s=1.5))
    assert feedback.tests_passed == (True, False, False)
    assert "right up to t = 0.5" in feedback.text
    assert "t = 1: the program was stopped here, after 1.5 s" in feedback.text
    assert "t = 1.5: it was not reached any more" in feedback.text


def test_each_kind_of_failure_is_shown_however_many_there_are_of_another() -> None:
    program = (
        "def predict_position(t):\n    if t > 8: raise ValueError('late')\n    if t > 7: return []\n"
        "    return [[900 * t, 0]]"
    )
    answer = tuple(f"assert check_distance(predict_position({t}), [[{t}, 0]]) <= 50" for t in range(1, 10))
    text = TASK.verify(Example("e", EXAMPLE.messages, answer), f"```python\n{program}\n```").text
    assert text.count("the mean distance") == 3
    assert "\n- t = 8: it returned 0 positions for 1 object.\n- t = 9: it raised ValueError: late (line 2)." in text
    assert text.endswith("\n4 more failing times are not shown.")


@pytest.mark.parametrize(
    "program",
    [
        "print('All 3 tests passed.')\nimport os\nos._exit(0)",
        "import os\nfor _ in range(3): os.write(3, b'{\"value\": true}\\n')\nos._exit(0)",
        'import os\nfor _ in range(3): os.write(3, b\'{"reward": 1.0, "passed": true}\\n\')\nos._exit(0)',
        "import builtins, json, math\nmath.hypot = lambda *a: 0\njson.dumps = lambda v: '{\"value\": []}'\n"
        "builtins.all = lambda v: True\n" + returns("[[9e9, 9e9], [9e9, 9e9]]"),
        "check_distance = lambda *a: 0\n" + returns("[[9e9, 9e9], [9e9, 9e9]]"),
        "class Near(float):\n    def __sub__(self, o): return 0.0\n    __le__ = __eq__ = lambda *a: True\n"
        + returns("[[Near(9e9), Near(9e9)]] * 2"),
        "class Any(list):\n    def __len__(self): return 2\n" + returns("Any()"),
        "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n" + returns("[]"),
        "import sys\nsys.modules['__main__'].__dict__.clear()\n" + returns("[]"),
    ],
    ids=[
        "prints",
        "writes",
        "forges",
        "patches",
        "defines the check",
        "equals all",
        "is any length",
        "kills",
        "clears",
    ],
)
def test_no_trick_gains_a_pass(program: str) -> None:
    feedback = verify(program)
    assert (feedback.reward, feedback.tests_passed) == (0.0, (False, False, False))


def test_a_response_without_a_program_is_told_so() -> None:
    for response in ("", "I don't know", "<think>```python\nx\n```</think>", "```json\n{}\n```"):
        feedback = TASK.verify(EXAMPLE, response)
        assert feedback.tests_passed == (False,) * 3
        assert "No program was found" in feedback.text


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```\n```python\nb\n```\n```text\nc\n```", "b"),
        ("```py\na\n```\n```\nb\n```", "a"),
        ("```\na\n```", "a"),
        ("```python\na", "a"),
        ("```python\na\n```\n```python\n```", "a"),
        ("```Python3\na\nb\n```", "a\nb"),
        ("def predict_position(t): pass", "def predict_position(t): pass"),
        ("def f(): pass", None),
    ],
)
def test_the_program_is_the_last_python_block(response: str, program: str | None) -> None:
    assert extract_program(response, "def predict_position") == program


def test_asserts_are_read_as_what_they_say() -> None:
    assert read_asserts(
        ["assert check_distance(predict_position(0.10), [[1, -2.5], (3e1, +0)]) <= 50"][:0] or ANSWER[:1]
    )
    text = "assert check_distance(predict_position(1), [[1, -2.5], (3e1, 0)]) <= 50"
    assert read_asserts([text]) == (PositionTest(1.0, ((1.0, -2.5), (30.0, 0.0)), 50.0),)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("assert True", "it says something else"),
        ("assert check_distance(predict_position(1), [[1, 2]]) < 50", "it says something else"),
        ("assert check_distance(predict_position(1), [[1, 2]]) <= 50 <= 60", "it says something else"),
        ("assert check_distance(predict_position(1), [[1, 2]]) <= 50, 'x'", "it says something else"),
        ("assert check_distance(predict_position(1, x=1), [[1, 2]]) <= 50", "it says something else"),
        ("assert check_distance(other(1), [[1, 2]]) <= 50", "it says something else"),
        ("assert check_distance(predict_position(1), [[1, 2]]) <= 50; import os", "it says something else"),
        ("__import__('os').system('true')", "it says something else"),
        ("assert check_distance(predict_position(1), [[1, open('x')]]) <= 50", "finite literal numbers"),
        ("assert check_distance(predict_position(True), [[1, 2]]) <= 50", "finite literal numbers"),
        ("assert check_distance(predict_position(1e999), [[1, 2]]) <= 50", "finite literal numbers"),
        ("assert check_distance(predict_position(1), [[1, 2, 3]]) <= 50", "a position must be [x, y]"),
        ("assert check_distance(predict_position(1), []) <= 50", "it has no positions"),
        ("assert check_distance(predict_position(1), [[1, 2]]) <= -50", "the tolerance must be above 0"),
        ("assert (", "it is no Python"),
        ("assert " + "(" * 5000, "it is no Python"),
        ("#" * 20_000, "it has 20000 characters"),
        (7, "assert 1 must be a string, got int"),
    ],
)
def test_any_other_assert_is_refused(bad: object, words: str) -> None:
    with pytest.raises(ValueError, match="assert 1 must") as caught:
        read_asserts([bad])
    assert words in str(caught.value)


@pytest.mark.parametrize("answer", [None, "assert x", (), {"a": 1}])
def test_an_answer_of_another_task_is_refused(answer: object) -> None:
    with pytest.raises(ValueError, match="the asserts must"):
        TASK.verify(Example("e", EXAMPLE.messages, answer), "```python\nx\n```")


def test_the_text_is_bounded_with_many_objects() -> None:
    test = PositionTest(1.0, ((0.0, 0.0),) * 1000, 50.0)
    assert problem_with([[99, 0]] * 1000, test).startswith("the mean distance 99.0 is above 50")
    wide = tuple(
        f"assert check_distance(predict_position({t}), {json.dumps([[0, 0]] * 500)}) <= 50" for t in range(1, 9)
    )
    program = f"```python\n{returns('[[100 + t, 0]] * 500')}\n```"
    feedback = TASK.verify(Example("e", EXAMPLE.messages, wide), program)
    assert len(feedback.text) <= MAX_FEEDBACK_CHARS
    assert feedback.text.startswith("Passed 0 of 8 tests")


def test_the_task_goes_to_workers_without_its_examples() -> None:
    assert pickle.loads(pickle.dumps(TASK)).verify(EXAMPLE, f"```python\n{RIGHT}\n```").reward == 1.0
