from __future__ import annotations

import base64
import json
import pickle
import sys
import zlib
from pathlib import Path

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.sandbox import pool as pool_module
from resd_lightning.sandbox.isolation import Isolation
from resd_lightning.tasks.bouncing_sim import BouncingSimTask

ASSERTS = ["assert check_distance(predict_position(0.10), [[1.0, 2.0]]) <= 50.0"]


def row(identifier: str = "a", **changes: object) -> dict[str, object]:
    return {
        "messages": [{"role": "user", "content": f"Predict {identifier} {{{{ x }}}}"}],
        "ground_truth": ASSERTS,
        "dataset": "ballsim",
        "id": identifier,
        "difficulty": 1,
        "timestamps": [0.1],
        "tolerance": 50.0,
        "prompt_setting": "function",
    } | changes


def write(path: Path, *rows: object) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def test_lines_and_list_and_both_forms_of_ground_truth_give_the_same_examples(tmp_path: Path) -> None:
    rows = [row("a"), row("b", ground_truth=json.dumps(ASSERTS))]
    lines = BouncingSimTask(train_path=write(tmp_path / "rows.jsonl", *rows, "")).examples("train")
    listed = BouncingSimTask(train_path=write(tmp_path / "rows.json", json.dumps(rows, indent=1))).examples("train")
    assert lines == listed
    assert [example.id for example in lines] == ["a", "b"]
    assert lines[0].answer == lines[1].answer == tuple(ASSERTS)
    assert lines[0].question == "Predict a {{ x }}"


def test_val_is_test_and_sizes_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", row("a"), row("b"), row("c"))
    task = BouncingSimTask(train_path=path, test_path=path, train_size=2, test_size=1)
    assert [len(task.examples(split)) for split in ("train", "test")] == [2, 1]
    assert task.examples("val") == task.examples("test")


def test_training_rows_can_be_held_out_and_then_no_test_rows_are_needed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(row(name) for name in "abcdefgh"))
    task = BouncingSimTask(train_path=path, val_share=0.25)
    train, val = ({example.id for example in task.examples(split)} for split in ("train", "val"))
    assert (len(train), len(val), train | val) == (6, 2, set("abcdefgh"))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        *((json.dumps({k: v for k, v in row("b").items() if k != key}), f"the field {key} is missing")
          for key in ("messages", "ground_truth", "id")),
        ('{"id": "b",', "broken JSON"),
        ("7", "a row must be an object, got int"),
        (row("a"), "the id 'a' is already taken"),
        (row("b", id=3), "id must be a non-empty string, got 3"),
        (row("b", messages=[]), "messages must be a non-empty list"),
        (row("b", messages=[{"role": "user"}]), "messages must hold objects with the strings role and content"),
        (row("b", ground_truth=[]), "ground_truth: the asserts must not be an empty list"),
        (row("b", ground_truth={}), "ground_truth: the asserts must be a list of strings, got dict"),
        (row("b", ground_truth=[*ASSERTS, "assert True"]), "ground_truth: assert 2 must have the form"),
        (row("b", ground_truth="not (JSON)"), "ground_truth is a string but not JSON"),
    ],
)  # fmt: skip
def test_a_bad_row_is_refused_by_file_and_line(tmp_path: Path, bad: object, words: str) -> None:
    path = write(tmp_path / "rows.jsonl", row("a"), bad)
    with pytest.raises(ConfigError, match=r"rows\.jsonl, line 2: ") as caught:
        BouncingSimTask(test_path=path).examples("test")
    assert str(caught.value).startswith("data.task.init_args.test_path: ")
    assert words in str(caught.value)


class Exploding:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize("value", [ASSERTS, Exploding()])
def test_the_pickled_form_is_refused_and_never_unpickled(tmp_path: Path, value: object) -> None:
    packed = base64.b64encode(zlib.compress(pickle.dumps(value))).decode()
    path = write(tmp_path / "rows.jsonl", row("a", ground_truth=packed))
    with pytest.raises(
        ConfigError, match=r"line 1: ground_truth is in the older form, a pickle .* download the rows anew"
    ):
        BouncingSimTask(train_path=path).examples("train")


def test_without_a_file_or_box2d_it_says_what_to_install_or_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "Box2D", None)
    words = r"train_path is not set, and .* the extra `bouncing`.*bouncingsim-MULTIOBJ_MULTIOBJ-easy.*in .*train_path"
    with pytest.raises(ConfigError, match=words):
        BouncingSimTask().examples("train")
    with pytest.raises(ConfigError, match="test_path is not set, but the other path is"):
        BouncingSimTask(train_path="x").examples("val")
    with pytest.raises(ConfigError, match=r"train_path: .*absent.jsonl is not a file. Download"):
        BouncingSimTask(train_path=str(tmp_path / "absent.jsonl")).examples("train")


def test_a_file_without_rows_or_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with pytest.raises(ConfigError, match="empty holds no rows"):
        BouncingSimTask(train_path=str(tmp_path / "empty")).examples("train")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="binary, line 1: not UTF-8"):
        BouncingSimTask(train_path=str(tmp_path / "binary")).examples("train")


def test_required_isolation_is_checked_before_any_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "find_isolation", lambda: Isolation("rlimits", ()))
    path = write(tmp_path / "rows.jsonl", row())
    with pytest.raises(ConfigError, match="require_isolation"):
        BouncingSimTask(train_path=path, require_isolation=True).examples("train")
    assert BouncingSimTask(train_path=path).examples("train")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_size", 0),
        ("test_size", 0),
        ("timeout_s", 0),
        ("memory_mib", 1),
        ("max_shown_times", 0),
        ("difficulty", "odd"),
        ("val_share", 1.0),
    ],
)
def test_settings_out_of_range_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"data\.task\.init_args\.{key} must be"):
        BouncingSimTask(**{key: value})  # type: ignore[arg-type]
