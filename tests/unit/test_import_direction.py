"""Imports flow one way: records and config, then the leaves, the module and its data, callbacks, the command line."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "resd_lightning"

LAYERS = (
    {"records", "config", "thinking"},
    {
        "policy",
        "rollout",
        "tasks",
        "sandbox",
        "context",
        "distill",
        "objectives",
        "micro",
        "metrics",
        "stream",
        "costs",
        "run_folder",
        "summary",
    },
    {"algorithm", "training", "measure", "diagnostics", "progress"},
    {"module", "datamodule"},
    {"callbacks"},
    {
        "cli",
        "checkpoint",
        "compare",
        "completion",
        "dequantize",
        "export",
        "forgetting",
        "harness",
        "overview",
        "plan",
        "plan_cli",
        "playbook_command",
        "report",
        "run_cli",
        "show",
        "terminal",
        "tool_parser",
    },
    {"__main__"},
)
"""Folders and files at the package's top; each imports from the layers before its own."""

BESIDE = {
    "policy": {"micro"},  # micro-lm is shipped with the package, under a name
    "rollout": {"policy", "distill"},  # an engine samples from the policy's weights, and compares log-probs
    "objectives": {"policy", "distill"},  # a loss compares what student and teacher say
    "micro": {"context"},  # micro-lm learns the templates and answers of the real context
    "tasks": {"micro", "sandbox"},  # tape machines judge by the micro-world's rules; model-written code runs apart
    "summary": {"metrics", "run_folder"},
    "compare": {"checkpoint"},  # both tell in what two configurations differ
    "forgetting": {"export", "harness"},  # what it measures is a validated student, by the harness
    "playbook_command": {"checkpoint", "export"},  # a playbook is found in a checkpoint, or beside a validated student
    "run_cli": {"checkpoint", "terminal"},
    "plan_cli": {"run_cli", "compare", "plan"},  # they compose as a run does
    "cli": {
        "compare",
        "completion",
        "dequantize",
        "export",
        "forgetting",
        "overview",
        "plan_cli",
        "playbook_command",
        "report",
        "run_cli",
        "show",
        "terminal",
        "tool_parser",
    },
}
"""What may be imported from the same layer, and why."""

FILES = sorted(PACKAGE.rglob("*.py"))


def unit(file: Path) -> str:
    """The folder or file at the package's top that a file belongs to."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def layer(name: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if name in names)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield what a file imports from the package at run time, function bodies included."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from imports(ast.Module(node.orelse, []))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            package, _, below = (node.module or "").partition(".")
            if package == "resd_lightning":
                yield from [below.partition(".")[0]] if below else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("resd_lightning."))
        else:
            yield from imports(node)


def forbidden(name: str, imported: str) -> bool:
    return layer(imported) >= layer(name) and imported != name and imported not in BESIDE.get(name, set())


def test_everything_at_the_packages_top_has_a_layer_of_its_own() -> None:
    names = [name for names in LAYERS for name in names]
    assert len(set(names)) == len(names)
    assert {unit(file) for file in FILES} - {"__init__"} <= set(names)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_file_imports_from_the_layers_before_its_own(file: Path) -> None:
    imported = set(imports(ast.parse(file.read_text())))
    if unit(file) == "__init__":
        assert not imported
        return
    wrong = {name for name in imported if forbidden(unit(file), name)}
    assert not wrong, f"{unit(file)} may not import {sorted(wrong)}"


def test_what_leaves_import_from_each_other_makes_no_circle() -> None:
    remaining = {name: set(beside) for name, beside in BESIDE.items()}
    while remaining:
        free = [name for name, beside in remaining.items() if not beside & remaining.keys()]
        assert free, f"a circle among {sorted(remaining)}"
        for name in free:
            del remaining[name]


@pytest.mark.parametrize(
    ("name", "imported", "is_wrong"),
    [
        ("records", "config", True),
        ("policy", "module", True),
        ("policy", "rollout", True),
        ("rollout", "policy", False),
        ("module", "callbacks", True),
        ("module", "datamodule", True),
        ("callbacks", "module", False),
        ("callbacks", "cli", True),
        ("context", "context", False),
    ],
)
def test_the_rule_refuses_what_it_should(name: str, imported: str, is_wrong: bool) -> None:
    assert forbidden(name, imported) == is_wrong


def test_imports_for_type_checkers_alone_do_not_count() -> None:
    source = """
from __future__ import annotations
import torch
from resd_lightning import cli
from resd_lightning.policy.load import load_base
if TYPE_CHECKING:
    from resd_lightning.module import ResdModule
else:
    import resd_lightning.stream
def late():
    from resd_lightning.context.store import ContextStore
"""
    assert list(imports(ast.parse(source))) == ["cli", "policy", "stream", "context"]
