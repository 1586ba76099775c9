"""`resd playbook` on a run: edited, imported, gone on with and tried; and a run that starts from a playbook."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from test_bad_input import fit, own_command_line, run  # noqa: F401  # the fixture resets what main does to the process

from resd_lightning.checkpoint import load_checkpoint, read_checkpoint, stored_context
from resd_lightning.cli import main
from resd_lightning.config import ConfigError
from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.playbook_command.edit import edit, import_playbook, put_in_place
from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.rollout.scripted import ScriptedEngine
from resd_lightning.run_folder import RunFolder
from resd_lightning.tasks.base import Task

SECRET = "the word is tape"


class WordTask(Task):
    """Asks for a word that only a lesson tells."""

    def examples(self, split: Split) -> Sequence[Example]:
        size = 4 if split == "train" else 3
        return [Example(f"{split}-{i}", (Message(role="user", content="Which word?"),), "tape") for i in range(size)]

    def verify(self, example: Example, response: str) -> Feedback:
        return Feedback(float(response == example.answer), (), "wrong")


class Scripted(ScriptedEngine):
    """Knows the word behind the lesson, but for one prompt; lessons of its own are numbered by the update."""

    def __init__(self) -> None:
        super().__init__(self._answer)

    @staticmethod
    def _answer(purpose: str, update: int, example: str, sample: int, messages: Sequence[Message]) -> str:
        if purpose == "reflect":
            return json.dumps({"key_insight": "look it up", "tags": []})
        if purpose == "curate":
            return json.dumps({"operations": [{"type": "ADD", "section": "others", "content": f"lesson {update}"}]})
        return "tape" if SECRET in messages[-1]["content"] and not example.endswith("-2") else "?"


def command(base: Path, run_dir: Path, *more: str) -> list[str]:
    known = {"data.task": "test_playbook_command.WordTask", "data.engine": "test_playbook_command.Scripted"}
    options = [f"--{key}={value}" for key, value in known.items()]
    sampling = [f"--model.context.{key}.max_new_tokens=200" for key in ("reflect", "curate")]
    return [*fit(base, run_dir), *options, *sampling, "--data.rollout.max_new_tokens=9", *more]


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two updates, stopped after the first."""
    folder = tmp_path_factory.mktemp("playbook") / "run"
    assert run(command(tiny_base, folder, "--budget.prompts=2")) == 0
    return folder


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets EDITOR to a Python program about `path`."""

    def set_editor(program: str) -> None:
        file = tmp_path / "editor.py"
        file.write_text(f"import sys, pathlib\npath = pathlib.Path(sys.argv[1])\n{program}\n")
        monkeypatch.setenv("EDITOR", shlex.join([sys.executable, str(file)]))

    return set_editor


def state_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_edited_playbook_is_a_new_checkpoint_that_the_run_goes_on_with(
    finished: Path, tiny_base: Path, editor: Callable[[str], None]
) -> None:
    before = state_of(finished)
    editor(f"path.write_text(path.read_text().replace('lesson 0', {SECRET!r}))")
    edit(str(finished))
    (new,) = set(state_of(finished)) - set(before)
    assert new == "checkpoints/edited-00001-1.ckpt"
    assert state_of(finished).items() >= before.items()
    edited = load_checkpoint(finished / new)
    original = load_checkpoint(RunFolder(finished).last_checkpoint)
    assert [e.text for e in stored_context(edited).playbook().entries] == [SECRET]
    assert edited["resd"].keys() == original["resd"].keys()
    assert str(edited["optimizer_states"]) == str(original["optimizer_states"])

    # the configuration of the run names its folder: going on there loses nothing
    assert run(command(tiny_base, finished, f"--ckpt_path={finished / new}")) == 0
    playbook = Playbook.from_json((finished / "playbook.json").read_text())
    assert [entry.text for entry in playbook.entries] == [SECRET, "lesson 1"]
    assert read_checkpoint(RunFolder(finished).last_checkpoint).updates == 2
    # ... but an edit of an update that the run has left behind would
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["resd"])
        assert run(command(tiny_base, finished, f"--ckpt_path={finished / new}")) == 2


def test_an_editor_that_fails_or_changes_nothing_leaves_nothing(
    finished: Path, editor: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = state_of(finished)
    editor("")
    edit(str(finished))
    editor("sys.exit(3)")
    with pytest.raises(ConfigError, match=r"ended with status 3$"):
        edit(str(finished))
    editor("path.unlink()")
    with pytest.raises(ConfigError, match="left no file"):
        edit(str(finished))
    monkeypatch.setenv("EDITOR", "/nowhere/editor")
    with pytest.raises(ConfigError, match="EDITOR /nowhere/editor: No such file"):
        edit(str(finished))
    monkeypatch.delenv("EDITOR")
    with pytest.raises(ConfigError, match="EDITOR names no editor"):
        edit(str(finished))
    assert state_of(finished) == before


def test_text_that_is_no_playbook_is_kept_to_be_mended_and_imported(
    finished: Path, editor: Callable[[str], None]
) -> None:
    before = state_of(finished)
    editor("path.write_text(path.read_text().replace('\"helpful\": 0', '\"helpful\": -1', 1))")
    with pytest.raises(
        ConfigError, match=r"entries\[0\] \(id e00001\): helpful must be .*; your text is in .*edited-1"
    ):
        edit(str(finished))
    draft = finished / "playbook-edited-1.json"
    assert state_of(finished).keys() - before.keys() == {draft.name}
    draft.write_text(draft.read_text().replace("-1", "4"))
    import_playbook(str(finished), str(draft))
    (written,) = set(state_of(finished)) - set(before) - {draft.name}
    assert stored_context(load_checkpoint(finished / written)).playbook().entries[0].helpful == 4
    draft.unlink()
    (finished / written).unlink()


def test_what_cannot_be_imported_is_refused(finished: Path, tmp_path: Path) -> None:
    before = state_of(finished)
    (tmp_path / "several.json").write_text('{"a": {"entries": []}}')
    for run_dir, file, said in (
        (finished, "several.json", "the run has one playbook for all examples, and the text has one playbook for each"),
        (finished, "none.json", "No such file"),
        (tmp_path, "several.json", "holds no run to go on with"),
    ):
        with pytest.raises(ConfigError, match=said):
            import_playbook(str(run_dir), str(tmp_path / file))
    assert state_of(finished) == before


def test_an_imported_playbook_goes_by_the_runs_own_counters() -> None:
    old = PlaybookEntry("e00002", "others", "x", last_step=8)
    before = Playbook((old,), step=10, next_number=5)
    foreign = Playbook((PlaybookEntry("e00003", "others", "y", last_step=1), old), step=2, next_number=4)
    placed = put_in_place(before, foreign)
    assert [(entry.id, entry.last_step) for entry in placed.entries] == [("e00005", 9), ("e00002", 16)]
    assert (placed.step, placed.next_number) == (10, 6)


def test_a_run_starts_from_a_playbook_and_a_resumed_one_from_its_checkpoint(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "start.md"
    file.write_text(f"## mine (strategies)\n- helpful: 2\n> {SECRET}\n")
    folder = tmp_path / "run"
    start = f"--model.context.initial_playbook={file}"
    assert run(command(tiny_base, folder, start, "--budget.prompts=2")) == 0
    lines = [json.loads(line) for line in (folder / "transcripts.jsonl").read_text().splitlines()]
    assert all(SECRET in line["teacher_prompt"][-1]["content"] for line in lines)
    first = Playbook.from_json((folder / "playbook.json").read_text())
    assert first.entries[0] == PlaybookEntry("mine", "strategies", SECRET, helpful=2)
    file.write_text("## other (strategies)\n> another\n")
    assert run(command(tiny_base, folder, start, "--ckpt_path=last")) == 0
    second = Playbook.from_json((folder / "playbook.json").read_text())
    assert [entry.text for entry in second.entries] == [SECRET, "lesson 0", "lesson 1"]


@pytest.mark.filterwarnings("ignore:You called `self.log")  # Lightning's, where an evaluation has no logger
def test_trying_a_playbook_compares_the_same_prompts_with_and_without_it(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = tmp_path / "tried.json", tmp_path / "run"
    file.write_text(Playbook().add("others", SECRET).to_json())
    _, *options = command(tiny_base, folder, "--data.validation_batch_size=2", "--data.validation.max_new_tokens=9")
    assert main(["playbook", "try", str(file), *options]) == 0
    said = capsys.readouterr().out
    assert "in the prompt of the base" in " ".join(said.split())  # the file's path decides where lines end
    assert "+0.667 ± 0.333 (standard error)" in said  # gains 1, 1 and 0
    (line,) = [json.loads(text) for text in (folder / "evaluations.jsonl").read_text().splitlines()]
    assert (line["try_playbook/without"], line["try_playbook/with"]) == (0.0, pytest.approx(2 / 3))
    assert line["val/per_task/mean@1"] == 0.0
    assert main(["playbook", "try", *options]) == 2
    assert main(["playbook", "try", str(tmp_path / "none.json"), *options]) == 2
    assert "no such folder or file" in capsys.readouterr().err


def test_the_command_line_takes_several_sources_and_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(Playbook().add("others", f"lesson {name}").to_json())
    sources = [str(tmp_path / f"{name}.json") for name in "ab"]
    assert main(["playbook", "grep", "lesson", *sources]) == 0
    assert main(["playbook", "grep", "none", *sources]) == 1
    assert main(["playbook", "merge", *sources, "--out", str(tmp_path / "m.json")]) == 0
    assert len(Playbook.from_json((tmp_path / "m.json").read_text())) == 2
    assert main(["playbook", "show", str(tmp_path / "c.json")]) == 2
    assert f"resd: error: {tmp_path}/c.json: no such folder or file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["playbook", "merge", *sources])
    assert "playbook.merge.out" in capsys.readouterr().err
