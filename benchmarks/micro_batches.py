"""Measures the gradient part of an update, teacher, student and loss, by how its rollouts are put into micro-batches.

    python benchmarks/micro_batches.py --out benchmarks/results/micro_batches_cpu.json

`prefix`: what all teacher prompts begin with is read once, or with each of them, at several lengths of it. `padding`:
responses of mixed lengths in micro-batches of 8 as they come, in micro-batches of a number of tokens with similar
lengths together, and the latter packed, without padding. A random model in Qwen3's shape, LoRA, fused loss, fp32. Each
case is a process of its own: the first update warms up, of the others the fastest counts. Beside each ratio stands what
the numbers of tokens let expect: a token of the student costs three passes, one of the teacher's one.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from measuring import Stopwatch, rounded, run_apart, surroundings, write
from random_model import CONTROLS, Shape, make_random_model
from torch import Tensor

from resd_lightning.config import DistillationConfig, LoraSettings, PolicyConfig, TeacherConfig
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.objectives.objective import Cut
from resd_lightning.policy.load import load_policy, load_tokenizer
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Example, Feedback, Message, Rollout, TeacherPrompt

SHAPE = Shape(hidden=256, layers=4, vocab=8192)
QUESTION = 64
"""Tokens of the student's prompt."""
Update = tuple[list[Rollout], list[TeacherPrompt]]


def draw_update(prefix: int, own: int, responses: Sequence[int]) -> Update:
    """Return rollouts of these lengths, whose teacher prompts share `prefix` tokens and have `own` more."""
    rng = random.Random(0)

    def tokens(number: int) -> tuple[int, ...]:
        return tuple(rng.randrange(len(CONTROLS), SHAPE.vocab) for _ in range(number))

    example = Example("x", (Message(role="user", content="q"),), None)
    shared = tokens(prefix)
    rollouts = [
        Rollout(example, i, Completion("", tokens(QUESTION), tokens(length)), Feedback(0.0, (), ""))
        for i, length in enumerate(responses)
    ]
    prompts = [TeacherPrompt((), (*shared, *tokens(own)), frozenset({"feedback"})) for _ in responses]
    return rollouts, prompts


def mixed_lengths(number: int, shortest: int, longest: int) -> list[int]:
    """Return lengths whose logarithms are uniform: many short ones, a few long ones."""
    rng = random.Random(1)
    return [round(shortest * (longest / shortest) ** rng.random()) for _ in range(number)]


CASES: dict[str, dict[str, object]] = {
    **{
        f"prefix {prefix} of {prefix + own}, {how}": {
            "update": (prefix, own, [128] * 8),
            "cut": {"micro_batch_size": 2},
            "teacher_prefix": how,
            "packing": "off",
        }
        for prefix, own in ((96, 672), (384, 384), (672, 96))
        for how in ("repeated", "shared")
    },
    **{
        f"padding, {name}": {
            "update": (64, 64, mixed_lengths(32, 16, 512)),
            "cut": cut,
            "teacher_prefix": "repeated",
            "packing": packing,
        }
        for name, cut, packing in (
            ("as they come", {"micro_batch_size": 8}, "off"),
            ("by tokens", {"micro_batch_size": 32, "micro_batch_tokens": 2048}, "off"),
            ("by tokens, packed", {"micro_batch_size": 32, "micro_batch_tokens": 2048, "is_packed": True}, "on"),
        )
    },
}
RATIOS = {
    **{
        f"prefix {prefix} of 768": (f"prefix {prefix} of 768, repeated", f"prefix {prefix} of 768, shared")
        for prefix in (96, 384, 672)
    },
    "by tokens": ("padding, as they come", "padding, by tokens"),
    "by tokens, packed": ("padding, as they come", "padding, by tokens, packed"),
}
"""Slower and faster case of each comparison."""


def load(folder: Path, packing: str) -> Policy:
    """Return the random model with its adapters."""
    make_random_model(folder, SHAPE, stop_share=0.0)
    config = PolicyConfig(str(folder), dtype="float32", lora=LoraSettings(rank=16, alpha=32), packing=packing)  # type: ignore[arg-type]
    return load_policy(config, TeacherConfig(), load_tokenizer(config))


def measure(name: str, repeats: int) -> dict[str, object]:
    """Return what one case takes."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        policy = load(Path(folder), str(case["packing"]))
    policy.model.train()
    rollouts, prompts = draw_update(*case["update"])  # type: ignore[misc]
    cut = Cut(num_slots=len(rollouts), pad_id=0, **case["cut"])  # type: ignore[arg-type]
    config = DistillationConfig(loss="fused", teacher_prefix=case["teacher_prefix"])  # type: ignore[arg-type]
    objective = DistillationObjective(config)
    objective.prepare(policy)
    passes = {"student": 0, "teacher": 0}

    def count(_: object, inputs: tuple[Tensor, ...], __: object) -> None:
        passes["student" if torch.is_grad_enabled() else "teacher"] += inputs[0].numel()

    policy.model.get_input_embeddings().register_forward_hook(count)
    best: dict[str, float] = {}
    for _ in range(repeats + 1):
        passes.update(student=0, teacher=0)
        policy.zero_grad()
        watch = Stopwatch()
        objective.begin_update()
        for batch in objective.micro_batches(rollouts, prompts, cut):
            if not batch.is_filler:
                objective.loss(policy, batch).backward()
        objective.end_update()
        watch.end_part("update")
        if not best or watch.total()["seconds"] < best["seconds"]:
            best = watch.total()
    return {**best, "tokens": passes, "expected": 3 * passes["student"] + passes["teacher"]}


def main() -> None:
    """Measure all cases and print their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=list(RATIOS), choices=list(RATIOS))
    parser.add_argument("--case", choices=list(CASES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.case:
        print(json.dumps(measure(options.case, options.repeats)))
        return
    cases = dict.fromkeys(case for ratio in options.only for case in RATIOS[ratio])
    shared = ["--repeats", str(options.repeats), "--threads", str(options.threads)]
    found = {name: run_apart(__file__, [*shared, "--case", name]) for name in cases}
    ratios = {}
    for name in options.only:
        slow, fast = (found[case] for case in RATIOS[name])
        ratios[name] = {
            "time": slow["seconds"] / fast["seconds"],
            "expected": slow["expected"] / fast["expected"],
            "memory": slow["peak_mib"] / fast["peak_mib"],
        }
        print(name, json.dumps(rounded(ratios[name], 2)))
    report = {"options": {**vars(options), "out": None}, **surroundings("torch", "transformers", "peft")}
    write(options.out, rounded({**report, "ratios": ratios, "cases": found}))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
