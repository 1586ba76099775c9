from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.context.difference import differences
from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.playbook_command.attempt import paired_effect
from resd_lightning.playbook_command.convert import export_playbook
from resd_lightning.playbook_command.diff import diff
from resd_lightning.playbook_command.look import grep, playbook_stats, show, stats
from resd_lightning.playbook_command.source import find_playbook, find_playbooks

ENTRIES = (
    PlaybookEntry("e00001", "strategies", "use [bold]tapes[/bold]", 2, 0, 5, 1, ("train-7",)),
    PlaybookEntry("e00002", "others", "never guess", 1, 3, 4),
    PlaybookEntry("e00003", "others", "Never guess", 0, 0, 2),
)
PLAYBOOK = Playbook(ENTRIES, step=5, next_number=6)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with what a run leaves of its playbook."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "update-00004").mkdir(parents=True)
    (folder / "checkpoints" / "update-00004" / "playbook.json").write_text(
        Playbook(ENTRIES[:2], next_number=6).to_json()
    )
    (folder / "playbook.json").write_text(PLAYBOOK.to_json())
    return folder


def test_entries_are_shown_sorted_with_all_that_is_known_of_them(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    show(str(run), sort="harmful")
    said = " ".join(capsys.readouterr().out.split())  # a long title is broken into lines
    assert "3 entries, 5 context updates" in said
    assert said.index("e00002") < said.index("e00001") < said.index("e00003")
    assert "use [bold]tapes[/bold]" in said
    assert "train-7" in said
    show(str(run), section="strategies")
    assert "e00002" not in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"--section must be one of strategies, .*, got 'poems'"):
        show(str(run), section="poems")


def test_grep_finds_entries_and_says_by_its_status_whether_there_are_any(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert grep("^never", [str(run)]) == 0
    said = capsys.readouterr().out
    assert "1 of 3" in said
    assert "e00002" in said
    assert grep("^never", [f"{run}@last", str(run)], ignore_case=True) == 0
    assert "2 of 3" in capsys.readouterr().out
    assert grep("sorted", [str(run)]) == 1
    with pytest.raises(ConfigError, match=r"pattern '\(': missing \)"):
        grep("(", [str(run)])


def test_the_numbers_of_a_playbook(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    numbers = playbook_stats(PLAYBOOK)
    assert (numbers["entries"], numbers["entries made"], numbers["context updates"]) == (3, 5, 5)
    assert (numbers["helpful"], numbers["harmful"], numbers["unused"]) == (1, 1, 1)
    assert (numbers["helpful tags"], numbers["harmful tags"], numbers["tagged in the last update"]) == (3, 3, 1)
    assert (numbers["duplicates"], numbers["words"], numbers["section others"]) == (1, 6, 2)
    stats(str(run))
    assert "duplicates" in capsys.readouterr().out


def test_differences_are_deaths_then_births_changes_and_tags() -> None:
    after = Playbook(
        (
            replace(ENTRIES[0], text="use tapes", helpful=9),
            replace(ENTRIES[1], harmful=4),
            PlaybookEntry("n", "others", "x"),
        ),
        next_number=6,
    )
    found = [(one.kind, (one.before or one.after).id) for one in differences({"": PLAYBOOK}, {"": after})]
    assert found == [("died", "e00003"), ("changed", "e00001"), ("tagged", "e00002"), ("born", "n")]
    assert list(differences({"": PLAYBOOK}, {"": PLAYBOOK})) == []
    assert [
        one.key for one in differences({"a": PLAYBOOK}, {"a": PLAYBOOK, "b": Playbook(ENTRIES[:1], next_number=6)})
    ] == ["b"]


def test_diff_shows_both_sides(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = run.parent / "other.json"
    other.write_text(Playbook((replace(ENTRIES[0], helpful=7),), next_number=6).to_json())
    diff(str(run), str(other))
    said = capsys.readouterr().out
    assert "2 -> 7" in said
    assert said.count("died") == 2
    diff(str(run), str(run))
    assert "no entry differs" in capsys.readouterr().out


def test_a_source_is_a_run_one_of_its_updates_or_a_file(run: Path) -> None:
    assert find_playbook(str(run)) == PLAYBOOK
    assert len(find_playbook(f"{run}@4")) == 2
    assert find_playbooks(str(run / "playbook.json")) == {"": PLAYBOOK}


def test_what_is_no_source_is_refused_by_name(run: Path) -> None:
    empty, text = run.parent / "empty", run.parent / "playbook.txt"
    empty.mkdir()
    text.write_text("x")
    (run.parent / "nothing.json").write_text('{"entries": []}')
    (run.parent / "several.json").write_text(f'{{"a": {PLAYBOOK.to_json()}}}')
    (run.parent / "part.ckpt").write_text("no archive")
    for source, said in {
        "nowhere": "nowhere: no such folder or file",
        str(empty): "no update has written one",
        f"{run}@8": r"has students of updates \[4\]",
        f"{run}@first": "must be best, last or a number",
        str(text): r"ends in .json or .md",
        str(run.parent / "nothing.json"): "has no entries",
        str(run.parent / "several.json"): "choose by --example, of a",
        str(run.parent / "part.ckpt"): "is not a checkpoint",
    }.items():
        with pytest.raises(ConfigError, match=said):
            find_playbook(source)
    assert find_playbook(str(run.parent / "several.json"), "a") == PLAYBOOK


def test_export_writes_what_it_reads_and_nothing_over_what_is_there(run: Path) -> None:
    for name in ("out.json", "out.md"):
        export_playbook(str(run), str(run.parent / name))
        assert find_playbook(str(run.parent / name)) == PLAYBOOK
        with pytest.raises(ConfigError, match="exists already"):
            export_playbook(str(run), str(run.parent / name))
    (run.parent / "several.json").write_text(f'{{"a": {PLAYBOOK.to_json()}}}')
    export_playbook(str(run.parent / "several.json"), str(run.parent / "a.md"), "a")
    assert find_playbook(str(run.parent / "a.md")) == PLAYBOOK


def test_the_effect_of_a_playbook_is_paired_by_prompt() -> None:
    effect = paired_effect([(0.0, 1.0), (0.5, 0.5), (0.25, 0.75)], shortened=0, skipped=0)
    assert (effect.without, effect.with_playbook, effect.difference) == (0.25, 0.75, 0.5)
    assert effect.standard_error == pytest.approx(0.5 / 3**0.5)  # gains 1, 0 and 0.5 have a standard deviation of 0.5
    assert paired_effect([(0.0, 1.0)], shortened=0, skipped=0).standard_error is None
