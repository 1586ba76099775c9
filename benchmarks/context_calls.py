"""Measures reflection, tagging and curation: the requests of an update in batches, singly, and in continuous batches.

    python benchmarks/context_calls.py --out benchmarks/results/context_calls.json

micro-lm on the quickstart. Behind the warm-up every request is answered twice: once for the run to go on with, and
once timed, each time in a process of its own: by the package's batches, one at a time, and by continuous batches, which
read what prompts begin with once. The processor's seconds count, the tokens that the model reads, and whether texts are
the same. The engine's cost is measured, not that of building prompts and reading answers.
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
from torch import Tensor, nn

from resd_lightning.algorithm import algorithm_callbacks
from resd_lightning.cli import ResdCLI
from resd_lightning.config import Author, SamplingConfig
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Purpose
from resd_lightning.rollout.continuous import ContinuousEngine
from resd_lightning.rollout.engine import GenerationRequest, Schema
from resd_lightning.rollout.hf import HFEngine

ROOT = Path(__file__).resolve().parents[1]
CASES = ("batched", "single", "continuous")
CONTEXT = (Purpose.REFLECT, Purpose.TAG, Purpose.CURATE)


class Twice(HFEngine):
    """Answers the context's requests by another engine as well, and keeps count.

    Args:
        batch_size: Of the answers that the run goes on with.
        measured: Gives those that are timed.
        warmup: Updates that are answered once.
    """

    def __init__(self, batch_size: int, measured: HFEngine, warmup: int) -> None:
        super().__init__(batch_size)
        counts = {"requests": 0, "tokens": 0, "prompt_tokens": 0, "read_tokens": 0, "seconds": 0.0, "same": 0}
        self.spent = {str(purpose): dict(counts) for purpose in CONTEXT}
        self._measured, self._warmup = measured, warmup
        self._read = 0

    def attach(self, policy: Policy, run_seed: int) -> None:
        """Bind both engines, and count the tokens that the model reads."""
        super().attach(policy, run_seed)
        self._measured.attach(policy, run_seed)

        def count(_: nn.Module, __: tuple[object, ...], arguments: dict[str, Tensor]) -> None:
            self._read += arguments["input_ids"].numel()

        with policy.frozen("student") as model:
            model.get_base_model().register_forward_pre_hook(count, with_kwargs=True)

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
            began, self._read = time.process_time(), 0
            others = self._measured.generate(requests, sampling, on_progress=lambda _: None, **settings)
            spent = self.spent[str(purpose)]
            spent["seconds"] += time.process_time() - began
            spent["read_tokens"] += self._read
            spent["prompt_tokens"] += sum(len(answer.prompt_ids) for answer in others)
            spent["requests"] += len(requests)
            spent["tokens"] += sum(len(answer.token_ids) for answer in others)
            spent["same"] += sum(one.text == other.text for one, other in zip(answers, others, strict=True))
        return answers


def measured_engine(case: str, batch_size: int) -> HFEngine:
    """Return the engine of a case."""
    if case == "continuous":
        return ContinuousEngine(batch_size, page_tokens=16, prefill_tokens=512)
    return HFEngine(1 if case == "single" else batch_size)


def measure(case: str, options: argparse.Namespace) -> dict[str, object]:
    """Run the updates in this process and return what the measured engine took."""
    torch.set_num_threads(1)
    updates = options.warmup + options.updates
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "LightningCLI's args parameter")
        arguments = [f"--config={ROOT / 'configs/quickstart.yaml'}", f"--run_dir={folder}", "--data.inner_updates=1"]
        arguments += [f"--data.max_batches={updates}", "--trainer.limit_val_batches=0"]
        cli = ResdCLI([*arguments, f"--data.batch_size={options.prompts}"], run=False)
        measured = measured_engine(case, options.batch_size)
        engine = cli.datamodule.engine = Twice(cli.datamodule.engine.batch_size, measured, options.warmup)
        cli.trainer.callbacks = algorithm_callbacks(cli.trainer)
        cli.trainer.loggers = []
        cli.trainer.fit(cli.model, cli.datamodule)
    return {"case": case, "purposes": engine.spent, "playbook": cli.model.context.num_entries}


def sums(result: dict[str, object], purpose: str) -> dict[str, float]:
    """Return what a case took for a purpose, or for all."""
    chosen = list(map(str, CONTEXT)) if purpose == "all" else [purpose]
    return {key: sum(result["purposes"][name][key] for name in chosen) for key in result["purposes"][chosen[0]]}


def compare(results: Sequence[dict[str, object]]) -> dict[str, dict[str, float]]:
    """Return, by purpose and for all, what each case took, and how often its texts are those of the run's batches."""
    rows = {}
    for purpose in (*map(str, CONTEXT), "all"):
        cases = {str(result["case"]): sums(result, purpose) for result in results}
        one = cases["batched"]
        if one["requests"]:
            rows[purpose] = {
                "requests": one["requests"],
                "prompt_tokens": one["prompt_tokens"],
                **{f"{name}_s": case["seconds"] for name, case in cases.items()},
                **{f"{name}_read": case["read_tokens"] for name, case in cases.items()},
                "faster": cases["single"]["seconds"] / one["seconds"],
                "faster_continuous": cases["single"]["seconds"] / cases["continuous"]["seconds"],
                "same_texts": min(case["same"] / case["requests"] for case in cases.values()),
            }
    return rows


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the comparison as a table, in times as fast as one request at a time."""
    lines = [
        "| purpose | in batches | continuous | same texts | requests | tokens read by each | seconds, singly |",
        "|---|---|---|---|---|---|---|",
    ]
    for purpose, row in rows.items():
        speeds = f"{row['faster']:.1f} | {row['faster_continuous']:.1f} | {row['same_texts']:.1%} | {row['requests']}"
        read = f"{row['batched_read']:,}, {row['continuous_read']:,}"
        lines.append(f"| {purpose} | {speeds} | {read} | {row['single_s']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run both cases, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32, help="per update")
    parser.add_argument("--warmup", type=int, default=4, help="updates, in which the playbook fills as well")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=256, help="the quickstart's")
    parser.add_argument("--case", choices=CASES, help="measure this one here, and print its numbers")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(rounded(measure(options.case, options))))
        return
    around = surroundings("resd-lightning", "torch", "transformers")
    results = [run_apart(__file__, [*sys.argv[1:], "--case", case]) for case in CASES]
    rows = compare(results)
    settings = {key: getattr(options, key) for key in ("prompts", "warmup", "updates", "batch_size")}
    write(options.out, {**around, "settings": settings, "ratios": rounded(rows), "cases": results})
    print(table(rows))


if __name__ == "__main__":
    main()
