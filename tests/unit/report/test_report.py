from __future__ import annotations

import json
import logging
import re
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from handmade_run import HOSTILE, LEFT, ROLLOUTS, rollout, write_run

import resd_lightning.report
from resd_lightning.config import ConfigError
from resd_lightning.report.collect import Texts, collect, differing_keys, prompt_parts, shorten
from resd_lightning.report.command import report
from resd_lightning.report.life import lives
from resd_lightning.run_folder import append_lines, replace_text

FOLDER = Path(resd_lightning.report.__file__).parent


class Elements(HTMLParser):
    """What a browser's parser makes of the file: its scripts, and every address it names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.data: dict[str, object] = {}
        self.programs: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self._script: dict[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        self._script = dict(attrs) if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self._script is not None and "id" in self._script:
            self.data[str(self._script["id"])] = json.loads(data)
        elif self._script is not None:
            self.programs.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._script = None


def page(tmp_path: Path, *runs: Path) -> Elements:
    report([str(run) for run in runs], out=str(tmp_path / "page.html"))
    return Elements((tmp_path / "page.html").read_text(encoding="utf-8"))


# Safe and self-contained


def test_what_a_model_wrote_neither_ends_its_element_nor_begins_another(tmp_path: Path) -> None:
    elements = page(tmp_path, write_run(tmp_path / "run"))
    assert elements.data["rollouts-0-0"][0]["response"] == HOSTILE
    assert elements.data["runs"]["runs"][0]["entries"][0]["text"] == HOSTILE
    assert elements.tags.count("script") == 5  # runs, texts of prompts, two updates, the program
    assert "b" not in elements.tags
    (program,) = elements.programs
    assert program.count("broken") == 0


def test_the_page_puts_text_in_as_text_and_asks_no_network(tmp_path: Path) -> None:
    elements = page(tmp_path, write_run(tmp_path / "run"))
    assert elements.addresses == []
    own = (FOLDER / "report.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|fetch\(|XMLHttp|import\(", own)
    for file in ("report.js", "vendor/uPlot.iife.min.js"):
        assert "</script" not in (FOLDER / file).read_text().lower()
    for file in ("style.css", "vendor/uPlot.min.css"):
        assert not re.search(r"url\(|@import|</style", (FOLDER / file).read_text())
    assert "default-src 'none'" in (tmp_path / "page.html").read_text()
    assert "MIT" in (FOLDER / "vendor" / "LICENSE-uPlot").read_text()


def test_half_a_surrogate_pair_can_be_written(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    append_lines(run / "transcripts.jsonl", [rollout(2, "a", response="half \ud83d of it")])
    assert page(tmp_path, run).data["rollouts-0-2"][0]["response"] == "half \ud83d of it"


# What it says


def test_a_rollout_has_its_token_losses_and_no_prompts(tmp_path: Path) -> None:
    elements = page(tmp_path, write_run(tmp_path / "run"))
    first, second = elements.data["rollouts-0-0"]
    assert (second["tokens"], second["losses"], first["tokens"]) == (["A", "B"], [0.0, 1.5], None)
    assert "a long prompt" not in json.dumps(elements.data)
    visits = {prompt["id"]: prompt["visits"] for prompt in elements.data["runs"]["runs"][0]["prompts"]}
    assert visits == {"a": [[0, 0, 0, 0.0], [1, 0, 0, 1.0]], "b": [[0, 1, 0, 0.0], [1, 1, 0, 0.0]]}


def test_a_teachers_prompt_stands_there_part_by_part_and_each_of_its_texts_once(tmp_path: Path) -> None:
    book, head, tail = "- one\n- two", "What others learned\n", "\nAnswer."
    texts = (head, book, "\nquestion of a", "\n\nSaid: ", "wrong", tail)
    content = "".join(texts)
    spans = [("playbook", len(head), len(head + book)), ("feedback", content.index("wrong"), content.index(tail))]
    made = Texts(6000)
    lines = [
        rollout(u, "a", teacher_prompt=[{"role": "user", "content": content}], teacher_spans=spans) for u in (0, 1)
    ]
    first, second = (prompt_parts(line, made) for line in lines)
    assert first == second
    assert [name for name, _ in first] == ["", "playbook", "question", "", "feedback", ""]
    assert [of for _, of in first if isinstance(of, str)] == ["question", "feedback"]  # the page has them anyway
    own = {"question": "question of a", "feedback": "wrong"}
    shown = "".join(own[of] if isinstance(of, str) else made.all()[of] for _, of in first)
    assert shown == content.replace("\nquestion", "question")  # a line break alone is no part
    assert sum(book in text for text in made.all()) == 1
    older = rollout(0, "a", teacher_prompt=[{"role": "user", "content": content}])
    assert prompt_parts(older, made) == prompt_parts(rollout(0, "a", teacher_prompt=None), made) == []


def test_curves_hold_every_scalar_and_no_number_is_null(tmp_path: Path) -> None:
    series = page(tmp_path, write_run(tmp_path / "run")).data["runs"]["runs"][0]["series"]
    assert series["train/loss"] == [[1, 2], [0.5, None]]
    assert series["val/per_task/mean@4"] == [[0], [0.25]]


def test_the_life_of_every_entry() -> None:
    by_update = {update: [line for line in ROLLOUTS if line["update"] == update] for update in (0, 1)}
    entries = {life["id"]: life for life in lives(by_update, {"": LEFT})}
    assert {id_: (life["born"], life["died"], life["why"]) for id_, life in entries.items()} == {
        "e00001": (0, None, ""),
        "e00002": (0, 1, "merged into e00005"),
        "e00003": (0, 1, "merged into e00005"),
        "e00004": (0, 0, "pruned (over_budget)"),
        "start": (None, 1, "pruned (periodic)"),
        "e00005": (1, None, ""),
    }
    assert entries["e00001"]["made_by"] == [(0, 0), (0, 1)]  # added, and added again
    assert entries["e00001"]["tagged"] == [(1, 0, "neutral")]  # ids match whatever their case; the first verdict counts
    assert entries["e00002"]["tagged"] == [(1, 0, "harmful"), (1, 1, "harmful")]
    assert (entries["e00002"]["helpful"], entries["e00002"]["harmful"]) == (0, 2)
    assert (entries["e00005"]["helpful"], entries["e00005"]["harmful"], entries["e00005"]["section"]) == (
        0,
        2,
        "formulas",
    )


def test_entries_of_one_playbook_per_example_are_kept_apart() -> None:
    made = {"type": "ADD", "entry": "e00001", "problem": None, "section": "others", "text": "x"}
    lines = [
        rollout(0, example, operations=[{**made, "playbook": example, "example": example}]) for example in ("a", "b")
    ]
    judged = rollout(1, "b", answers=[{"purpose": "tag", "text": '{"tags": [{"id": "e00001", "tag": "helpful"}]}'}])
    entries = lives({0: lines, 1: [judged]}, {"a": LEFT, "b": LEFT})
    assert [(life["playbook"], len(life["tagged"])) for life in entries if life["id"] == "e00001"] == [
        ("a", 0),
        ("b", 1),
    ]


def test_several_runs_stand_side_by_side_with_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "one"), write_run(tmp_path / "two", scope="global")]
    elements = page(tmp_path, *runs)
    assert [run["name"] for run in elements.data["runs"]["runs"]] == [str(run) for run in runs]
    assert elements.data["runs"]["differing"] == [["model.scope", [None, '"global"']]]
    assert elements.data["rollouts-1-1"] == elements.data["rollouts-0-1"]
    assert differing_keys([{"a": 1, "run_dir": "x"}, {"a": 1.5, "run_dir": "y"}]) == [("a", ["1", "1.5"])]


def test_a_long_text_says_how_much_of_it_is_left_out() -> None:
    text = "a" * 100 + "b" * 100
    assert shorten(text, 200) == text
    assert shorten(text, 30) == "a" * 20 + "\n[... 170 characters left out ...]\n" + "b" * 10


# Missing and broken files


def test_missing_files_are_named_in_the_log_and_on_the_page(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    missing = ("summary.json", "diagnostics.jsonl", "playbook.json", "config.yaml")
    run = write_run(tmp_path / "run", without=missing)
    with caplog.at_level(logging.WARNING):
        elements = page(tmp_path, run)
    assert f"{run} lacks summary.json, diagnostics.jsonl, playbook.json, config.yaml" in caplog.text
    assert elements.data["runs"]["runs"][0]["missing"] == list(missing)
    assert elements.data["runs"]["runs"][0]["entries"][1]["id"] == "e00002"


def test_what_cannot_be_reported_is_refused_by_name(tmp_path: Path) -> None:
    run = str(write_run(tmp_path / "run"))
    (tmp_path / "empty").mkdir()
    for runs, out, said in (
        ([str(tmp_path / "empty")], None, "empty holds no run"),
        ([str(tmp_path / "nowhere")], None, "nowhere holds no run"),
        ([run, run], None, "run is named twice"),
        ([run], str(tmp_path / "no" / "page.html"), "--out .*page.html: no folder"),
        ([run], str(tmp_path), "--out .*: it is a folder"),
    ):
        with pytest.raises(ConfigError, match=said):
            report(runs, out=out)
    with pytest.raises(ConfigError, match="--max_chars must be at least 2, got 1"):
        report([run], max_chars=1)


@pytest.mark.parametrize("name", ["summary.json", "transcripts.jsonl", "playbook.json", "config.yaml"])
def test_a_broken_file_is_refused_with_its_run(tmp_path: Path, name: str) -> None:
    run = write_run(tmp_path / "run")
    (run / name).write_text("{ broken: [\n")
    with pytest.raises(ConfigError, match=str(run)):
        report([str(run)])


def test_a_report_stands_in_the_first_run_unless_told_otherwise(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    report([str(run)])
    report([str(run)])  # over an earlier one
    assert (run / "report.html").is_file()


# Large


def test_ten_thousand_rollouts_are_parsed_update_by_update_and_shown_page_by_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    lines = []
    for i in range(10_000):
        book = "".join(f"- [e{n:05d} | helped {i // 100}] a lesson of some words, as they are\n" for n in range(100))
        content = f"{book}\nquestion of p{i % 2500}\n\nwrong\n\nKey insight: {i} is not it"
        spans = [("playbook", 0, len(book)), ("feedback", content.index("wrong"), content.index("\n\nKey"))]
        spans.append(("reflection", content.index("Key"), len(content)))
        prompt = [{"role": "user", "content": content}]
        example = f"p{i % 2500}"
        line = rollout(2 + i // 100, example, response="word " * 50, teacher_prompt=prompt, teacher_spans=spans)
        lines.append(line)
    replace_text(run / "transcripts.jsonl", "")
    append_lines(run / "transcripts.jsonl", lines)
    started = time.perf_counter()
    made = collect([run], 6000)
    assert time.perf_counter() - started < 30
    assert [len(made.rollouts[0][update]) for update in (2, 101)] == [100, 100]
    assert "word word" not in json.dumps(made.runs)  # what is read at once names rollouts and holds none
    elements = page(tmp_path, run)
    assert len([id_ for id_ in elements.data if id_.startswith("rollouts-0-")]) == 100
    assert (tmp_path / "page.html").stat().st_size < 10_000_000
    own = (FOLDER / "report.js").read_text()
    # every list of entries, prompts and rollouts goes through `paged`
    assert own.count("paged(") == 4
    assert len(re.findall(r"paged\((kept|places), (PAGE|CARDS)", own)) == 3
