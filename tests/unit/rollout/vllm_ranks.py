"""One of two ranks that generate through a server together.

`vllm_ranks.py STORE RANK URL BASE ADAPTER_FOLDER whole|sharded`
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from conftest import SMALL_LORA, make_policy, move
from resd_lightning.config import PolicyConfig, SamplingConfig
from resd_lightning.records import Message, Purpose
from resd_lightning.rollout.across_ranks import spread
from resd_lightning.rollout.engine import EngineError, GenerationRequest, Needs
from resd_lightning.rollout.vllm import VllmEngine

SAMPLING = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=8)


def main(store: str, rank: int, url: str, base: str, folder: str, weights: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    policy = make_policy(Path(base))
    move(policy.student_weights().values(), by=0.01, seed=1)
    if weights == "sharded":
        policy.shard(init_device_mesh("cpu", (2,)))
    engine = VllmEngine([url], folder, retries=1, retry_pause_s=0.01, parity_threshold=99.0)
    engine.prepare(Needs(PolicyConfig(base, lora=SMALL_LORA), policy.tokenizer, 64, SAMPLING, is_weighed=True))
    engine.attach(policy, run_seed=5)
    said = []
    for update, size in ((0, 3), (1, 1), (2, 4)):  # a rank without a request, then a server that is gone
        requests = [
            GenerationRequest(Purpose.ROLLOUT, update, f"e{i}", 0, (Message(role="user", content="word"),))
            for i in range(size)
        ]
        try:
            done = spread(
                lambda share: engine.generate(
                    share,
                    SAMPLING,
                    author="student",
                    max_prompt_tokens=100,
                    schema=None,
                    on_progress=lambda _: None,
                ),
                requests,
            )
        except EngineError as error:
            said.append(str(error))
        else:
            said.append([completion.text for completion in done])
    print(json.dumps([said, engine.take_metrics()]))  # noqa: T201
    dist.destroy_process_group()


if __name__ == "__main__":
    store, rank, *rest = sys.argv[1:]
    main(store, int(rank), *rest)
