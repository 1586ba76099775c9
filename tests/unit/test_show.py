from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from resd_lightning.config import ConfigError
from resd_lightning.context.playbook import Playbook
from resd_lightning.run_folder import RunFolder, append_lines
from resd_lightning.show import add_up, answers_table, costs_table, metrics_table, playbook_tables, show
from resd_lightning.summary import summarize

LINES = [
    {"updates_done": 0, "phase": "val", "val/per_task/mean@4": 0.25, "time/validate_s": 2.0, "requests/validate": 8},
    {
        "updates_done": 1,
        "phase": "train",
        "train/loss": 0.5,
        "playbook/size": 3.0,
        "playbook/applied_add": 2.0,
        "reflect/answers": 4.0,
        "reflect/truncated": 1.0,
        "reflect/usable": 2.0,
        "reflect/problem/no_json": 2.0,
        "time/reflect_s": 1.5,
        "requests/reflect": 4.0,
        "tokens/reflect_prompt": 900.0,
        "tokens/reflect_generated": 80.0,
    },
    {
        "updates_done": 2,
        "phase": "train",
        "train/loss": 0.75,
        "playbook/size": 1.0,
        "reflect/answers": 3.0,
        "reflect/usable": 1.0,
        "reflect/problem/no_json": 1.0,
        "reflect/problem/truncated_json": 1.0,
        "curate/prompt_too_long": 1.0,
        "time/reflect_s": 1.0,
        "requests/reflect": 3.0,
    },
]


def rows(table: Table) -> dict[str, list[str]]:
    cells = [list(column.cells) for column in table.columns]
    return {str(row[0]): [str(cell) for cell in row[1:]] for row in zip(*cells, strict=True)}


def write_run(folder: RunFolder, playbook: object) -> None:
    append_lines(folder.metrics, LINES)
    facts = {"method": "resd", "task": "ToyTask", "base": "tiny", "seed": 7}
    folder.summary.write_text(json.dumps(facts | summarize(LINES)), encoding="utf-8")
    folder.playbook.write_text(json.dumps(playbook), encoding="utf-8")


def test_answers_are_counted_over_all_updates_by_kind_of_problem() -> None:
    table = rows(answers_table(add_up(LINES)))
    assert table["reflect"] == ["7", "1", "3 usable", "3 no_json, 1 truncated_json"]
    assert table["tag"] == ["0", "0", "", "none"]
    assert table["curate"] == ["0", "0", "2 applied_add", "1 prompt_too_long"]


def test_metrics_have_first_last_and_best_where_one_is_better() -> None:
    summary = summarize(LINES)
    table = rows(metrics_table(summary["metrics"]))  # type: ignore[arg-type]
    assert table["train/loss"] == ["0.5", "0.75", "0.5"]
    assert table["playbook/size"] == ["3", "1", ""]
    assert table["val/per_task/mean@4"] == ["0.25", "0.25", "0.25"]
    assert "reflect/answers" not in table


def test_costs_add_up_to_the_seconds_of_all_phases() -> None:
    table = rows(costs_table(summarize(LINES)["spent"]))  # type: ignore[arg-type]
    assert table["reflect"] == ["7", "900", "80", "2.5"]
    assert table["validate"] == ["8", "", "", "2.0"]
    assert table["all"][-1] == "4.5"


def test_playbook_text_is_shown_literally_and_not_as_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(RunFolder(tmp_path), Playbook(step=2).add("strategies", "use [R] and [bold]").to_dict())
    show(str(tmp_path))
    printed = capsys.readouterr().out
    assert "use [R] and [bold]" in printed
    assert "Playbook, 1 of 1 entries left after 2 context updates" in printed
    assert "resd on ToyTask with tiny, seed 7" in printed


def test_playbooks_of_several_examples_are_shown_one_by_one(tmp_path: Path) -> None:
    playbook = Playbook().add("heuristics", "start small")
    write_run(RunFolder(tmp_path), {"a": playbook.to_dict(), "b": Playbook().to_dict()})
    first, second = playbook_tables(RunFolder(tmp_path))
    assert (str(first.title), first.row_count) == ("Playbook of a, 1 of 1 entries left after 0 context updates", 1)
    assert (str(second.title), second.row_count) == ("Playbook of b, 0 of 0 entries left after 0 context updates", 0)


def test_a_run_without_updates_shows_that_no_playbook_is_written(tmp_path: Path) -> None:
    (table,) = playbook_tables(RunFolder(tmp_path))
    assert "no update has written yet" in str(table.title)
    Console(quiet=True).print(table)


def test_a_broken_playbook_file_is_refused_with_its_path_and_entry(tmp_path: Path) -> None:
    write_run(RunFolder(tmp_path), {"entries": [{"id": "e00001", "section": "strategies"}]})
    with pytest.raises(ConfigError, match=r"playbook\.json: playbook entries\[0\].*text"):
        show(str(tmp_path))


def test_a_folder_without_a_run_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=str(tmp_path / "nothing")):
        show(str(tmp_path / "nothing"))
