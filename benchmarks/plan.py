"""Predicts the memory of updates and of generating as `resd plan` does, runs them, and measures it.

    python benchmarks/plan.py --out benchmarks/results/plan_cpu.json
    python benchmarks/plan.py --device cuda --cases fused_mixed nf4_mixed --out benchmarks/results/plan_cuda.json

The base is a random Qwen3; everything else is the package's own: student and teacher on it, the loss, AdamW, the
engine's sampler. Each case runs in a process of its own. `update` is the peak of two micro-batches, with a step of the
optimizer after each, above the loaded weights; `teacher` that of the teacher's forward pass, `generation` that of a
batch of responses. On a CPU the peak is the largest sum of what torch's allocator gave and took back, which its
profiler records to the byte; on a GPU it is the allocator's own `max_memory_allocated`. What `--out` has of the same
settings, machine and versions isn't measured again, only predicted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LogitsProcessorList,
    MixtralConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from resd_lightning.compare.launch import cpu
from resd_lightning.config import DistillationConfig, LoraSettings, PolicyConfig, SamplingConfig, TeacherConfig
from resd_lightning.distill.align import beside, make_batch, response_hidden
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.plan.generation import generation
from resd_lightning.plan.memory import student, teacher
from resd_lightning.plan.run import Call, Run
from resd_lightning.plan.shape import BESIDE_EXPERTS, read_shape
from resd_lightning.plan.weights import Item, optimizer_step, resident
from resd_lightning.policy.head import backbone_of
from resd_lightning.policy.load import load_base
from resd_lightning.policy.views import Policy
from resd_lightning.rollout.sampling import SeededSampling

Settings = dict[str, object]

CASES: dict[str, Settings] = {
    "fused": {},
    "fused_checkpointing": {"checkpointing": True},
    "fused_padded": {"micro_batch": 2},
    "fused_padded_checkpointing": {"micro_batch": 2, "checkpointing": True},
    "fused_mixed": {"dtype": "bfloat16", "mixed": True},
    "fused_mixed_checkpointing": {"dtype": "bfloat16", "mixed": True, "checkpointing": True},
    "fused_mixed_over_fp32": {"mixed": True},
    "nf4": {"quantization": "nf4"},
    "nf4_checkpointing": {"quantization": "nf4", "checkpointing": True},
    "nf4_mixed": {"quantization": "nf4", "dtype": "bfloat16", "mixed": True},
    "nf4_mixed_checkpointing": {"quantization": "nf4", "dtype": "bfloat16", "mixed": True, "checkpointing": True},
    "plain": {"loss": "plain"},
    "plain_mixed": {"loss": "plain", "dtype": "bfloat16", "mixed": True},
    "whole_vocabulary": {"top_k": None},
    "full": {"lora": False},
    "full_checkpointing": {"lora": False, "checkpointing": True},
    "eager": {"attention": "eager"},
    "dropout": {"dropout": 0.1},
    "some_layers": {"target_modules": ["q_proj", "v_proj"]},
    "experts": {"experts": True},
    "experts_checkpointing": {"experts": True, "checkpointing": True},
    "experts_mixed_checkpointing": {"experts": True, "dtype": "bfloat16", "mixed": True, "checkpointing": True},
    "wide_experts": {"experts": "wide"},
    "wide_experts_checkpointing": {"experts": "wide", "checkpointing": True},
}
"""What each differs in from LoRA on all layers of an fp32 base, the fused loss, SDPA, and no checkpointing."""


def write_base(folder: Path, case: Settings, options: argparse.Namespace) -> None:
    """Write a random Qwen3, one with 16 narrow experts of which a token meets four, or a Mixtral with 8 wide ones."""
    sizes = {
        "vocab_size": options.vocab,
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64,
        "num_key_value_heads": options.hidden // 256,
        "head_dim": 64,
        "intermediate_size": 3 * options.hidden,
        "tie_word_embeddings": True,
        "max_position_embeddings": 40960,
    }
    config: PretrainedConfig
    if case.get("experts") == "wide":
        config = MixtralConfig(**{**sizes, "intermediate_size": 7 * options.hidden // 2}, num_local_experts=8)
    elif case.get("experts", False):
        of_experts = {"moe_intermediate_size": 3 * options.hidden // 8, "num_experts": 16, "num_experts_per_tok": 4}
        config = Qwen3MoeConfig(**sizes, **of_experts)
    else:
        config = Qwen3Config(**sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def run_of(case: Settings, base: Path, options: argparse.Namespace) -> Run:
    """Return a case as the run it stands for."""
    adapted = list(BESIDE_EXPERTS) if case.get("experts", False) else case.get("target_modules", "all-linear")
    lora = LoraSettings(dropout=case.get("dropout", 0.0), target_modules=adapted)
    policy = PolicyConfig(
        base=str(base),
        dtype=case.get("dtype", "float32"),
        quantization=case.get("quantization", "none"),
        lora=lora if case.get("lora", True) else None,
        gradient_checkpointing=case.get("checkpointing", False),
        attention=case.get("attention", "sdpa"),
    )
    return Run(
        shape=read_shape(policy),
        policy=policy,
        teacher="ema",
        distillation=DistillationConfig(loss=case.get("loss", "auto"), top_k=case.get("top_k", 100)),
        objectives=("distillation",),
        optimizer="adamw",
        is_mixed=case.get("mixed", False),
        device="cuda" if options.device == "cuda" else "cpu",
        micro_batch=case.get("micro_batch", 1),
        prompt=options.prompt,
        response=options.response,
        teacher_prompt=options.teacher_prompt,
        engine_batch=options.engine_batch,
        batch=options.engine_batch,
        rollouts=options.engine_batch,
        context=(),
        validation=options.new_tokens,
        validations=options.engine_batch,
    )


def predict(run: Run) -> dict[str, int]:
    """Return the bytes above the loaded weights that the plan expects."""

    def total(items: tuple[Item, ...]) -> int:
        return sum(item.bytes for item in items)

    loaded = ("base weights", "student's adapter", "teacher's weights and average")
    always = total(tuple(item for item in resident(run) if item.name not in loaded))
    casts = total(tuple(item for item in resident(run) if "autocast" in item.name))
    work = max(total(teacher(run)), total(student(run)), optimizer_step(run) - casts)
    return {
        "update": always + work,
        "teacher": total(teacher(run)),
        "generation": total(generation(run, Call("", run.prompt, run.validation, run.rollouts))) + casts,
    }


def peak_of(work: Callable[[], object], device: torch.device) -> int:
    """Return by how many bytes memory rises at most while `work` runs."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def measure(run: Run, device: torch.device) -> dict[str, int]:
    """Return the bytes above the loaded weights that updates, a teacher's forward pass and generation took."""
    policy = Policy(load_base(run.policy, device), None, lora=run.policy.lora, teacher=TeacherConfig()).to(device)
    objective = DistillationObjective(run.distillation)
    objective.is_fused = run.is_fused
    numbers = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, run.shape.vocab, (count,), generator=numbers).tolist()

    rows = range(run.micro_batch)  # the second of two has a shorter prompt, so there is padding
    responses = [ids(run.response) for _ in rows]
    batch = make_batch(
        [ids(run.prompt - 8 * row) for row in rows],
        [ids(run.teacher_prompt - 8 * row) for row in rows],
        responses,
        [1.0] * run.micro_batch,
        pad_id=0,
    )
    for name, value in vars(batch).items():
        if isinstance(value, torch.Tensor):
            setattr(batch, name, value.to(device))

    def autocast() -> AbstractContextManager[None]:
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=run.is_mixed)

    policy.precision_context = autocast

    def teach() -> None:
        with policy.as_teacher() as model:
            if run.is_fused:
                response_hidden(backbone_of(model), batch.teacher_ids, batch.teacher_mask, run.response).clone()
                return
        objective.teacher_logits(policy, batch)

    def generate() -> None:
        prompts, mask = beside(
            [ids(run.prompt - 8 * (row == 1)) for row in range(run.engine_batch)], [[]] * run.engine_batch, 0
        )
        sampler = SeededSampling(list(range(run.engine_batch)), SamplingConfig(), device)
        with policy.frozen("student") as model:
            model.generate(
                input_ids=prompts.to(device),
                attention_mask=mask.long().to(device),
                logits_processor=LogitsProcessorList([sampler]),
                generation_config=GenerationConfig(max_new_tokens=run.validation, do_sample=False, pad_token_id=0),
            )

    def update() -> None:
        optimizer = torch.optim.AdamW(weight for weight in policy.student_weights().values() if weight.requires_grad)
        for _ in range(2):  # the second finds the optimizer's state, and gradients that it adds to
            with autocast():
                loss = objective.loss(policy, batch)
            loss.backward()
            del loss  # as in Lightning; its graph would keep the inputs of checkpointed layers
            optimizer.step()

    teach()  # what is made once (tables of positions) is no part of it
    found = {"teacher": peak_of(teach, device), "generation": peak_of(generate, device)}
    return {"update": peak_of(update, device), **found}


def one_case(name: str, measured: dict[str, int] | None, options: argparse.Namespace) -> dict[str, object]:
    """Predict one case, and measure it in this process unless that has been done."""
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        write_base(Path(folder), CASES[name], options)
        run = run_of(CASES[name], Path(folder), options)
        predicted = predict(run)
        measured = measure(run, torch.device(options.device)) if measured is None else measured
    errors = {part: round(predicted[part] / measured[part] - 1, 3) for part in predicted}
    return {
        "case": name,
        "settings": settings_of(options),
        "measured": measured,
        "predicted": predicted,
        "error": errors,
    }


def settings_of(options: argparse.Namespace) -> dict[str, object]:
    """Return what a measurement depends on besides its case."""
    return {key: value for key, value in vars(options).items() if key not in ("cases", "out")}


def apart(name: str, measured: dict[str, int] | None, options: argparse.Namespace) -> dict[str, object]:
    """Predict and measure one case in a process of its own."""
    # A fork has nothing but the imports of this process; a GPU must not have been used before one.
    with ProcessPoolExecutor(1, get_context("fork" if options.device == "cpu" else "spawn")) as pool:
        return pool.submit(one_case, name, measured, options).result()


def main() -> None:
    """Parse the command line, run every case, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--response", type=int, default=768)
    parser.add_argument("--teacher_prompt", type=int, default=512)
    parser.add_argument("--engine_batch", type=int, default=4)
    parser.add_argument("--new_tokens", type=int, default=16, help="that are generated")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    report: dict[str, object] = {
        "machine": {
            "cpu": cpu(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
        },
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in ("torch", "transformers", "peft", "bitsandbytes")},
    }
    earlier = json.loads(options.out.read_text()) if options.out is not None and options.out.exists() else {}
    is_comparable = all(earlier.get(key) == report[key] for key in report)
    cases = {(one["case"], json.dumps(one["settings"])): one for one in earlier["cases"]} if is_comparable else {}
    for name in options.cases:
        key = (name, json.dumps(settings_of(options)))
        cases[key] = apart(name, cases[key]["measured"] if key in cases else None, options)
        print(name, cases[key]["error"], flush=True)
        if options.out is not None:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(report | {"cases": list(cases.values())}, indent=1) + "\n")


if __name__ == "__main__":
    main()
