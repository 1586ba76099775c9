"""Measures generation on prompts of mixed lengths: batches by length, as they come, singly, and continuous batches.

    python benchmarks/rollouts.py --out benchmarks/results/rollouts.json
    python benchmarks/rollouts.py --stop_every 0 --prompt_tokens 256 256    # nothing to gain from a response's end
    python benchmarks/rollouts.py --shared_tokens 1024                      # prompts that begin alike

A random model of which every 64th token ends a response, so that responses are of mixed lengths too; prompts of 16 to
512 tokens, as many short ones as long ones (on a logarithmic scale), behind a beginning that all share. `sorted` is
`HFEngine`, the default, and `continuous` is `ContinuousEngine`. Each case is a process of its own that has generated a
batch before. Seconds are the processor's; peaks are what the process holds above what it held before.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measuring import Stopwatch, rounded, run_apart, surroundings, write
from random_model import Shape, make_random_model, words

from resd_lightning.config import LoraSettings, PolicyConfig, SamplingConfig, TeacherConfig
from resd_lightning.policy.load import load_policy, load_tokenizer
from resd_lightning.policy.views import Policy
from resd_lightning.records import Message, Purpose
from resd_lightning.rollout.continuous import ContinuousEngine
from resd_lightning.rollout.engine import GenerationRequest
from resd_lightning.rollout.hf import HFEngine

Tokens = list[list[int]]
"""The responses' tokens, in the requests' order."""


def make_requests(options: argparse.Namespace) -> list[GenerationRequest]:
    """Return the prompts, in an order that has nothing to do with their lengths."""
    rng = random.Random(0)
    low, high = options.prompt_tokens
    requests, shared = [], words(options.shared_tokens, options.vocab, rng)
    for number in range(options.prompts):
        length = round(low * (high / low) ** (number / max(1, options.prompts - 1)))
        message = Message(role="user", content=f"{shared} {words(length, options.vocab, rng)}")
        requests.append(GenerationRequest(Purpose.ROLLOUT, 0, str(number), 0, (message,)))
    rng.shuffle(requests)
    return requests


def generate(
    engine: HFEngine,
    policy: Policy,
    requests: Sequence[GenerationRequest],
    options: argparse.Namespace,
    share: int | None = None,
) -> Tokens:
    """Return what an engine generates that is given `share` requests at a time; None for all."""
    engine.attach(policy, 0)
    sampling = SamplingConfig(max_new_tokens=options.response_tokens, top_p=options.top_p)
    settings = {"author": "student", "max_prompt_tokens": 8192, "schema": None, "on_progress": lambda _: None}
    share = share or len(requests)
    shares = [requests[start : start + share] for start in range(0, len(requests), share)]
    return [list(done.token_ids) for part in shares for done in engine.generate(part, sampling, **settings)]


def in_order(policy: Policy, requests: Sequence[GenerationRequest], options: argparse.Namespace) -> Tokens:
    """Return what batches of requests as they come generate."""
    return generate(HFEngine(options.batch_size), policy, requests, options, share=options.batch_size)


def by_length(policy: Policy, requests: Sequence[GenerationRequest], options: argparse.Namespace) -> Tokens:
    """Return what the default engine's batches generate."""
    return generate(HFEngine(options.batch_size), policy, requests, options)


def singly(policy: Policy, requests: Sequence[GenerationRequest], options: argparse.Namespace) -> Tokens:
    """Return what one request at a time generates."""
    return generate(HFEngine(1), policy, requests, options)


def continuously(policy: Policy, requests: Sequence[GenerationRequest], options: argparse.Namespace) -> Tokens:
    """Return what continuous batches generate."""
    engine = ContinuousEngine(options.batch_size, options.page_tokens, options.prefill_tokens)
    return generate(engine, policy, requests, options)


CASES: dict[str, tuple[Callable[[Policy, Sequence[GenerationRequest], argparse.Namespace], Tokens], str]] = {
    "sorted": (by_length, "by length (`HFEngine`)"),
    "arrival": (in_order, "as they come"),
    "single": (singly, "one at a time"),
    "continuous": (continuously, "continuous (`ContinuousEngine`)"),
}


def measure(case: str, options: argparse.Namespace) -> dict[str, object]:
    """Run one case in this process and return its numbers."""
    torch.set_num_threads(1)
    requests = make_requests(options)
    with tempfile.TemporaryDirectory() as folder:
        shape = Shape(options.hidden, options.layers, options.vocab)
        base = make_random_model(
            Path(folder) / "model", shape, stop_share=1 / options.stop_every if options.stop_every else 0
        )
        config = PolicyConfig(str(base), "float32", lora=LoraSettings(rank=8, alpha=16))
        torch.manual_seed(0)
        policy = load_policy(config, TeacherConfig(), load_tokenizer(config))
    watch = Stopwatch()
    CASES[case][0](policy, requests[: options.batch_size], options)  # to warm up
    watch.start()
    responses = CASES[case][0](policy, requests, options)
    watch.end_part("generation")
    tokens = sum(map(len, responses))
    numbers = {**watch.total(), "tokens": tokens, "tokens_per_s": tokens / watch.total()["seconds"]}
    return {"case": case, **numbers, "responses": responses}


def table(results: Sequence[dict[str, object]]) -> str:
    """Return the results as a table, with the ratios of their speeds to the default engine's."""
    lines = [
        "| batches | speed | same tokens | tokens/s | seconds | wall | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = next(result for result in results if result["case"] == "sorted")
    for result in results:
        name = CASES[str(result["case"])][1]
        same = f"{result['same_responses']:.1%}"
        speed = result["tokens_per_s"] / ours["tokens_per_s"]
        rest = f"{result['tokens_per_s']:.0f} | {result['seconds']:.2f} | {result['wall_s']:.1f}"
        lines.append(f"| {name} | {speed:.2f} | {same} | {rest} | {result['peak_mib']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run every case, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt_tokens", type=int, nargs=2, default=[16, 512], metavar=("LEAST", "MOST"))
    parser.add_argument("--shared_tokens", type=int, default=0, help="that all prompts begin with, before their own")
    parser.add_argument("--response_tokens", type=int, default=128, help="at most")
    parser.add_argument("--stop_every", type=int, default=64, help="tokens that a response has on average; 0: its most")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--page_tokens", type=int, default=32, help="of continuous batches")
    parser.add_argument("--prefill_tokens", type=int, default=1024, help="of continuous batches")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="`sorted` is always there")
    parser.add_argument("--case", choices=list(CASES), help="measure this one here, and print its numbers")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(rounded(measure(options.case, options))))
        return
    around = surroundings("resd-lightning", "torch", "transformers")
    settings = {key: value for key, value in vars(options).items() if key not in ("case", "cases", "out")}
    results: list[dict[str, object]] = []
    ours: list[list[int]] = []
    for case in dict.fromkeys(["sorted", *options.cases]):
        result = run_apart(__file__, [*sys.argv[1:], "--case", case])
        responses = result.pop("responses")
        ours = responses if case == "sorted" else ours
        result["same_responses"] = sum(one == other for one, other in zip(responses, ours, strict=True)) / len(ours)
        results.append(result)
        print(result, flush=True)
        write(options.out, {**around, "settings": settings, "cases": results})
    print(table(results))


if __name__ == "__main__":
    main()
