from __future__ import annotations

import json
import pickle
import random
from dataclasses import dataclass
from pathlib import Path

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.records import Example, Feedback, Split
from resd_lightning.tasks.files import FileTask, hold_out
from resd_lightning.tasks.rows import Fields, clip, read_messages, read_rows, read_text_field


@dataclass(frozen=True)
class Named:
    id: str
    number: int


def named(fields: Fields, number: int) -> Named:
    return Named(read_text_field(fields, "id"), number)


def read(path: Path) -> tuple[Named, ...]:
    return read_rows(path, named, key="some.key", absent="Make one.")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_lines_are_numbered_as_in_the_file_and_list_rows_by_their_place(tmp_path):
    lines = write(tmp_path / "a.jsonl", '{"id": "a"}\n\n  \n{"id": "b"}\n')
    assert read(lines) == (Named("a", 1), Named("b", 4))
    listed = write(tmp_path / "a.json", '\n[{"id": "a"},\n\n {"id": "b"}]')
    assert read(listed) == (Named("a", 1), Named("b", 2))


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbf{"id": "a"}\n{"id": "b"}',
        b'{"id": "a"}\r\n{"id": "b"}\r\n',
        '{"id": "a", "text": "one\u2028two\u0085three"}\n{"id": "b"}',
    ],
    ids=["byte order mark", "line ends of Windows", "separators inside a string"],
)
def test_what_editors_make_of_a_file_is_read(tmp_path, content):
    assert [row.id for row in read(write(tmp_path / "a.jsonl", content))] == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "a.jsonl holds no rows"),
        (" \n\n", "a.jsonl holds no rows"),
        ("[]", "a.jsonl holds no rows"),
        ('{"id": "a"}\n{"id":', "a.jsonl, line 2: broken JSON: Expecting value"),
        ('{"id": "a"}\n{"id": "b"} {}', "a.jsonl, line 2: broken JSON: Extra data"),
        ('[{"id": "a"},\n{]', "a.jsonl, line 2: broken JSON"),
        ('{"id": "a"}\n{"id": ' + "9" * 5000 + "}", "a.jsonl, line 2: JSON that can't be read"),
        ('{"id": "a"}\n7', "a.jsonl, line 2: a row must be an object, got int"),
        ('[{"id": "a"}, null]', "a.jsonl, row 2: a row must be an object, got NoneType"),
        ('{"id": "a"}\n{}', "a.jsonl, line 2: the field id is missing"),
        ('{"id": "a"}\n{"id": " "}', "a.jsonl, line 2: id must be a non-empty string, got ' '"),
        ('{"id": "a"}\n{"id": ["b"]}', "a.jsonl, line 2: id must be a non-empty string, got ['b']"),
        ('{"id": "a"}\n\n{"id": "a"}', "a.jsonl, line 3: the id 'a' is already taken (some.key: "),
        (b'{"id": "a"}\n{"id": "\xff"}', "a.jsonl, line 2: not UTF-8 text"),
        (b"PAR1\xff\x00", "a.jsonl, line 1: not UTF-8 text"),
    ],
)
def test_bad_file_is_refused_by_key_file_and_line(tmp_path, content, words):
    path = write(tmp_path / "a.jsonl", content)
    with pytest.raises(ConfigError) as caught:
        read(path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(f"some.key: {path}")


def test_missing_file_and_folder_say_how_to_come_by_one(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(ConfigError) as caught:
            read(path)
        assert str(caught.value) == f"some.key: {path} is not a file. Make one."


@pytest.mark.parametrize("value", [None, [], "hi", [3], [{"role": "user"}], [{"role": "user", "content": 3}]])
def test_what_is_no_chat_is_refused(value):
    with pytest.raises(ValueError, match="messages must"):
        read_messages(value)


def test_chat_keeps_role_and_content_only():
    chat = [{"role": "system", "content": "s", "name": "x"}, {"role": "user", "content": "u"}]
    assert read_messages(chat) == ({"role": "system", "content": "s"}, {"role": "user", "content": "u"})


def test_clipped_text_keeps_both_ends_and_has_the_limits_length():
    assert clip("abc", 3) == "abc"
    assert clip("abcdefghijklm", 12) == "abcdef...klm"
    assert len(clip("x" * 1000)) == 60


# Splits


class LetterTask(FileTask):
    """Examples that are a letter each."""

    def __init__(self, val_share: float = 0.0, seed: int = 0, train_size: int | None = None, **paths: str) -> None:
        super().__init__(paths.get("train_path"), paths.get("test_path"), val_share, seed, train_size, 2)

    def read_row(self, fields: Fields, place: str) -> Example:
        return Example(place, (), read_text_field(fields, "letter"))

    def how_to_get(self, split: Split) -> str:
        return f"Write letters to {split}."

    def verify(self, example: Example, response: str) -> Feedback:
        raise NotImplementedError


def letters(path: Path, text: str) -> str:
    return str(write(path, "\n".join(json.dumps({"letter": letter}) for letter in text)))


def of(task: FileTask, split: Split) -> str:
    return "".join(str(example.answer) for example in task.examples(split))


@pytest.fixture
def paths(tmp_path: Path) -> dict[str, str]:
    return {
        "train_path": letters(tmp_path / "train.jsonl", "abcdefgh"),
        "test_path": letters(tmp_path / "test.jsonl", "xyz"),
    }


def test_validation_is_the_test_file_unless_a_share_of_train_is_held_out(paths):
    task = LetterTask(**paths)
    assert (of(task, "train"), of(task, "test")) == ("abcdefgh", "xy")  # two test rows are kept
    assert task.examples("val") is task.examples("test")
    assert [example.id for example in task.examples("test")] == ["test-1", "test-2"]

    held = LetterTask(val_share=0.25, **paths)
    train, val = of(held, "train"), of(held, "val")
    assert (len(train), len(val), of(held, "test")) == (6, 2, "xy")
    assert sorted(train + val) == list("abcdefgh")
    assert list(train) == sorted(train)
    assert val == of(LetterTask(val_share=0.25, **paths), "val")
    assert {of(LetterTask(val_share=0.25, seed=seed, **paths), "val") for seed in range(5)} > {val}


def test_sizes_are_counted_before_anything_is_held_out(paths):
    task = LetterTask(val_share=0.5, train_size=4, **paths)
    assert sorted(of(task, "train") + of(task, "val")) == list("abcd")


def test_a_split_without_a_path_says_what_to_set(paths):
    with pytest.raises(ConfigError) as caught:
        LetterTask().examples("train")
    assert str(caught.value) == "data.task.init_args.train_path is not set. Write letters to train."
    with pytest.raises(ConfigError, match=r"test_path is not set\. Write letters to test\. To hold out training rows"):
        LetterTask(train_path=paths["train_path"]).examples("val")
    assert len(LetterTask(train_path=paths["train_path"], val_share=0.5).examples("val")) == 4


def test_pickled_task_leaves_its_examples_behind(paths):
    task = LetterTask(**paths)
    bare = len(pickle.dumps(task))
    assert of(task, "train")
    assert len(pickle.dumps(task)) == bare
    assert of(pickle.loads(pickle.dumps(task)), "train") == "abcdefgh"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"val_share": 1.0}, "data.task.init_args.val_share must be in"),
        ({"val_share": float("nan")}, "data.task.init_args.val_share must be in"),
        ({"train_size": 0}, "data.task.init_args.train_size must be at least 1, or null, got 0"),
    ],
)
def test_argument_out_of_range_is_refused_by_its_key(arguments, words):
    with pytest.raises(ConfigError, match=words):
        LetterTask(**arguments)


def test_a_share_that_leaves_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"val_share 0\.9 leaves none of 1 training examples"):
        hold_out([Example("a", (), None)], 0.9, random.Random(0))
