"""Two ranks and one server: the first gives it the adapter, whole even where each has a share, both ask and stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import byte_tokenizer, make_policy, move
from vllm_replay import Replay, replaying

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("weights", ["whole", "sharded"])
def test_one_rank_pushes_both_ask_and_both_stop_with_the_reason(weights: str, tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    replay = Replay(respond=lambda body: ([70 + int(str(body["seed"])) % 20, 80], [-1.0, -2.0]))
    replay.tokenize = lambda text: tokenizer.encode(text, add_special_tokens=False)
    path = os.pathsep.join([str(HERE.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with replaying(replay):
        replay.dies_after = 4  # three requests of the first call, one of the second
        arguments = [replay.url, str(tiny_base), str(tmp_path / "adapters"), weights]
        ranks = [
            subprocess.Popen(
                [sys.executable, str(HERE / "vllm_ranks.py"), str(tmp_path / "store"), str(rank), *arguments],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(2)
        ]
        outputs = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    (first, metrics), (second, other_metrics) = (json.loads(out.splitlines()[-1]) for out, _ in outputs)
    assert first[:2] == second[:2]
    assert [len(texts) for texts in first[:2]] == [3, 1]
    assert "status 503" in first[2]
    assert "status 503" in second[2]
    assert [name.rpartition("-")[2] for name in replay.loaded] == ["00000", "00001", "00002"]
    assert metrics == other_metrics
    assert metrics["vllm/logprob_gap_tokens"] == 6  # those of both ranks
    (saved,) = (tmp_path / "adapters").glob("resd-*/adapter_model.safetensors")
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), by=0.01, seed=1)
    policy.save_adapter(tmp_path / "own", "student")
    own, pushed = load_file(tmp_path / "own" / saved.name), load_file(saved)
    assert own.keys() == pushed.keys()
    assert all(torch.equal(own[name], pushed[name]) for name in own)
