from __future__ import annotations

import inspect
import json
import pickle
import time
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from resd_lightning.config import ConfigError
from resd_lightning.records import Example, Feedback
from resd_lightning.tasks.jsonl import JsonlTask
from resd_lightning.tasks.jsonl.rules import Rule
from resd_lightning.tasks.verification import Verifier

CATASTROPHE = "a" * 60 + "!"
"""A text on which `(a+)+$` tries about 2^60 ways."""


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def example(*rules: Rule) -> Example:
    return Example("e", (), rules)


def judge(task: JsonlTask, response: str, *rules: Rule) -> Feedback:
    return task.verify(example(*rules), response)


# Reading


def test_rows_have_a_prompt_or_a_chat_and_an_answer_or_tests(tmp_path):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 + 4 = {{ x }}?"}]
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "2 + 3?", "answer": "5", "source": "mine"},
        {"messages": chat, "answer": "7", "id": "seven", "prompt": None, "tests": None},
        {"prompt": "Why?", "tests": [{"match": "regex", "answer": "because"}, {"answer": "so", "match": None}]},
        {"prompt": "Why?", "answer": "x", "tests": [{"match": "exact", "answer": "X"}]},
    )
    first, second, third, fourth = JsonlTask(train_path=path).examples("train")
    assert first == Example("train-1", ({"role": "user", "content": "2 + 3?"},), (Rule("normalised", "5"),))
    assert (second.id, list(second.messages)) == ("seven", chat)
    assert third.answer == (Rule("regex", "because"), Rule("normalised", "so"))
    assert fourth.answer == (Rule("normalised", "x"), Rule("exact", "X"))


def test_numbers_may_be_numbers_where_they_are_compared_as_such(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": "?", "answer": 5}, {"prompt": "?", "answer": -1e-7})
    task = JsonlTask(test_path=path, match="numeric")
    five, tiny = task.examples("test")
    assert task.verify(five, "It is 5.0").is_success
    assert task.verify(tiny, "-0.0000001").is_success


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"answer": "5"}, "a row must have either prompt or messages, it has neither"),
        ({"prompt": "x", "messages": [], "answer": "5"}, "it has both"),
        ({"prompt": 3, "answer": "5"}, "prompt must be a non-empty string, got 3"),
        ({"prompt": " ", "answer": "5"}, "prompt must be a non-empty string"),
        ({"messages": [], "answer": "5"}, "messages must be a non-empty list"),
        ({"prompt": "x"}, "the field answer is missing"),
        ({"prompt": "x", "answer": None}, "the field answer is missing"),
        ({"prompt": "x", "answer": 5}, "answer must be a non-empty string for match normalised, got 5"),
        ({"prompt": "x", "answer": ["5"]}, "answer must be a non-empty string"),
        ({"prompt": "x", "answer": ""}, "answer must be a non-empty string"),
        ({"prompt": "x", "answer": "!"}, "nothing left when normalised"),
        ({"prompt": "x", "answer": "5", "id": 7}, "id must be a non-empty string, got 7"),
        ({"prompt": "x", "answer": "5", "id": "a"}, "the id 'a' is already taken"),
        ({"prompt": "x", "tests": []}, "tests must be a non-empty list, got []"),
        ({"prompt": "x", "tests": {"answer": "5"}}, "tests must be a non-empty list"),
        ({"prompt": "x", "tests": [{"answer": "5"}, "5"]}, "test 2 must be an object, got str"),
        ({"prompt": "x", "tests": [{"match": "exact"}]}, "test 1: the field answer is missing"),
        ({"prompt": "x", "tests": [{"match": "near", "answer": "5"}]}, "test 1: match must be one of exact"),
        ({"prompt": "x", "tests": [{"match": ["exact"], "answer": "5"}]}, "test 1: match must be one of exact"),
        ({"prompt": "x", "tests": [{"match": "regex", "answer": "["}]}, "test 1: answer '[' is no regular expression"),
        ({"prompt": "x", "tests": [{"match": "numeric", "answer": True}]}, "test 1: answer must be a non-empty string"),
        ("{'prompt': 'x'}", "broken JSON"),
        ('{"prompt": "x", "answer": NaN}', "answer must be a non-empty string"),
        ("[]", "a row must be an object, got list"),
    ],
)
def test_bad_row_is_refused_with_file_and_line(tmp_path, bad, words):
    path = write(tmp_path / "rows.jsonl", {"prompt": "x", "answer": "5", "id": "a"}, bad)
    with pytest.raises(ConfigError) as caught:
        JsonlTask(train_path=path).examples("train")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"data.task.init_args.train_path: {path}, line 2: ")


def test_missing_file_says_what_it_has_to_hold():
    with pytest.raises(
        ConfigError, match=r"train_path is not set\. Set data\.task\.init_args\.train_path to a file of"
    ):
        JsonlTask().examples("train")
    with pytest.raises(ConfigError, match=r"test_path: /nowhere is not a file\. Set .* each an object with `prompt`"):
        JsonlTask(test_path="/nowhere").examples("val")


# Judging


def test_the_thinking_is_off_before_the_answer_is_looked_for():
    task = JsonlTask(answer_from="after_marker", answer_marker="####")
    assert judge(task, "<think>#### 4</think>#### 5", Rule("exact", "5")).is_success
    assert judge(task, "hm #### 4</think>#### 5", Rule("exact", "5")).is_success
    assert not judge(task, "<think>#### 5", Rule("exact", "5")).is_success
    assert not judge(JsonlTask(), "<think>secret</think>public", Rule("regex", "secret")).is_success


def test_each_test_is_an_entry_and_the_reward_is_all_or_the_share():
    rules = (Rule("numeric", "5"), Rule("regex", "(?i)because"), Rule("exact", "5"))
    response = "Because.\n= 5"
    task = JsonlTask(answer_from="last_line")
    assert judge(task, response, *rules).tests_passed == (True, True, False)
    assert judge(task, response, *rules).reward == 0.0
    assert judge(JsonlTask(answer_from="last_line", reward="share"), response, *rules).reward == pytest.approx(2 / 3)
    assert judge(task, "Because.\n5", *rules) == Feedback(1.0, (True, True, True), "All 3 tests passed.")


def test_feedback_says_what_was_found_and_what_kind_was_expected_but_not_the_answer():
    task = JsonlTask(match="numeric", absolute_tolerance=0.5)
    assert judge(task, "41", Rule("numeric", "42.75")).text == (
        "The answer found is: 41\nThat is wrong. Expected a number (within 0.5, or 1e-06 of its value)."
    )
    assert judge(task, "42.75", Rule("numeric", "42.75")).text == "The answer is right."
    assert judge(JsonlTask(), "no", Rule("normalised", "yes")).text == (
        "The answer found is: no\n"
        "That is wrong. Expected a certain text, whatever its case, spaces and punctuation at the ends."
    )


def test_feedback_shows_the_right_answer_where_that_is_asked_for():
    feedback = judge(JsonlTask(leak_answers=True), "no", Rule("exact", "yes"))
    assert feedback.text.endswith("Expected a certain text, character for character, namely yes.")


def test_feedback_names_the_failed_tests_and_where_an_answer_was_missed():
    task = JsonlTask(answer_from="after_marker", answer_marker="####")
    feedback = judge(task, "because 5", Rule("exact", "5"), Rule("regex", "because"), Rule("regex", "so"))
    assert feedback.text == (
        'No answer was found: it has to stand after "####".\n'
        "2 of 3 tests failed.\n"
        "Test 1 failed: expected a certain text, character for character.\n"
        "Test 3 failed: expected a response in which a certain pattern is found."
    )


@pytest.mark.parametrize("response", ["", "x" * 1_000_000, "\x00\ud800💥", "<think>" * 10_000, "{{ 7 * 7 }} %s {0}"])
@pytest.mark.parametrize("match", ["exact", "normalised", "numeric", "regex"])
def test_hostile_output_is_a_failure_with_a_short_text(match, response):
    feedback = judge(JsonlTask(leak_answers=True), response, *[Rule(match, "1234567")] * 50)
    assert (feedback.reward, set(feedback.tests_passed)) == (0.0, {False})
    assert len(feedback.text) < 3000


@pytest.mark.parametrize(("workers", "timeout_s"), [(0, 0.3), (1, 3.0)])  # a worker's limit has room for its start
@pytest.mark.parametrize(
    ("task", "rule"),
    [
        (JsonlTask(), Rule("regex", "(a+)+$")),
        (JsonlTask(answer_from="pattern", answer_pattern="^(a+)+$"), Rule("exact", "5")),
    ],
    ids=["rule", "extraction"],
)
def test_a_catastrophic_pattern_is_stopped_by_the_verifiers_limit(task, rule, workers, timeout_s):
    verifier = Verifier(task, workers=workers, timeout_s=timeout_s)
    start = time.monotonic()
    (feedback,) = verifier.verify([example(rule)], [CATASTROPHE])
    verifier.close()
    assert feedback.error == "timeout"
    assert time.monotonic() - start < 30


def test_mathematics_leaves_the_verifiers_alarm_alone():
    pytest.importorskip("math_verify")
    verifier = Verifier(JsonlTask(match="math_verify"), workers=0, timeout_s=1.0)
    endless = (Rule("math_verify", "1"), Rule("regex", "(a+)+$"))  # math-verify's own alarm would cancel the verifier's
    (feedback,) = verifier.verify([example(*endless)], [CATASTROPHE])
    assert feedback.error == "timeout"


def test_an_example_of_another_task_is_refused():
    for answer in ("5", (), ("5",)):
        with pytest.raises(ValueError, match="answer must be a tuple of rules"):
            JsonlTask().verify(Example("e", (), answer), "5")


# Config


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"match": "near"}, "data.task.init_args.match must be one of exact, normalised"),
        ({"reward": "some"}, "data.task.init_args.reward must be all or share"),
        ({"absolute_tolerance": -1.0}, "data.task.init_args.absolute_tolerance must be at least 0"),
        ({"relative_tolerance": float("nan")}, "data.task.init_args.relative_tolerance must be at least 0"),
        ({"answer_from": "pattern"}, "data.task.init_args.answer_pattern"),
        ({"val_share": 1.0}, "data.task.init_args.val_share"),
    ],
)
def test_bad_argument_is_refused_by_its_key(arguments, words):
    with pytest.raises(ConfigError) as caught:
        JsonlTask(**arguments)
    assert words in str(caught.value)


def test_missing_math_verify_is_refused_when_the_task_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr("resd_lightning.tasks.jsonl.rules.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"data\.task\.init_args\.match math_verify needs the extra `math`"):
        JsonlTask(match="math_verify")
    path = write(tmp_path / "rows.jsonl", {"prompt": "x", "tests": [{"match": "math_verify", "answer": "1"}]})
    with pytest.raises(ConfigError, match="line 1: test 1: match math_verify needs the extra `math`"):
        JsonlTask(train_path=path).examples("train")


def test_task_and_examples_go_to_worker_processes(tmp_path):
    path = write(tmp_path / "rows.jsonl", {"prompt": "x", "answer": "5"})
    task = JsonlTask(train_path=path)
    (row,) = task.examples("train")
    assert pickle.loads(pickle.dumps(task)).verify(pickle.loads(pickle.dumps(row)), "5").is_success


def test_shipped_config_names_the_task_and_the_docstring_explains_every_argument():
    path = Path(__file__).resolve().parents[3] / "configs" / "task" / "jsonl.yaml"
    parser = ArgumentParser()
    parser.add_subclass_arguments(JsonlTask, "task")
    class_path = yaml.safe_load(path.read_text())["data"]["task"]["class_path"]
    task = parser.parse_args([f"--task={class_path}", "--task.init_args.match=numeric"]).task
    assert JsonlTask(**task.init_args.as_dict()).match == "numeric"
    documented = JsonlTask.__doc__ or ""
    assert all(f"        {name}: " in documented for name in inspect.signature(JsonlTask).parameters)
