from __future__ import annotations

import json
from pathlib import Path

import pytest

from resd_lightning.config import ConfigError, ContextConfig
from resd_lightning.context.files import playbooks_text, read_initial_playbook, read_playbooks
from resd_lightning.context.playbook import Playbook
from resd_lightning.context.store import GLOBAL, ContextStore

PLAYBOOK = Playbook(step=3).add("others", "a\r\nb", update=2, source="train-1").add("formulas", "1 + 1 = 2")


@pytest.mark.parametrize("ending", [".json", ".md"])
def test_a_file_of_either_kind_reads_back(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"playbook{ending}"
    path.write_bytes(playbooks_text({GLOBAL: PLAYBOOK}, path).encode())
    assert read_playbooks(path) == {GLOBAL: PLAYBOOK}


def test_playbooks_by_example_are_json_only(tmp_path: Path) -> None:
    path, by_example = tmp_path / "playbooks.json", {"a": PLAYBOOK, "b": Playbook()}
    path.write_text(playbooks_text(by_example, path))
    assert read_playbooks(path) == by_example
    with pytest.raises(ConfigError, match="Markdown holds one playbook"):
        playbooks_text(by_example, tmp_path / "playbooks.md")


BROKEN = {
    "line 2, column 1": "{\n",
    "must be an object with entries, got list": "[]",
    "entries must be a list, got dict": '{"entries": {}}',
    "or of such objects by example id": '{"step": 3}',
    "example a: playbook: entries must be a list": '{"a": {}}',
    r"entries\[1\] \(id e1\): harmful must be a whole number of at least 0, got -2": json.dumps(
        {"entries": [{"id": i, "section": "others", "text": "x", "harmful": n} for i, n in (("e2", 0), ("e1", -2))]}
    ),
    r"entries\[0\] \(id e1\): text must be a text": '{"entries": [{"id": "e1", "section": "others", "text": 3}]}',
    "entry e1: the playbook has this id twice": json.dumps(
        {"entries": [{"id": "e1", "section": "others", "text": "x"}] * 2}
    ),
    "key 'entries' stands twice": '{"entries": [], "entries": []}',
}


@pytest.mark.parametrize(("said", "text"), BROKEN.items())
def test_an_initial_playbook_is_refused_by_key_file_and_entry(tmp_path: Path, said: str, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"^model.context.initial_playbook: {path}: .*{said}"):
        read_initial_playbook(ContextConfig(initial_playbook=str(path)))


def test_an_initial_playbook_that_is_no_such_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "playbook.txt").write_text("")
    (tmp_path / "latin.json").write_bytes("é".encode("latin-1"))
    (tmp_path / "several.json").write_text('{"a": {"entries": []}}')
    for name, said in {
        "none.json": "no file at",
        "playbook.txt": "ends in .json or .md",
        "latin.json": "utf-8",
        "several.json": "holds playbooks by example",
    }.items():
        with pytest.raises(ConfigError, match=rf"model.context.initial_playbook: .*{said}"):
            read_initial_playbook(ContextConfig(initial_playbook=str(tmp_path / name)))
    with pytest.raises(ConfigError, match=r"initial_playbook is one playbook for all: model.context.scope"):
        ContextConfig(initial_playbook="x.json", scope="example")


def test_an_initial_playbook_keeps_its_record_and_is_as_old_as_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "playbook.md"
    path.write_bytes(playbooks_text({GLOBAL: PLAYBOOK}, path).encode())
    initial = read_initial_playbook(ContextConfig(initial_playbook=str(path), max_entries=1))
    assert [entry.text for entry in initial.entries] == ["a\r\nb", "1 + 1 = 2"]
    assert {entry.created_update for entry in initial.entries} == {0}
    assert (initial.step, initial.next_number) == (3, 3)
    assert "the first update prunes to 1" in caplog.text
    assert read_initial_playbook(ContextConfig()) is None


def test_a_restored_context_forgets_the_initial_playbook() -> None:
    store = ContextStore("global", PLAYBOOK)
    assert store.playbook("any") == PLAYBOOK
    earlier = ContextStore("global")
    earlier.begin_update(["a"], keep_solutions=False)
    store.load_state_dict(earlier.state_dict())
    assert store.playbook("any") == Playbook(step=1)
