from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from resd_lightning.config import ConfigError
from resd_lightning.records import Example
from resd_lightning.tasks.finer import FinerTask, extract_tags, split_context

EXAMPLE = Example("e", (), "Goodwill,SharePrice,Revenues,LineOfCredit")
CONTEXT = (
    "You are XBRL expert.  Here is a list of US GAAP tags options: ,Goodwill,Revenues. Answer the following 2 "
    "independent questions. Each answer must be saperated by a comma (,).  Provide nothing else. \n"
    '1. What is best tag for entity "8" in sentence: "{{ 8 }} %s"\n'
    '2. What is best tag for entity "9" in sentence: "9"\n'
    "Output US GAAP tags:"
)


def row(**changes: object) -> str:
    return json.dumps({"context": CONTEXT, "target": "Goodwill,Revenues"} | changes)


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def passed(response: str, task: FinerTask | None = None) -> str:
    feedback = (task or FinerTask()).verify(EXAMPLE, response)
    return "".join("+" if one else "-" for one in feedback.tests_passed)


# Judging


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<answer>Goodwill,SharePrice,Revenues,LineOfCredit</answer>", "++++"),
        ("<answer>\n goodwill , SHAREPRICE,Revenues\t,Line Of Credit\n</answer>", "++++"),
        ("<answer>SharePrice,Goodwill,Revenues,LineOfCredit</answer>", "--++"),
        ("<answer>Goodwill,SharePrice</answer>", "++--"),
        ("<answer>,SharePrice,,LineOfCredit</answer>", "-+-+"),
        ("<answer>Goodwill,SharePrice,Revenues,LineOfCredit,Goodwill</answer>", "++++"),
        ("<answer>X,Goodwill,SharePrice,Revenues,LineOfCredit</answer>", "----"),
        ("<answer></answer>", "----"),
        ("<answer>Goodwill;SharePrice;Revenues;LineOfCredit</answer>", "----"),
    ],
)
def test_tags_are_compared_place_by_place_whatever_their_case_and_spaces(response, expected):
    assert passed(response) == expected
    assert FinerTask().verify(EXAMPLE, response).is_success == (expected == "++++")


@pytest.mark.parametrize(
    ("response", "tags"),
    [
        ("<answer>A</answer> or <answer>B,C</answer>", ["B", "C"]),
        ("<answer>A</answer> or <answer>B", ["A"]),
        ("<answer>A <answer>B</answer>", ["B"]),
        ("<answer>A</answer> B</answer>", ["A"]),
        ("<think><answer>A</answer></think><answer>B</answer>", ["B"]),
        ("<answer>A</answer></think>so <answer>B</answer>", ["B"]),
        ("<think><answer>A</answer></think>B", None),
        ("<think>cut off <answer>A</answer>", None),
        ("A,B,C,D", None),
        ("</answer>A<answer>", None),
        ("", None),
        ("<answer>  \n</answer>", []),
    ],
)
def test_the_last_complete_answer_after_the_thinking_counts(response, tags):
    assert extract_tags(response) == tags


def test_reward_is_all_or_nothing_unless_the_share_is_asked_for():
    three = "<answer>Goodwill,SharePrice,Revenues,X</answer>"
    every = "<answer>Goodwill,SharePrice,Revenues,LineOfCredit</answer>"
    assert [FinerTask().verify(EXAMPLE, response).reward for response in (three, every, "")] == [0.0, 1.0, 0.0]
    task = FinerTask(reward="share")
    assert [task.verify(EXAMPLE, response).reward for response in (three, every, "")] == [0.75, 1.0, 0.0]


def test_feedback_says_which_tags_are_wrong_and_leaks_the_right_ones_by_default():
    response = "<answer>Goodwill,Revenues</answer>"
    assert FinerTask().verify(EXAMPLE, response).text == (
        "1 of 4 tags are right.\n"
        "The answer has 2 tags, 4 were asked for.\n"
        "Tag 2 is wrong: Revenues. The right tag is SharePrice.\n"
        "Tag 3 is missing. The right tag is Revenues.\n"
        "Tag 4 is missing. The right tag is LineOfCredit."
    )
    assert FinerTask(leak_answers=False).verify(EXAMPLE, response).text == (
        "1 of 4 tags are right.\n"
        "The answer has 2 tags, 4 were asked for.\n"
        "Tag 2 is wrong: Revenues.\n"
        "Tag 3 is missing.\n"
        "Tag 4 is missing."
    )


def test_format_error_says_the_form_and_leaks_nothing():
    feedback = FinerTask().verify(EXAMPLE, "Goodwill,SharePrice,Revenues,LineOfCredit")
    assert feedback.tests_passed == (False,) * 4
    assert feedback.text == (
        "The response holds no complete answer. End your response with the tags alone, in the order of the questions, "
        "in this form: <answer>A,B,C,D</answer>"
    )


@pytest.mark.parametrize(
    "response",
    [
        "<answer>" * 100_000,
        "<answer>" + "a" * 1_000_000 + "</answer>",
        "<answer>" + "," * 1_000_000 + "</answer>",
        "</answer><answer>" * 50_000,
        "<answer>__import__('os').abort(),exit(),{{ 7 * 7 }},%s</answer>",
        "<answer>\x00,\ud800,\u202e,💥</answer>",
    ],
    ids=["opened only", "one long tag", "commas", "inside out", "code", "odd characters"],
)
def test_hostile_output_is_a_failure_with_a_short_text(response):
    feedback = FinerTask().verify(EXAMPLE, response)
    assert (feedback.reward, feedback.tests_passed) == (0.0, (False,) * 4)
    assert len(feedback.text) < 1000


@pytest.mark.parametrize(("answer", "words"), [(("A", "B"), "must be a string of tags"), ("A,,B", "1 to 26 tags")])
def test_an_example_of_another_task_is_refused(answer, words):
    with pytest.raises(ValueError, match=words):
        FinerTask().verify(Example("e", (), answer), "<answer>A</answer>")


# Reading


def test_a_row_becomes_the_shared_instruction_and_the_questions_with_the_answers_form(tmp_path):
    (example,) = FinerTask(train_path=write(tmp_path / "rows.jsonl", row())).examples("train")
    system, user = example.messages
    assert (system["role"], user["role"]) == ("system", "user")
    assert system["content"].endswith("must be saperated by a comma (,).")
    assert user["content"].startswith('1. What is best tag for entity "8" in sentence: "{{ 8 }} %s"\n2. What')
    assert user["content"].endswith('"9"\n\n' + user["content"][user["content"].index("End your response") :])
    assert user["content"].endswith("in this form: <answer>A,B</answer>")
    assert "Provide nothing else" not in system["content"] + user["content"]
    assert (example.id, example.answer) == ("finer-train-1", "Goodwill,Revenues")


def test_the_first_end_of_the_instruction_counts_and_quotes_stay_in_the_questions():
    assert split_context("Do. Provide nothing else.\n1. Provide nothing else.?") == ("Do.", "1. Provide nothing else.?")


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ('{"context": "x"}', "the field target is missing"),
        ('{"target": "x"}', "the field context is missing"),
        (row(context=3), "context must be a non-empty string, got 3"),
        (row(target=["Goodwill"]), "target must be a non-empty string, got ['Goodwill']"),
        (row(target=""), "target must be a non-empty string"),
        (row(target="Goodwill,"), "target must be 1 to 26 tags with commas between, got 'Goodwill,'"),
        (row(target=",".join("x" * 27)), "target must be 1 to 26 tags"),
        (row(context="What is the tag?"), 'with "Provide nothing else." between them'),
        (row(context="Do. Provide nothing else. Output US GAAP tags:"), "context must be an instruction and questions"),
        ("[", "broken JSON"),
    ],
)
def test_bad_row_is_refused_with_file_and_line(tmp_path, bad, words):
    path = write(tmp_path / "rows.jsonl", row(), bad)
    with pytest.raises(ConfigError) as caught:
        FinerTask(test_path=path).examples("test")
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"data.task.init_args.test_path: {path}, line 2: ")


@pytest.mark.parametrize(
    ("split", "file"),
    [
        ("train", "finer_train_batched_1000_samples.jsonl"),
        ("val", "finer_val_batched_500_samples.jsonl"),
        ("test", "finer_val_batched_500_samples.jsonl"),
    ],
)
@pytest.mark.parametrize("path", [None, "/nowhere/rows.jsonl"])
def test_missing_rows_say_what_to_download_and_where_to_put_it(split, file, path):
    key = f"data.task.init_args.{'train' if split == 'train' else 'test'}_path"
    task = FinerTask(train_path=path, test_path=path)  # constructing reads nothing
    with pytest.raises(ConfigError) as caught:
        task.examples(split)
    assert str(caught.value).startswith(f"{key} is not set." if path is None else f"{key}: {path} is not a file.")
    assert f"eval/finance/data/{file} from https://github.com/ace-agent/ace" in str(caught.value)
    assert f"set {key} to where it lies" in str(caught.value)


def test_unknown_reward_is_refused_by_its_key():
    with pytest.raises(ConfigError, match="reward must be all or share, got 'some'"):
        FinerTask(reward="some")


def test_shipped_config_names_the_task_and_the_docstring_explains_every_argument():
    path = Path(__file__).resolve().parents[3] / "configs" / "task" / "finer.yaml"
    parser = ArgumentParser()
    parser.add_subclass_arguments(FinerTask, "task")
    class_path = yaml.safe_load(path.read_text())["data"]["task"]["class_path"]
    task = parser.parse_args([f"--task={class_path}", "--task.init_args.reward=share"]).task
    assert FinerTask(**task.init_args.as_dict()).reward == "share"
    documented = FinerTask.__doc__ or ""
    assert all(f"        {name}: " in documented for name in inspect.signature(FinerTask).parameters)
