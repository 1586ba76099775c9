from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import pytest

from resd_lightning.run_folder import RunFolder, append_lines, keep_lines, read_lines, replace_text, replaced_folder


def test_appended_lines_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_lines(path, [{"a": 1}, {"b": ["é", "line\nbreak\u2028"]}])
    append_lines(path, [])
    append_lines(path, [{"c": None}])
    assert list(read_lines(path)) == [{"a": 1}, {"b": ["é", "line\nbreak\u2028"]}, {"c": None}]
    assert path.read_bytes().count(b"\n") == 3


def test_a_file_that_is_missing_has_no_lines(tmp_path: Path) -> None:
    assert list(read_lines(tmp_path / "none")) == []
    keep_lines(tmp_path / "none", lambda line: True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("cut", [b'{"a": ', b'{"a": 2}', '{"a": "é'.encode()[:-1]])
def test_a_line_cut_off_in_writing_is_left_out_and_cleared_away(tmp_path: Path, cut: bytes) -> None:
    path = tmp_path / "x.jsonl"
    append_lines(path, [{"a": 1}])
    with path.open("ab") as file:
        file.write(cut)  # even a whole object: without its line break nobody knows that it is whole
    assert list(read_lines(path)) == [{"a": 1}]
    keep_lines(path, lambda line: True)
    append_lines(path, [{"a": 3}])
    assert list(read_lines(path)) == [{"a": 1}, {"a": 3}]


def test_half_a_surrogate_pair_is_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_lines(path, [{"a": "\ud83d, \\ud83d and é"}])
    keep_lines(path, lambda line: True)
    assert list(read_lines(path)) == [{"a": "\ud83d, \\ud83d and é"}]


def test_keep_lines_drops_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    append_lines(path, [{"n": n} for n in range(5)])
    keep_lines(path, lambda line: int(str(line["n"])) % 2 == 0)
    assert list(read_lines(path)) == [{"n": 0}, {"n": 2}, {"n": 4}]


def test_replacing_leaves_the_old_text_where_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    replace_text(path, "old")

    def killed(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        replace_text(path, "new")
    assert path.read_text() == "old"
    monkeypatch.undo()
    replace_text(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["x.json"]


def test_a_folder_has_a_run_once_there_is_something_to_lose(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_text("x")
    assert not folder.has_run
    append_lines(folder.metrics, [{}])
    assert folder.has_run
    folder.delete_run()
    folder.last_checkpoint.parent.mkdir(parents=True)
    folder.last_checkpoint.write_text("x")
    assert folder.has_run


def test_deleting_a_run_spares_what_isnt_the_runs(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "notes.md").write_text("mine")
    for path in (folder.last_checkpoint, folder.student(4) / "adapter.bin", tmp_path / "tensorboard" / "events"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    for path in (
        folder.config,
        folder.metrics,
        folder.transcripts,
        folder.diagnostics,
        folder.predictions,
        folder.summary,
        folder.playbook,
    ):
        path.write_text("x")
    folder.delete_run()
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]
    folder.delete_run()  # nothing left to delete is no error


def test_students_are_listed_oldest_first(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for updates in (12, 0, 104, 8):
        folder.student(updates).mkdir(parents=True)
    assert [path.name for path in folder.students()] == [f"update-{n:05d}" for n in (0, 8, 12, 104)]


def test_a_folder_takes_anothers_place_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "student"
    target.mkdir()
    (target / "old").write_text("old")
    with suppress(RuntimeError), replaced_folder(target) as scratch:
        scratch.mkdir()
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["old"]
    with replaced_folder(target) as scratch:
        scratch.mkdir()
        (scratch / "new").write_text("new")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [target]
