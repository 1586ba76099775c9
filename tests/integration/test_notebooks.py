"""Notebooks run from top to bottom, and their files are what a reader may be given."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from resd_lightning.cli import main

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXECUTED = [path for path in NOTEBOOKS if not path.name.startswith("05")]
MAX_BYTES = 200_000

QWEN3_4B = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
}


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == "stdout")


def run_in(folder: Path, name: str) -> nbformat.NotebookNode:
    """Run a notebook of the repository in a copy of the folders that it reads."""
    (folder / "notebooks").mkdir()
    shutil.copytree(ROOT / "configs", folder / "configs")
    (path,) = (path for path in NOTEBOOKS if path.name.startswith(name))
    notebook = read(path)
    resources = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(notebook, timeout=280, coalesce_streams=True, resources=resources).execute()
    return notebook


def test_there_are_five_notebooks_and_the_readme_links_each() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]
    page = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert f"({path.name})" in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name[:2])
def test_a_notebooks_code_compiles_its_links_lead_somewhere_and_it_ends_with_what_to_try(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in code(notebook):
        ast.parse(cell.source)
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for link in (part.partition(")")[0] for part in text.split("](")[1:]):
        assert (path.parent / link).exists(), link
    assert notebook.cells[-1].source.startswith("## What to try next")


@pytest.mark.parametrize("path", EXECUTED, ids=lambda path: path.name[:2])
def test_outputs_are_committed_whole_small_and_without_a_trace_of_when_and_where(path: Path) -> None:
    notebook = read(path)
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert path.stat().st_size < MAX_BYTES
    assert all(cell.metadata == {} for cell in notebook.cells)
    for output in (output for cell in code(notebook) for output in cell.outputs):
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
    assert "/tmp/" not in path.read_text(encoding="utf-8")


def test_one_update_by_hand_runs_and_comes_to_the_trainers_weights(tmp_path: Path) -> None:
    last = printed(code(run_in(tmp_path, "01"))[-1])
    assert last.split() == ["the", "same", "weights:", "True", "the", "same", "playbook:", "True"]


@pytest.mark.notebooks
@pytest.mark.parametrize("name", ["02", "03", "04"])
def test_the_other_notebooks_run(name: str, tmp_path: Path) -> None:
    run_in(tmp_path, name)


def test_the_notebook_for_a_gpu_names_a_run_that_composes_and_has_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = (path for path in NOTEBOOKS if path.name.startswith("05"))
    first = code(read(path))[0]
    assert all(cell.outputs == [] for cell in code(read(path)))
    names: dict[str, list[str]] = {}
    exec(first.source, names)
    base = tmp_path / "qwen"  # its sizes alone: no hub is asked, no weight is read
    base.mkdir()
    (base / "config.json").write_text(json.dumps(QWEN3_4B))
    monkeypatch.chdir(ROOT / "notebooks")
    out = tmp_path / "plan.json"
    own = ["--card_gib=24", f"--model.policy.base={base}", f"--json={out}"]
    assert main(["plan", *names["ARGUMENTS"], *own]) == 0
    assert json.loads(out.read_text())["fits"] is True
