from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

from resd_lightning.records import Feedback
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.jsonl import JsonlTask
from resd_lightning.tasks.verification import Verifier

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_source_file_is_in_the_tree() -> None:
    tree = README[README.index("\nsrc/resd_lightning/\n") :]
    missing = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "src").rglob("*.py")
        if path.name != "__init__.py" and path.name not in tree and not re.search(rf"\b{path.stem}\b", tree)
    ]
    assert missing == []


def test_every_file_of_the_algorithm_table_exists() -> None:
    table = README[README.index("| 1-2 |") : README.index("The callback list")]
    names = re.findall(r"`([a-z_/0-9]+(?:\.py|/))`", table)
    assert len(names) > 15
    for name in names:
        assert (ROOT / "src" / "resd_lightning" / name).exists(), name


@pytest.mark.parametrize("path", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("[cbdn]*/*.md")), ids=lambda p: p.name)
def test_links_and_configs_that_documentation_names_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    for link in links:
        assert (path.parent / link).exists(), link
    for name in re.findall(r"configs/[a-z_0-9/]+\.yaml", text):
        assert (ROOT / name).is_file(), name


def blocks_of(path: str) -> list[str]:
    """The Python blocks of a page whose fences stand at the line's beginning."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / path).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_example_of_a_task_is_shown_as_it_is_and_judges_each_response_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (ROOT / "examples" / "sums.py").read_text(encoding="utf-8") in blocks_of("docs/your_own_task.md")
    monkeypatch.syspath_prepend(ROOT / "examples")
    task = import_module("sums").SumsTask()
    assert isinstance(task, Task)
    example = task.examples("test")[0]
    assert len({e.id for e in task.examples("train")}) == 160
    assert not {e.question for e in task.examples("train")} & {e.question for e in task.examples("val")}
    responses = [f"It is {example.answer}.", "<think>No</think> 42 61", "No idea", f"<think>{example.answer}"]
    assert Verifier(task, workers=0, timeout_s=5).verify([example] * 4, responses) == [
        Feedback(1.0, (True,), "The answer is off by 0."),
        Feedback(0.0, (False,), "The answer is off by -1."),
        Feedback(0.0, (False,), "The response does not end in a number."),
        Feedback(0.0, (False,), "The response does not end in a number."),
    ]


def test_the_other_blocks_on_your_own_task_run_as_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")
    for block in blocks_of("docs/your_own_task.md"):
        if "class SumsTask" not in block:
            exec(compile(block, "your_own_task.md", "exec"), {})
    assert "off by -1." in capsys.readouterr().out
    page = (ROOT / "docs" / "your_own_task.md").read_text(encoding="utf-8")
    rows = re.findall(r"^```json\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "rows.jsonl").write_text(rows[0], encoding="utf-8")
    task = JsonlTask(train_path=str(tmp_path / "rows.jsonl"), match="numeric", answer_from="last_line")
    sum_, prime = task.examples("train")
    assert task.verify(sum_, "Let me see.\n42").is_success
    assert task.verify(prime, "29 is one.").is_success
    assert not task.verify(prime, "129 is one.").is_success
