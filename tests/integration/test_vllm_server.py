"""The engine against a real server, on demand: the replayed answers are checked to be its own.

    RESD_VLLM_URL=http://localhost:8000 RESD_VLLM_MODEL=models/smollm2-135m-instruct pytest -m vllm

The server must hold the same weights in float32, and see the tests' temporary folders; docs/vllm.md has the command.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import make_policy, move
from resd_lightning.config import ConfigError, LoraSettings, PolicyConfig, SamplingConfig
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Message, Purpose
from resd_lightning.rollout.engine import GenerationRequest, Needs, Schema
from resd_lightning.rollout.vllm import VllmEngine

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(900),
    pytest.mark.skipif("RESD_VLLM_URL" not in os.environ, reason="RESD_VLLM_URL names no server"),
]
LORA = LoraSettings(rank=16, alpha=32)
SAMPLING = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=24)
SCHEMA: Schema = {
    "type": "object",
    "properties": {"insight": {"type": "string", "maxLength": 12}},
    "required": ["insight"],
    "additionalProperties": False,
}
REQUESTS = [
    GenerationRequest(Purpose.ROLLOUT, 0, f"e{i}", sample, (Message(role="user", content=f"Name {i + 2} colours."),))
    for i in range(2)
    for sample in range(2)
]


def model() -> str:
    return os.environ["RESD_VLLM_MODEL"]


@pytest.fixture(scope="module")
def policy() -> Policy:
    policy = make_policy(Path(model()), lora=LORA)
    move(policy.student_weights().values(), by=0.01, seed=1)
    move(policy.teacher_weights().values(), by=0.01, seed=2)
    return policy


def ready(policy: Policy, tmp_path: Path, **options: object) -> VllmEngine:
    settings = {"retries": 1, "parity_threshold": 1e-3, "parity_every": 1, **options}
    engine = VllmEngine([os.environ["RESD_VLLM_URL"]], str(tmp_path), **settings)  # type: ignore[arg-type]
    config = PolicyConfig(model(), dtype="float32", lora=LORA)
    engine.prepare(Needs(config, policy.tokenizer, 512, SAMPLING, is_weighed=True))
    engine.attach(policy, run_seed=5)
    return engine


def generate(
    engine: VllmEngine, requests: Sequence[GenerationRequest] = REQUESTS, schema: Schema | None = None
) -> list[Completion]:
    return engine.generate(
        requests, SAMPLING, author="student", max_prompt_tokens=400, schema=schema, on_progress=lambda _: None
    )


def test_log_probs_are_the_trainers_and_seeds_bring_the_same_samples_back(policy: Policy, tmp_path: Path) -> None:
    engine = ready(policy, tmp_path)
    first = generate(engine)
    metrics = engine.take_metrics()
    assert metrics["vllm/logprob_gap_mean"] < 1e-4
    assert metrics["vllm/logprob_gap_tokens"] == sum(len(c.token_ids) for c in first)
    assert generate(engine) == first
    assert len({c.token_ids for c in first}) == len(first)
    engine.close()


def test_weights_that_move_are_loaded_anew_and_nothing_old_is_served(policy: Policy, tmp_path: Path) -> None:
    engine = ready(policy, tmp_path)
    before = generate(engine)
    state = {name: weight.clone() for name, weight in policy.student_weights().items()}
    move(policy.student_weights().values(), by=0.02, seed=7)
    after = generate(engine, [GenerationRequest(r.purpose, 1, r.example_id, r.sample, r.messages) for r in REQUESTS])
    metrics = engine.take_metrics()  # the gap is the latest, of the moved weights
    assert metrics["vllm/logprob_gap_mean"] < 1e-4
    assert metrics["vllm/adapters_loaded"] == 2
    assert [c.log_probs for c in after] != [c.log_probs for c in before]
    policy.load_state({**policy.state(), "student": state})
    engine.close()


def test_answers_are_held_to_a_schema(policy: Policy, tmp_path: Path) -> None:
    engine = ready(policy, tmp_path)
    ended = [c for c in generate(engine, schema=SCHEMA) if not c.is_truncated]
    assert all(set(json.loads(c.text)) == {"insight"} for c in ended)
    engine.close()


def test_an_adapter_too_large_for_the_server_is_refused(policy: Policy, tmp_path: Path) -> None:
    engine = VllmEngine([os.environ["RESD_VLLM_URL"]], str(tmp_path))
    config = PolicyConfig(model(), dtype="float32", lora=LoraSettings(rank=500))
    with pytest.raises(ConfigError, match=r"smaller adapters .*--max-lora-rank 512"):
        engine.prepare(Needs(config, policy.tokenizer, 512, SAMPLING, is_weighed=True))
