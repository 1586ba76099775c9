"""Measures what a run keeps: its checkpoint, and a playbook's operations at 10 to 100,000 entries.

    python benchmarks/state.py --out benchmarks/results/state.json

Checkpoint: micro-lm on the quickstart after one update, saved as training saves it, and read by a process that goes on
with the run; the start of a run without a checkpoint, up to its first update, is there to compare.

Playbook: `add` is an update's 32 new lessons and `refuse` 32 that the playbook holds in other clothes, per lesson, the
index of the playbook's texts built once for all of them; the other operations are on the playbook as a whole, tagging
by three tags. Lessons are `short`, as micro-lm's are, or `long`: 25 words drawn as unevenly as words of a language are,
in which the domain's long words come up again and again.

Each case is a process of its own. Times are the processor's, the least of several.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from measuring import rounded, run_apart, surroundings, write

from resd_lightning.algorithm import algorithm_callbacks
from resd_lightning.checkpoint import read_checkpoint
from resd_lightning.cli import ResdCLI
from resd_lightning.context.concise import concise
from resd_lightning.context.curate import Add, Proposal, apply_operations
from resd_lightning.context.playbook import SECTIONS, Playbook, PlaybookEntry, entry_id
from resd_lightning.context.prompts import PromptTemplates, Sections
from resd_lightning.records import Tag

ROOT = Path(__file__).resolve().parents[1]
LESSONS = 32
"""New lessons of an update: one for each prompt of the paper's batch."""
RULES = [f"{order} {colour}" for order in ("copy", "reverse", "left", "right") for colour in ("keep", "swap", "shift")]


def short_lesson(number: int, rng: random.Random) -> str:
    """Return what micro-lm would write about one machine."""
    return f"m{number} {rng.choice(RULES)}"


class LongLessons:
    """Draws texts of 25 words; the word of rank r comes up with a frequency of 1 / r, whatever its length."""

    def __init__(self, rng: random.Random) -> None:
        letters = "abcdefghijklmnopqrstuvwxyz"
        self._words = ["".join(rng.choices(letters, k=rng.randint(2, 14))) for _ in range(5000)]
        self._weights = [1 / rank for rank in range(1, 5001)]
        self._rng = rng

    def __call__(self) -> str:
        """Return the next one."""
        return " ".join(self._rng.choices(self._words, self._weights, k=25))


def make_texts(kind: str, number: int) -> list[str]:
    """Return so many different lessons, the same on every call."""
    rng = random.Random(0)
    if kind == "short":
        return [short_lesson(i, rng) for i in range(number)]
    draw = LongLessons(rng)
    return [draw() for _ in range(number)]


def make_playbook(texts: Sequence[str]) -> Playbook:
    """Return a playbook of these lessons, with track records of all kinds."""
    rng = random.Random(1)
    entries = [
        PlaybookEntry(
            entry_id(i + 1),
            rng.choice(SECTIONS),
            text,
            helpful=rng.randrange(4),
            harmful=rng.randrange(2),
            last_step=i % 100,
            sources=(str(i),),
        )
        for i, text in enumerate(texts)
    ]
    return Playbook(tuple(entries), step=100, next_number=len(entries) + 1)


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """Return the processor's seconds that the fastest of the repeats took."""
    taken = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def add(playbook: Playbook, texts: Sequence[str], *, is_new: bool) -> None:
    """Let as many curators add a lesson each, and check what becomes of that."""
    proposals = [Proposal((Add("others", text),), 1, str(i)) for i, text in enumerate(texts)]
    _, applied = apply_operations(playbook, proposals)
    assert all(outcome.is_applied == is_new for outcome in applied)


def measure_playbook(kind: str, size: int, repeats: int) -> dict[str, object]:
    """Return the microseconds of each operation on a playbook of `size` entries."""
    texts = make_texts(kind, size + LESSONS)
    held, new = texts[:size], texts[size:]
    playbook = make_playbook(held)
    known = [text.upper() + "!" for text in (held * LESSONS)[:LESSONS]]
    rng = random.Random(2)
    tags = [Tag(rng.choice(playbook.entries).id, verdict) for verdict in ("helpful", "harmful", "neutral")]
    templates, text = PromptTemplates(), playbook.to_json()
    budget = {"max_entries": size // 2, "step": playbook.step}
    # Not what was looked at a moment ago: `add` comes first, and its first repeat pays for the texts' signatures.
    works: dict[str, tuple[Callable[[], object], int]] = {
        "add": (lambda: add(playbook, new, is_new=True), LESSONS),
        "refuse": (lambda: add(playbook, known, is_new=False), LESSONS),
        "apply_tags": (lambda: playbook.apply_tags(tags), 1),
        "concise, staleness": (lambda: concise(playbook.entries, method="staleness", rng=rng, **budget), 1),
        "concise, prioritized": (lambda: concise(playbook.entries, method="prioritized", rng=rng, **budget), 1),
        "render": (lambda: templates.render("teacher", Sections("question", playbook.entries)), 1),
        "to_json": (playbook.to_json, 1),
        "from_json": (lambda: Playbook.from_json(text), 1),
        "fingerprint": (playbook.fingerprint, 1),
    }
    began = time.process_time()
    add(playbook, new, is_new=True)
    first = time.process_time() - began
    times = {name: seconds_of(work, repeats) / per * 1e6 for name, (work, per) in works.items()}
    return {"lessons": kind, "entries": size, "json_bytes": len(text.encode()), "us": times, "first_add_s": first}


class Start(Callback):
    """Notes when a run's first update begins, and ends the run with it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the time: all that the run goes on from is there."""
        self.seconds, self.updates = time.process_time(), trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End."""
        trainer.should_stop = True


def fit_one(folder: Path, checkpoint: Path | None) -> tuple[Trainer, float, Start]:
    """Run one update of the quickstart; return its trainer and the seconds before the update began."""
    start = Start()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        options = [f"--run_dir={folder}", "--data.max_batches=1", "--trainer.limit_val_batches=0"]
        cli = ResdCLI([f"--config={ROOT / 'configs/quickstart.yaml'}", *options], run=False)
    trainer = cli.trainer
    trainer.callbacks = [*algorithm_callbacks(trainer), start]
    trainer.loggers = []
    began = time.process_time()
    trainer.fit(cli.model, cli.datamodule, ckpt_path=checkpoint, weights_only=None if checkpoint is None else True)
    return trainer, start.seconds - began, start


def measure_checkpoint(case: str, checkpoint: Path, repeats: int) -> dict[str, object]:
    """Save a checkpoint after one update, or go on with it; return seconds and bytes."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, before_s, start = fit_one(Path(folder), checkpoint if case == "resume" else None)
    if case == "resume":
        assert (start.updates, trainer.global_step) == (1, 2)
        check_s = seconds_of(lambda: read_checkpoint(checkpoint), repeats)
        return {"before_first_update_s": before_s, "check_s": check_s}
    assert (start.updates, trainer.global_step) == (0, 1)
    save_s = seconds_of(lambda: trainer.save_checkpoint(checkpoint, weights_only=False), repeats)
    held = torch.load(checkpoint, weights_only=True)
    sizes = {name: _bytes_of(held[name]) for name in ("state_dict", "optimizer_states", "resd")}
    return {"before_first_update_s": before_s, "save_s": save_s, "bytes": checkpoint.stat().st_size, "tensors": sizes}


def _bytes_of(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict | list | tuple):
        return sum(_bytes_of(one) for one in (value.values() if isinstance(value, dict) else value))
    return 0


def table(checkpoint: dict[str, dict[str, object]], playbooks: Sequence[dict[str, object]]) -> str:
    """Return the results as two tables."""
    lines = ["| checkpoint | |", "|---|---|"]
    if checkpoint:
        save, resume = checkpoint["save"], checkpoint["resume"]
        lines += [
            f"| size | {save['bytes'] / 2**20:.2f} MiB |",
            f"| saved in | {save['save_s']:.3f} s |",
            f"| a run starts in | {save['before_first_update_s']:.2f} s |",
            f"| and from the checkpoint in | {resume['before_first_update_s']:.2f} s |",
        ]
    names = list(playbooks[0]["us"]) if playbooks else []
    lines += ["", f"| lessons | entries | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for result in playbooks:
        numbers = " | ".join(f"{value:,.0f}" if value >= 10 else f"{value:.1f}" for value in result["us"].values())
        lines.append(f"| {result['lessons']} | {result['entries']:,} | {numbers} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run every case, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, nargs="*", default=[10, 1_000, 100_000])
    parser.add_argument("--lessons", nargs="+", default=["short", "long"], choices=["short", "long"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no_checkpoint", action="store_true", help="measure playbooks alone")
    parser.add_argument("--case", nargs=2, metavar=("CASE", "WHAT"), help="measure this one here, print its numbers")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.case is not None:
        torch.set_num_threads(1)
        case, what = options.case
        if case in ("save", "resume"):
            result = measure_checkpoint(case, Path(what), options.repeats)
        else:
            result = measure_playbook(case, int(what), options.repeats)
        print(json.dumps(rounded(result)))
        return
    around = surroundings("resd-lightning", "torch", "lightning")
    checkpoint: dict[str, dict[str, object]] = {}
    if not options.no_checkpoint:
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "last.ckpt")
            checkpoint = {
                case: run_apart(__file__, [*sys.argv[1:], "--case", case, path]) for case in ("save", "resume")
            }
    playbooks: list[dict[str, object]] = []
    for kind in options.lessons:
        for size in options.entries:
            playbooks.append(run_apart(__file__, [*sys.argv[1:], "--case", kind, str(size)]))
            print(playbooks[-1], flush=True)
            report = {"repeats": options.repeats, "checkpoint": checkpoint, "playbooks": playbooks}
            write(options.out, {**around, **report})
    print(table(checkpoint, playbooks))


if __name__ == "__main__":
    main()
