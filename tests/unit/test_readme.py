from __future__ import annotations

import re
from pathlib import Path

import pytest

from resd_lightning.records import Feedback
from resd_lightning.tasks.base import Task
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


def test_the_readmes_task_is_a_task_that_judges() -> None:
    block = re.search(r"```python\n# sums\.py\n(.*?)```", README, re.DOTALL)
    assert block is not None
    namespace: dict[str, type[Task]] = {}
    exec(compile(block[1], "sums.py", "exec"), namespace)
    task = namespace["SumsTask"]()
    example = task.examples("test")[0]
    assert len({e.id for e in task.examples("train")}) == 160
    verifier = Verifier(task, workers=0, timeout_s=5)
    verdicts = verifier.verify([example] * 3, [f"It is {example.answer}.", "42 61", "No idea"])
    assert verdicts == [
        Feedback(1.0, (True,), "The answer is off by 0."),
        Feedback(0.0, (False,), "The answer is off by -1."),
        Feedback(0.0, (False,), "The response does not end in a number."),
    ]
