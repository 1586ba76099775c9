"""A run that is killed at any moment and resumed ends exactly as one that wasn't."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from conftest import make_tiny_base

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
WATCHED = ("--trainer.callbacks+=MeasureForgetting", "--trainer.callbacks.every_updates=2")


def arguments(base: Path, run_dir: Path, quantization: str) -> list[str]:
    sampling = ["max_new_tokens=12"]
    options = {
        "seed_everything": 3,
        "run_dir": run_dir,
        "model.policy.base": base,
        "model.policy.dtype": "float32",
        "model.policy.quantization": quantization,
        "model.policy.lora.rank": 4,
        "model.policy.lora.dropout": 0.1,  # so that the dropout's seed is part of what is compared
        "model.teacher.ema_rate": 0.1,
        "model.optimizer.learning_rate": 0.01,
        "model.optimizer.warmup_updates": 3,
        "model.context.max_entries": 6,
        "model.distillation.success_weights": "true",
        "model.distillation.loss": "plain" if quantization == "none" else "fused",
        "data.task": "resume_toy.CoinTask",
        "data.engine": "resume_toy.ReflectiveEngine",
        "data.batch_size": 4,
        "data.inner_updates": 3,
        "data.micro_batch_size": 3,
        "data.validation_samples": 2,
    }
    for purpose in ("data.rollout", "data.validation", *(f"model.context.{p}" for p in ("reflect", "tag", "curate"))):
        options[f"{purpose}.max_new_tokens"] = int(sampling[0].split("=")[1])
    flags = [f"--{key}={value}" for key, value in options.items()]
    shared = [f"--config={CONFIGS / 'method' / 'resd.yaml'}", f"--config={CONFIGS / 'trainer' / 'cpu.yaml'}"]
    return [sys.executable, "-m", "resd_lightning", "fit", *shared, *flags]


def start(command: list[str], log: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)


def run(command: list[str], log: Path) -> None:
    assert start(command, log).wait(timeout=200) == 0, log.read_text()[-4000:]


def kill_after(process: subprocess.Popen[bytes], run_dir: Path, lines: int, delay_s: float) -> bool:
    """Kill a run `delay_s` after it has a checkpoint and `lines` of metrics, and say if it hadn't ended by itself."""
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        has_checkpoint = (run_dir / "checkpoints" / "last.ckpt").exists()
        written = (run_dir / "metrics.jsonl").read_text() if (run_dir / "metrics.jsonl").exists() else ""
        if has_checkpoint and len(written.splitlines()) >= lines:
            time.sleep(delay_s)
            break
        time.sleep(0.005)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(timeout=30) == -signal.SIGKILL


def without_times(lines: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in lines]


def jsonl(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_same_state(one: object, other: object, where: str) -> None:
    if isinstance(one, dict):
        assert isinstance(other, dict)
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same_state(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, torch.Tensor):
        assert isinstance(other, torch.Tensor)
        assert torch.equal(one, other), where
    elif isinstance(one, list | tuple):
        assert isinstance(other, list | tuple)
        assert len(one) == len(other), where
        for position, pair in enumerate(zip(one, other, strict=True)):
            assert_same_state(*pair, f"{where}[{position}]")
    else:
        assert one == other, where


def quickstart(run_dir: Path, *laid_over: str) -> list[str]:
    names = ("quickstart.yaml", "quickstart_ci.yaml", "diagnostics.yaml", *laid_over)
    files = [f"--config={CONFIGS / name}" for name in names]
    options = ["--data.max_batches=3", "--data.inner_updates=2", f"--run_dir={run_dir}"]
    return [sys.executable, "-m", "resd_lightning", "fit", *files, *options]


def kill_and_resume(command: Callable[[], list[str]], run_dir: Path, log: Path, seed: str) -> None:
    """Kill a run three times, in its first validation and at drawn moments later, and let it end."""
    moments = random.Random(seed)
    resume: list[str] = []
    kills = 0
    for lines, longest_s in ((0, 0.0), (2, 0.4), (6, 0.4)):  # the first falls into the first validation
        process = start([*command(), *resume], log)
        kills += kill_after(process, run_dir, lines, delay_s=moments.uniform(0.0, longest_s))
        resume = ["--ckpt_path=last"]
    assert kills >= 2, "the run was over before it could be killed"
    run([*command(), *resume], log)


def assert_same_run(whole: Path, killed: Path) -> dict[str, Any]:
    """Compare two run folders but for their times, and return the last checkpoint."""
    one, other = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
        for folder in (whole, killed)
    )
    for part in ("resd", "optimizer_states", "lr_schedulers", "callbacks", "epoch", "global_step"):
        assert_same_state(one[part], other[part], part)
    assert without_times(jsonl(whole / "metrics.jsonl")) == without_times(jsonl(killed / "metrics.jsonl"))
    for name in ("transcripts.jsonl", "diagnostics.jsonl"):
        assert jsonl(whole / name) == jsonl(killed / name)
    if (whole / "forgetting.jsonl").exists():
        assert jsonl(whole / "forgetting.jsonl") == jsonl(killed / "forgetting.jsonl")
    assert (whole / "playbook.json").read_text() == (killed / "playbook.json").read_text()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, killed)]
    assert summaries[0]["metrics"] == summaries[1]["metrics"]
    return cast("dict[str, Any]", one)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_a_killed_run_resumes_to_the_bit(quantization: str, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base", hidden=64)  # NF4 packs blocks of 64 weights
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run([*arguments(base, whole, quantization), *WATCHED], tmp_path / "whole.log")

    # `resd validate` repeats the run's last validation: weights, context and noise all come from the checkpoint.
    config = f"--config={whole / 'config.yaml'}"
    run([sys.executable, "-m", "resd_lightning", "validate", config, "--ckpt_path=last"], tmp_path / "validate.log")
    last = [line for line in jsonl(whole / "metrics.jsonl") if line["phase"] == "val"][-1]
    repeated = jsonl(whole / "evaluations.jsonl")[-1]
    assert repeated["updates_done"] == last["updates_done"] == 6
    scores = {key: value for key, value in last.items() if key.startswith(("val/per_", "val/skipped"))}  # no observer's
    assert {key: repeated[key] for key in scores} == scores
    assert 0 < scores["val/per_test/mean@2"] < 1

    kill_and_resume(
        lambda: [*arguments(base, killed, quantization), *WATCHED], killed, tmp_path / "killed.log", quantization
    )
    one = assert_same_run(whole, killed)
    # The comparison is worth something: the context moved, and so did the weights, and something was once solved.
    assert one["callbacks"]["MeasureForgetting"]["solved_at"]
    assert len(jsonl(whole / "forgetting.jsonl")) == 3
    assert len(one["resd"]["context"]["playbooks"][""]["entries"]) > 2
    assert any(float(step["train/loss"]) != 0 for step in jsonl(whole / "metrics.jsonl") if step["phase"] == "train")


@pytest.mark.parametrize(
    "laid_over",
    [pytest.param((), id="static"), pytest.param(("continuous.yaml",), id="continuous", marks=pytest.mark.slow)],
)
def test_a_killed_quickstart_resumes_to_the_bit(laid_over: tuple[str, ...], tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(quickstart(whole, *laid_over), tmp_path / "whole.log")
    kill_and_resume(lambda: quickstart(killed, *laid_over), killed, tmp_path / "killed.log", "quickstart")
    one = assert_same_run(whole, killed)
    assert len(one["resd"]["context"]["playbooks"][""]["entries"]) > 2
    assert jsonl(whole / "metrics.jsonl")[-1]["updates_done"] == 6
    kinds = {line["kind"] for line in jsonl(whole / "diagnostics.jsonl")}
    assert kinds == {"successes", "in_context", "probe", "token_losses"}
    events = EventAccumulator(str(whole / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    texts = {tag: [text.step for text in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    assert texts["teacher_prompt/text_summary"] == texts["playbook/text_summary"] == [2, 4, 6]
    assert set(texts["playbook/changes/text_summary"]) <= set(range(1, 7))
    for line in jsonl(whole / "transcripts.jsonl"):
        assert {name for name, _, _ in line["teacher_spans"]} == set(line["teacher_sections"])
    steps = {tag: [image.step for image in events.Images(tag)] for tag in events.Tags()["images"]}
    assert steps["successes_per_prompt"] == [0, 2, 4, 6]
    assert steps["token_losses/failure"] == [1, 3, 5]


def test_a_run_with_all_diagnostics_ends_as_one_without_to_the_bit(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    plain, observed = tmp_path / "plain", tmp_path / "observed"
    run(arguments(base, plain, "none"), tmp_path / "plain.log")
    diagnostics = f"--config={CONFIGS / 'diagnostics.yaml'}"
    run([*arguments(base, observed, "none"), diagnostics], tmp_path / "observed.log")
    checkpoints = [
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")
        for folder in (plain, observed)
    ]
    for part in ("resd", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_same_state(checkpoints[0][part], checkpoints[1][part], part)
    assert jsonl(plain / "transcripts.jsonl") == jsonl(observed / "transcripts.jsonl")
    lines = [without_times(jsonl(folder / "metrics.jsonl")) for folder in (plain, observed)]
    assert all(one.items() <= other.items() for one, other in zip(*lines, strict=True))
    assert any("in_context/full" in line and "attribution/all" in line for line in lines[1])
    assert {line["requests/rollout"] for line in lines[1] if line["phase"] == "train"} == {4}
