"""Measures reflection, tagging and curation: the requests of an update in batches, against one request at a time.

    python benchmarks/context_calls.py --out benchmarks/results/context_calls.json

micro-lm on the quickstart. Behind the warm-up every request is answered twice: once for the run to go on with, and
once timed, in one process by the package's batches and in the other one at a time. The processor's seconds count, and
whether both texts are the same. The engine's cost is measured, not that of building prompts and reading answers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measuring import rounded, run_apart, surroundings, write

from resd_lightning.algorithm import algorithm_callbacks
from resd_lightning.cli import ResdCLI
from resd_lightning.config import Author, SamplingConfig
from resd_lightning.records import Completion, Purpose
from resd_lightning.rollout.engine import GenerationRequest, Schema
from resd_lightning.rollout.hf import HFEngine

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = (Purpose.REFLECT, Purpose.TAG, Purpose.CURATE)


class Twice(HFEngine):
    """Answers the context's requests by another batch size as well, and keeps count.

    Args:
        batch_size: Of the answers that the run goes on with.
        measured_batch_size: Of those that are timed.
        warmup: Updates that are answered once.
    """

    def __init__(self, batch_size: int, measured_batch_size: int, warmup: int) -> None:
        super().__init__(batch_size)
        self.spent = {str(purpose): {"requests": 0, "tokens": 0, "seconds": 0.0, "same": 0} for purpose in CONTEXT}
        self._batch_size, self._measured, self._warmup = batch_size, measured_batch_size, warmup

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingConfig,
        *,
        author: Author,
        max_prompt_tokens: int,
        schema: Schema | None,
        on_progress: Callable[[int], object],
    ) -> list[Completion]:
        """Return the answers of the run's own batch size."""
        settings = {"author": author, "max_prompt_tokens": max_prompt_tokens, "schema": schema}
        answers = super().generate(requests, sampling, on_progress=on_progress, **settings)
        purpose = requests[0].purpose
        if purpose in CONTEXT and requests[0].update >= self._warmup:
            self.batch_size = self._measured
            began = time.process_time()
            others = super().generate(requests, sampling, on_progress=lambda _: None, **settings)
            spent = self.spent[str(purpose)]
            spent["seconds"] += time.process_time() - began
            self.batch_size = self._batch_size
            spent["requests"] += len(requests)
            spent["tokens"] += sum(len(answer.token_ids) for answer in others)
            spent["same"] += sum(one.text == other.text for one, other in zip(answers, others, strict=True))
        return answers


def measure(batch_size: int, options: argparse.Namespace) -> dict[str, object]:
    """Run the updates in this process and return what the measured batch size took."""
    torch.set_num_threads(1)
    updates = options.warmup + options.updates
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        arguments = [f"--config={ROOT / 'configs/quickstart.yaml'}", f"--run_dir={folder}", "--data.inner_updates=1"]
        arguments += [f"--data.max_batches={updates}", "--trainer.limit_val_batches=0"]
        cli = ResdCLI([*arguments, f"--data.batch_size={options.prompts}"], run=False)
        engine = cli.datamodule.engine = Twice(cli.datamodule.engine.batch_size, batch_size, options.warmup)
        cli.trainer.callbacks = algorithm_callbacks(cli.trainer)
        cli.trainer.loggers = []
        cli.trainer.fit(cli.model, cli.datamodule)
    return {"batch_size": batch_size, "purposes": engine.spent, "playbook": cli.model.context.num_entries}


def compare(batched: dict[str, object], single: dict[str, object]) -> dict[str, dict[str, float]]:
    """Return by how much batches are faster for each purpose and all together, and the share of equal texts."""
    rows = {}
    for purpose in (*map(str, CONTEXT), "all"):
        chosen = list(map(str, CONTEXT)) if purpose == "all" else [purpose]
        sums = [
            {key: sum(result["purposes"][name][key] for name in chosen) for key in ("requests", "seconds", "same")}
            for result in (batched, single)
        ]
        if sums[0]["requests"]:
            rows[purpose] = {
                "requests": sums[0]["requests"],
                "batched_s": sums[0]["seconds"],
                "single_s": sums[1]["seconds"],
                "faster": sums[1]["seconds"] / sums[0]["seconds"],
                "same_texts": sums[1]["same"] / sums[1]["requests"],
            }
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the comparison as a table."""
    lines = [
        "| purpose | faster | same texts | requests | batched, s | one at a time, s |",
        "|---|---|---|---|---|---|",
    ]
    for purpose, row in rows.items():
        shown = f"{row['faster']:.1f} | {row['same_texts']:.1%} | {row['requests']} | {row['batched_s']:.2f}"
        lines.append(f"| {purpose} | {shown} | {row['single_s']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run both cases, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32, help="per update")
    parser.add_argument("--warmup", type=int, default=4, help="updates, in which the playbook fills as well")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=256, help="the quickstart's")
    parser.add_argument("--case", type=int, metavar="BATCH_SIZE", help="measure this one here, and print its numbers")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(rounded(measure(options.case, options))))
        return
    around = surroundings("resd-lightning", "torch", "transformers")
    results = [run_apart(__file__, [*sys.argv[1:], "--case", str(size)]) for size in (options.batch_size, 1)]
    rows = compare(*results)
    settings = {key: getattr(options, key) for key in ("prompts", "warmup", "updates", "batch_size")}
    write(options.out, {**around, "settings": settings, "ratios": rounded(rows), "cases": results})
    print(table(rows))


if __name__ == "__main__":
    main()
