"""`resd show`: a run on the terminal, from the files in its folder."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resd_lightning.config import ConfigError
from resd_lightning.context.files import read_playbooks
from resd_lightning.context.playbook import Playbook
from resd_lightning.run_folder import Line, RunFolder, read_lines

SHOWN_METRICS = (
    "val/per_task/",
    "val/per_test/",
    "train/per_task",
    "train/per_test",
    "train/loss",
    "rollout/truncated_share",
    "teacher/enriched_share",
    "in_context/full",
    "in_context/headroom",
    "playbook/size",
    "playbook/true_share",
    "grpo/groups_without_signal",
    "forgetting/",
)
"""Prefixes of the metrics worth a line; metrics.jsonl and TensorBoard have them all."""

Totals = Mapping[str, float]


def show(run_dir: str) -> None:
    """Show a run: its metrics, what it spent, how the model's answers were read, and its playbook.

    Args:
        run_dir: Folder of the run; a run that is still going shows what it has written so far.

    Raises:
        ConfigError: The folder holds no run.
    """
    folder = RunFolder(Path(run_dir))
    if not folder.summary.is_file():
        raise ConfigError(f"run_dir {run_dir} holds no run that has come to its first validation: no {folder.summary}")
    summary: dict[str, object] = json.loads(folder.summary.read_text(encoding="utf-8"))
    totals = add_up(read_lines(folder.metrics))
    console = Console()
    console.print(f"{summary['method']} on {summary['task']} with {summary['base']}, seed {summary['seed']}")
    console.print(f"{summary['updates']} updates; best validated student: after update {summary['best_update']}")
    console.print(metrics_table(cast("Mapping[str, Mapping[str, float]]", summary["metrics"])))
    console.print(costs_table(cast("Totals", summary["spent"])))
    console.print(answers_table(totals))
    for table in playbook_tables(folder):
        console.print(table)
    console.print(Text(f"transcripts  {folder.transcripts}"), soft_wrap=True)
    console.print(Text(f"TensorBoard  tensorboard --logdir {folder.path}"), soft_wrap=True)


def add_up(lines: Iterable[Line]) -> dict[str, float]:
    """Return the sum of every scalar over the lines of a `metrics.jsonl`."""
    totals: dict[str, float] = defaultdict(float)
    for line in lines:
        for name, value in line.items():
            if "/" in name and isinstance(value, int | float):
                totals[name] += value
    return dict(totals)


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> Table:
    """Return the main metrics of a summary, each with its first, last and best value."""
    table = _table("Metrics", "metric", "first", "last", "best")
    for prefix in SHOWN_METRICS:
        for name, values in metrics.items():
            if name.startswith(prefix):
                is_ranked = name.startswith(("val/", "train/"))  # a playbook's best size is no one's to say
                table.add_row(
                    name,
                    f"{values['first']:.4g}",
                    f"{values['last']:.4g}",
                    f"{values['best']:.4g}" if is_ranked else "",
                )
    return table


def costs_table(spent: Totals) -> Table:
    """Return what a run spent for each purpose; phases without requests have seconds alone."""
    table = _table("Spent", "purpose", "requests", "prompt tokens", "generated tokens", "seconds")
    for name, seconds in spent.items():
        phase = name.removeprefix("time/").removesuffix("_s")
        if name.startswith("time/"):
            counts = (f"requests/{phase}", f"tokens/{phase}_prompt", f"tokens/{phase}_generated")
            table.add_row(
                phase, *(f"{spent[count]:.0f}" if count in spent else "" for count in counts), f"{seconds:.1f}"
            )
    table.add_section()
    table.add_row("all", "", "", "", f"{sum(v for name, v in spent.items() if name.startswith('time/')):.1f}")
    return table


def answers_table(totals: Totals) -> Table:
    """Return how many answers of reflector, tagger and curator were asked for, and each kind of problem in them.

    One answer may have several problems; `repaired_json` and `unknown_section` lose nothing, so problems are not
    failures. What came of the answers stands beside them: reflections, and operations on the playbook. Tags show in the
    playbook itself.

    Args:
        totals: Sums over the run's updates.
    """
    table = _table("Answers about rollouts", "purpose", "answers", "cut off", "came of it", "problems by kind")
    for purpose, outcome in (("reflect", "reflect/usable"), ("tag", None), ("curate", "playbook/applied_")):
        start = f"{purpose}/problem/"
        problems = {name.removeprefix(start): n for name, n in totals.items() if name.startswith(start)}
        if skipped := totals.get(f"{purpose}/prompt_too_long", 0.0):
            problems["prompt_too_long"] = skipped
        fruits = {name.partition("/")[2]: n for name, n in totals.items() if outcome and name.startswith(outcome)}
        table.add_row(
            purpose,
            f"{totals.get(f'{purpose}/answers', 0.0):.0f}",
            f"{totals.get(f'{purpose}/truncated', 0.0):.0f}",
            "" if outcome is None else _counts(fruits),
            _counts(problems),
        )
    return table


def playbook_tables(folder: RunFolder) -> list[Table]:
    """Return one table per playbook of a run; one that says so where no update has written any.

    Raises:
        ConfigError: `playbook.json` was edited into something that is no playbook.
    """
    if not folder.playbook.is_file():
        return [_table("Playbook, which no update has written yet")]
    return [
        _playbook_table(f"Playbook of {example_id}" if example_id else "Playbook", playbook)
        for example_id, playbook in read_playbooks(folder.playbook).items()
    ]


def _playbook_table(name: str, playbook: Playbook) -> Table:
    title = f"{name}, {len(playbook)} of {playbook.next_number - 1} entries left after {playbook.step} context updates"
    table = _table(title, "id", "helped", "misled", "section", "lesson")
    for entry in playbook.entries:
        # Text and not str: a lesson may hold brackets, which rich would take for markup.
        table.add_row(entry.id, str(entry.helpful), str(entry.harmful), entry.section, Text(entry.text))
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for column in columns:
        is_number = column not in ("metric", "purpose", "came of it", "problems by kind", "id", "section", "lesson")
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    return table


def _counts(by_kind: Mapping[str, float]) -> str:
    return ", ".join(f"{n:.0f} {kind}" for kind, n in sorted(by_kind.items()) if n) or "none"
