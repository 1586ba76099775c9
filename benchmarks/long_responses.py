"""Measures what an update of RESD costs over one of SDPO where responses are long and what is said of them is short.

    python benchmarks/long_responses.py --out benchmarks/results/long_responses_cpu.json

The random model `small` of update.py, one response to each prompt, nobody succeeds, all texts of full length. It
writes no JSON, so what reflector and curator wrote is replaced, after they have written it, by one that can be read:
the next phases then have their work. Each method is a process of its own; the mean of the updates behind a warm-up
counts, in the processor's seconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from measuring import rounded, run_apart, surroundings, write
from update import LONGEST_PROMPT, METHODS, Failing, fit, make_model, make_task, method_numbers

from resd_lightning.callbacks import (
    CacheSolutions,
    ConcisePlaybook,
    CuratePlaybook,
    ReflectOnFailures,
    SyncTeacher,
    TagSuccesses,
)
from resd_lightning.config import (
    Author,
    ContextConfig,
    LoraSettings,
    PolicyConfig,
    SamplingConfig,
    TeacherPromptConfig,
)
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import ResdModule
from resd_lightning.records import Completion, Purpose
from resd_lightning.rollout.engine import GenerationRequest, Schema
from resd_lightning.rollout.hf import HFEngine


class LegibleEngine(HFEngine):
    """Generates as ever, and gives the reflector's and the curator's texts a content."""

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
        """Return one completion per request, in order; see `Engine.generate`."""
        settings = {
            "author": author,
            "max_prompt_tokens": max_prompt_tokens,
            "schema": schema,
            "on_progress": on_progress,
        }
        written = super().generate(requests, sampling, **settings)
        return [replace(one, text=legible(asked, one.text)) for asked, one in zip(requests, written, strict=True)]


def legible(request: GenerationRequest, text: str) -> str:
    """Return a text as an answer that its purpose can use; a rollout's as it is."""
    if request.purpose == Purpose.REFLECT:
        return json.dumps({"key_insight": text, "tags": []})
    if request.purpose == Purpose.CURATE:
        return json.dumps({"reasoning": "", "operations": [{"type": "ADD", "section": "others", "content": text}]})
    return text


def updates_of(method: str, task: Failing, base: Path, options: argparse.Namespace) -> list[dict[str, object]]:
    """Return the numbers of each update of a method."""
    torch.manual_seed(0)
    is_resd = method == "resd"
    brief = SamplingConfig(max_new_tokens=options.context_tokens)
    module = ResdModule(
        PolicyConfig(str(base), "float32", lora=LoraSettings(16, 32)),
        context=ContextConfig(max_prompt_tokens=LONGEST_PROMPT, reflect=brief, tag=brief, curate=brief),
        teacher_prompt=TeacherPromptConfig(playbook=is_resd, reflection=is_resd, max_tokens=LONGEST_PROMPT),
        method=method,
    )
    data = RolloutDataModule(
        task,
        LegibleEngine(batch_size=options.prompts),
        batch_size=options.prompts,
        inner_updates=1 + options.repeats,
        micro_batch_size=2,
        rollout=SamplingConfig(max_new_tokens=options.response_tokens),
    )
    of_resd = [ConcisePlaybook(), ReflectOnFailures(), TagSuccesses(), CuratePlaybook()]
    return fit(module, data, [*(of_resd if is_resd else []), CacheSolutions(), SyncTeacher()])


def measure(method: str, options: argparse.Namespace) -> dict[str, object]:
    """Run one method in this process and return its mean update."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        base = make_model("small", Path(folder) / "model", Path())
        updates = updates_of(method, make_task("small", options), base, options)[1:]  # the first is the warm-up
    phases = {name: sum(u["phases"].get(name, 0.0) for u in updates) / len(updates) for name in updates[-1]["phases"]}
    written = {name: value for name, value in updates[-1]["tokens"].items() if name.endswith("_generated")}
    return {"case": method, **method_numbers({"updates": updates}), "phases": phases, "written": written}


def main() -> None:
    """Parse the command line, run both methods, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--prompt_tokens", type=int, default=128)
    parser.add_argument("--feedback_tokens", type=int, default=64)
    parser.add_argument("--response_tokens", type=int, default=512)
    parser.add_argument("--context_tokens", type=int, default=64, help="of a reflection, and of a curator's answer")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="updates behind the warm-up")
    parser.add_argument("--case", choices=METHODS, help="measure this one here, print its numbers")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(rounded(measure(options.case, options))))
        return
    sdpo, resd = (run_apart(__file__, [*sys.argv[1:], "--case", method]) for method in METHODS)
    ratios = {name: float(resd[name]) / float(value) for name, value in sdpo.items() if isinstance(value, float)}
    around = surroundings("resd-lightning", "torch", "transformers", "peft", "lightning")
    settings = {key: value for key, value in vars(options).items() if key not in ("case", "out")}
    write(options.out, {**around, "settings": settings, "RESD / SDPO": rounded(ratios), "cases": [sdpo, resd]})
    for result in (sdpo, resd):
        print(result)
    print(rounded(ratios))


if __name__ == "__main__":
    main()
