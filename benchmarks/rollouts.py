"""Measures generation on prompts of mixed lengths: batches by length, as they come, singly, and continuous batches.

    python benchmarks/rollouts.py --out benchmarks/results/rollouts.json

A random model of which every 64th token ends a response, so that responses are of mixed lengths too; prompts of 16 to
512 tokens, as many short ones as long ones (on a logarithmic scale). `sorted` is the package's engine. `continuous` is
transformers' own continuous batching, which draws its own samples and is compared by tokens a second; where it can't
run, the results say why. Each case is a process of its own that has generated a batch before. Seconds are the
processor's; peaks are what the process holds above what it held before.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from measuring import Stopwatch, rounded, run_apart, surroundings, write
from random_model import Shape, make_random_model, words
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.utils.logging import get_logger

from resd_lightning.config import LoraSettings, PolicyConfig, SamplingConfig, TeacherConfig
from resd_lightning.policy.load import load_policy, load_tokenizer
from resd_lightning.policy.views import Policy
from resd_lightning.records import Message, Purpose
from resd_lightning.rollout.chat import encode_prompt
from resd_lightning.rollout.engine import GenerationRequest
from resd_lightning.rollout.hf import HFEngine

PAGE_TOKENS = 64
"""Tokens of a page of the continuous batches' cache."""

Tokens = list[list[int]]
"""The responses' tokens, in the requests' order."""


def make_requests(options: argparse.Namespace) -> list[GenerationRequest]:
    """Return the prompts, in an order that has nothing to do with their lengths."""
    rng = random.Random(0)
    low, high = options.prompt_tokens
    requests = []
    for number in range(options.prompts):
        length = round(low * (high / low) ** (number / max(1, options.prompts - 1)))
        message = Message(role="user", content=words(length, options.vocab, rng))
        requests.append(GenerationRequest(Purpose.ROLLOUT, 0, str(number), 0, (message,)))
    rng.shuffle(requests)
    return requests


def by_engine(
    policy: Policy, requests: Sequence[GenerationRequest], options: argparse.Namespace, *, batch: int, share: int
) -> Tokens:
    """Return what the engine generates that is given `share` requests at a time."""
    engine = HFEngine(batch)
    engine.attach(policy, 0)
    sampling = SamplingConfig(max_new_tokens=options.response_tokens, top_p=options.top_p)
    settings = {"author": "student", "max_prompt_tokens": 4096, "schema": None, "on_progress": lambda _: None}
    shares = [requests[start : start + share] for start in range(0, len(requests), share)]
    return [list(done.token_ids) for part in shares for done in engine.generate(part, sampling, **settings)]


def in_order(policy: Policy, requests: Sequence[GenerationRequest], options: argparse.Namespace) -> Tokens:
    """Return what batches of requests as they come generate."""
    return by_engine(policy, requests, options, batch=options.batch_size, share=options.batch_size)


def by_length(policy: Policy, requests: Sequence[GenerationRequest], options: argparse.Namespace) -> Tokens:
    """Return what the engine's batches generate."""
    return by_engine(policy, requests, options, batch=options.batch_size, share=len(requests))


def singly(policy: Policy, requests: Sequence[GenerationRequest], options: argparse.Namespace) -> Tokens:
    """Return what one request at a time generates."""
    return by_engine(policy, requests, options, batch=1, share=1)


def continuously(policy: Policy, requests: Sequence[GenerationRequest], options: argparse.Namespace) -> Tokens:
    """Return what transformers' continuous batches generate.

    Raises:
        RuntimeError: They didn't; transformers logs why and returns what it has, so the text is its log.
    """
    longest = options.prompt_tokens[1] + options.response_tokens + PAGE_TOKENS
    config = ContinuousBatchingConfig(
        page_size=PAGE_TOKENS,
        num_blocks=options.batch_size * -(-longest // PAGE_TOKENS),
        max_batch_tokens=options.batch_size * options.prompt_tokens[1],
        max_requests_per_batch=options.batch_size,
        seed=0,
    )
    logged: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: logged.append(handler.format(record))
    get_logger("transformers").addHandler(handler)
    with policy.frozen("student") as student:
        model = student.get_base_model()
        stops = model.generation_config.eos_token_id
        sampling = GenerationConfig(
            do_sample=True,
            top_p=options.top_p,
            top_k=0,
            max_new_tokens=options.response_tokens,
            eos_token_id=stops,
            pad_token_id=policy.tokenizer.pad_token_id,
        )
        prompts = [list(encode_prompt(policy.tokenizer, request.messages)) for request in requests]
        done = model.generate_batch(prompts, sampling, config)
    responses = [output.generated_tokens for output in done.values() if output.error is None]
    if logged or len(responses) < len(prompts):
        errors = [str(output.error) for output in done.values() if output.error is not None]
        raise RuntimeError("\n".join(dict.fromkeys([*logged, *errors])) or "fewer responses than requests")
    return responses


CASES: dict[str, tuple[Callable[[Policy, Sequence[GenerationRequest], argparse.Namespace], Tokens], str]] = {
    "sorted": (by_length, "batches by length (this)"),
    "arrival": (in_order, "batches as they come"),
    "single": (singly, "one at a time"),
    "continuous": (continuously, "continuous batching (transformers)"),
}


def measure(case: str, options: argparse.Namespace) -> dict[str, object]:
    """Run one case in this process and return its numbers, or why there are none."""
    torch.set_num_threads(1)
    requests = make_requests(options)
    with tempfile.TemporaryDirectory() as folder:
        shape = Shape(options.hidden, options.layers, options.vocab)
        base = make_random_model(Path(folder) / "model", shape, stop_share=1 / 64)
        config = PolicyConfig(str(base), "float32", lora=LoraSettings(rank=8, alpha=16))
        torch.manual_seed(0)
        policy = load_policy(config, TeacherConfig(), load_tokenizer(config))
    watch = Stopwatch()
    try:
        CASES[case][0](policy, requests[: options.batch_size], options)  # to warm up
        watch.start()
        responses = CASES[case][0](policy, requests, options)
        watch.end_part("generation")
    except RuntimeError as error:
        if case != "continuous":
            raise
        return {"case": case, "error": str(error)}
    tokens = sum(map(len, responses))
    numbers = {**watch.total(), "tokens": tokens, "tokens_per_s": tokens / watch.total()["seconds"]}
    return {"case": case, **numbers, "responses": responses if case != "continuous" else []}


def table(results: Sequence[dict[str, object]]) -> str:
    """Return the results as a table, with the ratios of their speeds to that of the engine's batches."""
    lines = [
        "| batches | speed | same tokens | tokens/s | seconds | wall | peak MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = next(result for result in results if result["case"] == "sorted")
    for result in results:
        name = CASES[str(result["case"])][1]
        if "error" in result:
            lines.append(f"| {name} | doesn't run here | | | | | |")
            continue
        same = "own samples" if result["case"] == "continuous" else f"{result['same_responses']:.1%}"
        speed = result["tokens_per_s"] / ours["tokens_per_s"]
        rest = f"{result['tokens_per_s']:.0f} | {result['seconds']:.2f} | {result['wall_s']:.1f}"
        lines.append(f"| {name} | {speed:.2f} | {same} | {rest} | {result['peak_mib']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, run every case, write and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--prompt_tokens", type=int, nargs=2, default=[16, 512], metavar=("LEAST", "MOST"))
    parser.add_argument("--response_tokens", type=int, default=128, help="at most")
    parser.add_argument("--batch_size", type=int, default=8)
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
        responses = result.pop("responses", [])
        ours = responses if case == "sorted" else ours
        if responses:
            same = sum(one == other for one, other in zip(responses, ours, strict=True))
            result["same_responses"] = same / len(ours)
        results.append(result)
        print(result, flush=True)
        write(options.out, {**around, "settings": settings, "cases": results})
    print(table(results))


if __name__ == "__main__":
    main()
