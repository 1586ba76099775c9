"""A server that is killed in the middle of an update costs that update's texts and nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from test_kill_and_resume import CONFIGS, HERE, assert_same_state, jsonl, without_times
from test_ranks import ROUNDINGS, assert_same_end

from conftest import byte_tokenizer, make_tiny_base
from vllm_replay import Body, Replay, replaying

TOKENIZER = byte_tokenizer()


def respond(body: Body) -> tuple[Sequence[int], Sequence[float]]:
    """Answer from the request alone, as a server with per-request seeds does: reflections and curation in JSON."""
    prompt = TOKENIZER.decode(body["prompt"])
    number = int(hashlib.sha256(f"{body['seed']} {prompt}".encode()).hexdigest(), 16)
    text = f"word {number % 1000}"
    if "operations" in prompt:
        lesson = {"type": "ADD", "section": "others", "content": f"lesson {number % 10**6}"}
        text = json.dumps({"reasoning": "", "operations": [lesson]})
    elif "key_insight" in prompt:
        text = json.dumps({"key_insight": f"insight {number % 1000}", "tags": []})
    tokens = [*TOKENIZER.encode(text, add_special_tokens=False), TOKENIZER.eos_token_id]
    return tokens, [-float((number >> i) % 5) for i in range(len(tokens))]


def fit(base: Path, run_dir: Path, replay: Replay, *more: str) -> subprocess.CompletedProcess[str]:
    """Run two batches of two updates against the server, with hasty retries."""
    engine = "data.engine.init_args"
    options = {
        "run_dir": run_dir,
        "model.policy.base": base,
        "model.policy.dtype": "float32",
        "model.policy.lora.rank": 4,
        "model.teacher.ema_rate": 0.1,
        "model.optimizer.learning_rate": 0.01,
        "data.task": "resume_toy.CoinTask",
        "data.engine": "resd_lightning.rollout.vllm.VllmEngine",
        f"{engine}.servers": f'["{replay.url}"]',
        f"{engine}.adapter_folder": run_dir.with_suffix(".adapters"),
        f"{engine}.retries": 2,
        f"{engine}.retry_pause_s": 0.01,
        f"{engine}.concurrency": 1,
        f"{engine}.parity_threshold": 1000,  # what the stand-in says of its tokens isn't this model's
        "data.batch_size": 4,
        "data.inner_updates": 2,
        "data.micro_batch_size": 4,
        "data.validation_samples": 1,
    }
    command = [sys.executable, "-m", "resd_lightning", "fit", f"--config={CONFIGS / 'method' / 'resd.yaml'}"]
    command += [f"--config={CONFIGS / 'trainer' / 'cpu.yaml'}", *(f"--{k}={v}" for k, v in options.items()), *more]
    path = os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)


def new_server() -> Replay:
    served = Replay(respond=respond, max_model_len=16384)
    served.tokenize = lambda text: TOKENIZER.encode(text, add_special_tokens=False)
    return served


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


def lines(run_dir: Path) -> list[dict[str, object]]:
    """The run's metrics without what hangs on time, and on how often weights were measured and sent."""
    kept = without_times(jsonl(run_dir / "metrics.jsonl"))
    return [{key: value for key, value in line.items() if not key.startswith("vllm/")} for line in kept]


def test_a_run_whose_server_dies_in_an_update_stops_and_resumes_as_if_it_had_not(base: Path, tmp_path: Path) -> None:
    with replaying(new_server()) as steady:
        whole = fit(base, tmp_path / "whole", steady)
        assert whole.returncode == 0, whole.stderr[-3000:]
        num_asked = len(steady.asked)
    with replaying(new_server()) as mortal:
        mortal.dies_after = num_asked * 5 // 8  # within the third of four updates
        stopped = fit(base, tmp_path / "cut", mortal)
        assert stopped.returncode == 1, stopped.stderr[-3000:]
        assert "resd: stopped: " in stopped.stderr
        assert "status 503" in stopped.stderr
        assert "--ckpt_path last" in stopped.stderr
        assert "Traceback" not in stopped.stderr
        done = [line for line in lines(tmp_path / "cut") if line["phase"] == "train"]
        assert 1 <= len(done) <= 3
        mortal.dies_after, before = None, len(mortal.loaded)
        mortal.forget()
        resumed = fit(base, tmp_path / "cut", mortal, "--ckpt_path=last")
        assert resumed.returncode == 0, resumed.stderr[-3000:]
        assert len(mortal.loaded) > before
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")
    states = [torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("whole", "cut")]
    assert_same_state(states[0]["resd"], states[1]["resd"], "resd")
    assert_same_state(states[0]["optimizer_states"], states[1]["optimizer_states"], "optimizer")
    assert json.loads((tmp_path / "whole" / "playbook.json").read_text())


def test_a_server_that_fails_for_a_moment_changes_nothing_but_the_count_of_failed_tries(
    base: Path, tmp_path: Path
) -> None:
    with replaying(new_server()) as steady:
        assert fit(base, tmp_path / "whole", steady, "--data.max_batches=1").returncode == 0
        num_asked = len(steady.asked)
    with replaying(new_server()) as shaky:
        shaky.fails_at = {num_asked // 2: "disconnect", num_asked // 2 + 1: "status 503"}
        assert fit(base, tmp_path / "shaken", shaky, "--data.max_batches=1").returncode == 0
    assert lines(tmp_path / "shaken") == lines(tmp_path / "whole")
    tries = [
        sum(float(str(line.get("vllm/failed_tries", 0))) for line in jsonl(tmp_path / name / "metrics.jsonl"))
        for name in ("whole", "shaken")
    ]
    assert tries == [0, 2]


@pytest.mark.slow
def test_ranks_with_a_share_of_the_weights_end_where_ranks_with_all_of_them_do(base: Path, tmp_path: Path) -> None:
    for strategy in ("ddp", "fsdp2"):
        options = (f"--config={CONFIGS / 'trainer' / strategy}.yaml", "--trainer.accelerator=cpu")
        with replaying(new_server()) as served:
            done = fit(base, tmp_path / strategy, served, *options, "--trainer.precision=32-true")
            assert done.returncode == 0, done.stderr[-3000:]
            assert len(served.loaded) == 5  # before each of four updates, and for the last validation
    assert_same_end(tmp_path / "ddp", tmp_path / "fsdp2", atol=ROUNDINGS)


def test_no_run_is_touched_where_the_server_is_not_there(base: Path, tmp_path: Path) -> None:
    with replaying(new_server()) as gone:
        pass
    refused = fit(base, tmp_path / "run", gone)
    assert refused.returncode == 2
    assert "resd: error: data.engine.init_args.servers: http" in refused.stderr
    assert "vllm serve" in refused.stderr
    assert not (tmp_path / "run").exists()
