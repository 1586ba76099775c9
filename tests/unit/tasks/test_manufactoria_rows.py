from __future__ import annotations

import inspect
import json
import pickle
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

from resd_lightning.config import ConfigError
from resd_lightning.tasks.manufactoria import ManufactoriaTask
from resd_lightning.tasks.manufactoria.generator import generate

CASES = [
    {"input": "R", "expected_output": "", "expected_accepted": True, "check_output": False},
    {"input": "", "expected_output": "", "expected_accepted": False, "check_output": False},
]


def row(identifier: str = "a", **changes: object) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": f"Solve {identifier} {{{{ x }}}}"}],
        "ground_truth": CASES,
        "id": identifier,
        "name": "n",
        "difficulty": "basic",
        "problem_family": "starts_with",
        "dataset": "manufactoria",
    } | changes


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def load(path: str) -> ManufactoriaTask:
    return ManufactoriaTask(train_path=path, test_path=path)


def test_json_lines_and_json_list_give_the_same_examples(tmp_path):
    rows = [row("a"), row("b", ground_truth=json.dumps(CASES))]
    lines = load(write(tmp_path / "rows.jsonl", *map(json.dumps, rows), "")).examples("train")
    listed = load(write(tmp_path / "rows.json", json.dumps(rows, indent=1))).examples("train")
    assert lines == listed
    assert [example.id for example in lines] == ["a", "b"]
    assert lines[0].answer == lines[1].answer == tuple(CASES)
    assert lines[0].family == "starts_with"
    assert lines[0].question == "Solve a {{ x }}"


def test_rows_can_be_verified(tmp_path):
    task = load(write(tmp_path / "rows.jsonl", json.dumps(row())))
    program = "START start:\n    NEXT a\nPULLER_RB a:\n    [R] end\nEND end"
    assert task.verify(task.examples("test")[0], f"```manufactoria\n{program}\n```").reward == 1.0


def without(key: str) -> str:
    return json.dumps({name: value for name, value in row("b").items() if name != key})


def with_case(**changes: object) -> str:
    return json.dumps(row("b", ground_truth=[CASES[0] | changes]))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        *(
            (without(key), f"the field {key} is missing")
            for key in ("messages", "ground_truth", "id", "difficulty", "problem_family")
        ),
        ('{"id": "b",', "broken JSON"),
        ("7", "a row must be an object, got int"),
        (json.dumps(row("a")), "the id 'a' is already taken"),
        (json.dumps(row("b", id=3)), "id must be a non-empty string, got 3"),
        (json.dumps(row("b", id="")), "id must be a non-empty string"),
        (json.dumps(row("b", difficulty=None)), "difficulty must be a non-empty string"),
        (json.dumps(row("b", messages=[])), "messages must be a non-empty list"),
        (json.dumps(row("b", messages="hi")), "messages must be a non-empty list"),
        (json.dumps(row("b", messages=[{"role": "user"}])), "role and content"),
        (json.dumps(row("b", ground_truth="[{")), "ground_truth is a string but not JSON"),
        (json.dumps(row("b", ground_truth=[])), "ground_truth: test cases must not be an empty list"),
        (json.dumps(row("b", ground_truth={"input": "R"})), "ground_truth: test cases must be a list, got dict"),
        (json.dumps(row("b", ground_truth=[3])), "test case 1 must be an object"),
        (json.dumps(row("b", ground_truth=[CASES[0], {"input": ""}])), "test case 2 lacks the field expected_output"),
        (with_case(input="RX"), "input must be a string of the colours"),
        (with_case(input=None), "input must be a string of the colours"),
        (with_case(expected_accepted=1), "expected_accepted must be true or false"),
        (with_case(check_output="no"), "check_output must be true or false"),
        (with_case(expected_output=None, check_output=True), "expected_output must be a string"),
    ],
)
def test_bad_row_is_refused_with_file_and_line(tmp_path, bad, words):
    path = write(tmp_path / "rows.jsonl", json.dumps(row("a")), "", bad)
    with pytest.raises(ValueError, match="line 3") as caught:
        load(path).examples("train")
    assert words in str(caught.value)
    assert f"train_path: {path}" in str(caught.value)


def test_output_may_be_null_where_it_is_not_checked(tmp_path):
    path = write(tmp_path / "rows.jsonl", with_case(expected_output=None))
    assert load(path).examples("train")[0].answer == (CASES[0] | {"expected_output": ""},)


def test_bad_row_in_a_list_is_named_by_its_number(tmp_path):
    path = write(tmp_path / "rows.json", json.dumps([row("a"), {}]))
    with pytest.raises(ValueError, match="row 2: the field messages is missing"):
        load(path).examples("train")


def test_broken_list_names_its_line(tmp_path):
    with pytest.raises(ValueError, match="line 2: broken JSON"):
        load(write(tmp_path / "rows.json", "[{},", "{]")).examples("train")


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_empty_file_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="holds no rows"):
        load(write(tmp_path / "rows.jsonl", text)).examples("train")


def test_binary_file_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1\xff\xfe\x00")
    with pytest.raises(ValueError, match="not UTF-8"):
        load(str(path)).examples("train")


@pytest.mark.parametrize(("split", "key"), [("train", "train_path"), ("test", "test_path"), ("val", "test_path")])
def test_missing_file_says_what_to_download_and_where_to_put_it(split, key):
    task = load("/nowhere/rows.jsonl")  # constructing reads nothing
    with pytest.raises(ConfigError, match=f"{key}: /nowhere/rows.jsonl") as caught:
        task.examples(split)
    assert f"manufactoria/has_{'train' if split == 'train' else 'test'}" in str(caught.value)


def test_one_path_alone_does_not_mix_public_and_generated_problems(tmp_path):
    task = ManufactoriaTask(train_path=write(tmp_path / "rows.jsonl", json.dumps(row())))
    assert len(task.examples("train")) == 1
    with pytest.raises(ValueError, match="test_path is not set"):
        task.examples("test")


# Choosing problems


def test_generated_splits_are_stable_and_val_is_the_test_split():
    task = ManufactoriaTask()
    assert len(task.examples("train")) == 742
    assert len(task.examples("test")) == 132
    assert task.examples("val") is task.examples("test")
    assert task.examples("train") is task.examples("train")
    assert task.examples("train")[0].id == "has-train-0001"
    assert ManufactoriaTask().examples("test") == task.examples("test")


def test_pickled_task_leaves_its_examples_behind():
    task = ManufactoriaTask(test_size=2)
    bare = len(pickle.dumps(task))
    examples = task.examples("test")
    assert len(pickle.dumps(task)) == bare
    assert pickle.loads(pickle.dumps(task)).examples("test") == examples


def test_filters_and_sizes_choose_without_renaming():
    task = ManufactoriaTask(families=("contains_ordered",), difficulties=("easy",), train_size=5, test_size=1)
    chosen = task.examples("train")
    assert len(chosen) == 5
    assert {example.family for example in chosen} == {"contains_ordered"}
    puzzles = {problem.id: problem.puzzle for problem in generate(0, "train")}
    assert all(len(puzzles[example.id].pattern) <= 2 for example in chosen)
    assert len(task.examples("val")) == 1


def test_held_out_share_leaves_train_and_keeps_order():
    whole = [example.id for example in ManufactoriaTask(train_size=20).examples("train")]
    task = ManufactoriaTask(train_size=20, val_share=0.25)
    train = [example.id for example in task.examples("train")]
    val = [example.id for example in task.examples("val")]
    assert (len(train), len(val)) == (15, 5)
    assert sorted(train + val) == sorted(whole)
    assert train == [name for name in whole if name in train]
    assert val == [e.id for e in ManufactoriaTask(train_size=20, val_share=0.25).examples("val")]
    assert val != [e.id for e in ManufactoriaTask(train_size=20, val_share=0.25, seed=1).examples("val")]


def test_public_rows_are_filtered_by_their_own_words(tmp_path):
    path = write(tmp_path / "rows.jsonl", json.dumps(row("a")), json.dumps(row("b", difficulty="hard")))
    task = ManufactoriaTask(train_path=path, test_path=path, difficulties=("hard",))
    assert [example.id for example in task.examples("train")] == ["b"]
    with pytest.raises(ValueError, match=r"no train problem passes the filters families=\('nope',\)"):
        ManufactoriaTask(train_path=path, test_path=path, families=("nope",)).examples("train")


def test_share_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match="val_share"):
        ManufactoriaTask(train_size=1, val_share=0.5).examples("train")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"families": ("contains_all",)}, "families must be among"),
        ({"families": ()}, "families must be null to keep all, or name at least one"),
        ({"difficulties": ("trivial",)}, "difficulties must be among"),
        ({"train_size": 0}, "train_size must be at least 1, or null, got 0"),
        ({"test_size": -1}, "test_size must be at least 1, or null, got -1"),
        ({"max_shown_tapes": 0}, "max_shown_tapes must be at least 1"),
        ({"val_share": 1.0}, "val_share must be in"),
        ({"val_share": float("nan")}, "val_share must be in"),
        ({"prompt": "long"}, "prompt must be one of full, short"),
        ({"prompt": "short", "train_path": "rows.jsonl"}, "only for generated problems"),
    ],
)
def test_bad_argument_is_refused_by_name(arguments, words):
    with pytest.raises(ValueError, match=words):
        ManufactoriaTask(**arguments)


def test_shipped_config_names_the_task_and_the_docstring_explains_every_argument():
    path = Path(__file__).resolve().parents[3] / "configs" / "task" / "manufactoria.yaml"
    parser = ArgumentParser()
    parser.add_subclass_arguments(ManufactoriaTask, "task")
    class_path = yaml.safe_load(path.read_text())["data"]["task"]["class_path"]
    task = parser.parse_args([f"--task={class_path}", "--task.init_args.train_size=3"]).task
    assert task.class_path.endswith(".ManufactoriaTask")
    assert len(ManufactoriaTask(**task.init_args.as_dict()).examples("train")) == 3
    documented = ManufactoriaTask.__doc__ or ""
    assert all(f"        {name}: " in documented for name in inspect.signature(ManufactoriaTask).parameters)
