"""Continuous batching says what `HFEngine` says, to the token, however requests come and go."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import SMALL_LORA, make_policy, make_tiny_base, move
from resd_lightning.config import Author, ConfigError, LoraSettings, PolicyConfig, SamplingConfig
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Message, Purpose
from resd_lightning.rollout import continuous
from resd_lightning.rollout.chat import encode_prompt
from resd_lightning.rollout.continuous import ContinuousEngine
from resd_lightning.rollout.engine import GenerationRequest, Schema
from resd_lightning.rollout.hf import HFEngine

SAMPLING = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=12)
GREEDY = replace(SAMPLING, temperature=0.0)


def asks(*texts: str, purpose: Purpose = Purpose.ROLLOUT) -> list[GenerationRequest]:
    return [
        GenerationRequest(purpose, 2, f"e{i}", 0, (Message(role="user", content=text),)) for i, text in enumerate(texts)
    ]


REQUESTS = asks(*("word " * length for length in [3, 1, 9, 0, 30, 2, 5]))


@pytest.fixture(scope="module")
def policy(tiny_base: Path) -> Policy:
    """Student, teacher and base that differ, a quarter of the bytes being stop tokens: responses end early."""
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), seed=1)
    move(policy.teacher_weights().values(), seed=2)
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(64)]
    return policy


def generate(
    engine: HFEngine,
    policy: Policy,
    requests: Sequence[GenerationRequest] = REQUESTS,
    sampling: SamplingConfig = SAMPLING,
    *,
    author: Author = "student",
    max_prompt_tokens: int = 1000,
    schema: Schema | None = None,
    done: list[int] | None = None,
) -> list[Completion]:
    engine.attach(policy, 5)
    return engine.generate(
        requests,
        sampling,
        author=author,
        max_prompt_tokens=max_prompt_tokens,
        schema=schema,
        on_progress=([] if done is None else done).append,
    )


@pytest.fixture
def reads(policy: Policy) -> Iterator[list[int]]:
    """The number of tokens of each forward pass."""
    read: list[int] = []

    def count(_: nn.Module, __: tuple[object, ...], arguments: dict[str, torch.Tensor]) -> None:
        read.append(arguments["input_ids"].numel())

    hook = policy.model.get_base_model().register_forward_pre_hook(count, with_kwargs=True)
    yield read
    hook.remove()


@pytest.mark.parametrize(
    "engine",
    [
        ContinuousEngine(1),
        ContinuousEngine(3, page_tokens=4),
        ContinuousEngine(16),
        ContinuousEngine(4, page_tokens=8, prefill_tokens=5),  # prompts are read in pieces
    ],
    ids=["singly", "three", "all", "pieces"],
)
def test_samples_are_those_of_the_static_engine(engine: ContinuousEngine, policy: Policy) -> None:
    static, own = generate(HFEngine(1), policy), generate(engine, policy)
    assert own == static
    assert len({len(completion.token_ids) for completion in own}) > 2  # requests end at different times
    assert {completion.is_truncated for completion in own} == {True, False}
    for one, other in zip(own, static, strict=True):
        torch.testing.assert_close(torch.tensor(one.log_probs), torch.tensor(other.log_probs), rtol=1e-4, atol=1e-5)


def test_greedy_answers_are_those_of_the_static_engine_and_have_no_log_probs(policy: Policy) -> None:
    greedy = generate(ContinuousEngine(3), policy, sampling=GREEDY)
    assert greedy == generate(HFEngine(3), policy, sampling=GREEDY)
    assert {completion.log_probs for completion in greedy} == {None}


@pytest.mark.parametrize("order", [[6, 5, 4, 3, 2, 1, 0], [4, 2], [0, 4, 6, 1], [2]])
def test_a_sample_is_the_same_whoever_shares_its_batch_and_in_which_order(order: list[int], policy: Policy) -> None:
    together = generate(ContinuousEngine(3), policy)
    chosen = generate(ContinuousEngine(3), policy, [REQUESTS[i] for i in order])
    assert chosen == [together[i] for i in order]


def test_a_second_run_gives_the_same_log_probs_to_the_bit(policy: Policy) -> None:
    runs = [generate(ContinuousEngine(3, prefill_tokens=16), policy) for _ in range(3)]
    assert len({tuple(completion.log_probs for completion in run) for run in runs}) == 1


@pytest.mark.parametrize("author", ["student", "teacher", "base"])
def test_the_author_writes_with_its_own_weights(author: Author, policy: Policy) -> None:
    assert generate(ContinuousEngine(3), policy, author=author) == generate(HFEngine(3), policy, author=author)


@pytest.mark.parametrize("lora", [SMALL_LORA, None], ids=["adapters", "whole"])
def test_an_engine_that_has_spoken_sees_how_weights_changed(lora: LoraSettings | None, tiny_base: Path) -> None:
    policy = make_policy(tiny_base, lora=lora)
    engine = ContinuousEngine(3, page_tokens=4)
    before = generate(engine, policy, sampling=GREEDY)
    move(policy.student_weights().values(), seed=3)
    after = generate(engine, policy, sampling=GREEDY)
    assert after != before
    assert after == generate(HFEngine(3), policy, sampling=GREEDY)


def test_a_common_beginning_is_read_once_for_most_prompts(policy: Policy, reads: list[int]) -> None:
    requests = asks(*(f"{'a common beginning ' * 20}and end {i}" for i in range(8)))
    prompts = [len(encode_prompt(policy.tokenizer, request.messages)) for request in requests]
    own = generate(ContinuousEngine(8, page_tokens=8, prefill_tokens=prompts[0]), policy, requests)
    read = sum(reads)
    reads.clear()
    assert own == generate(HFEngine(8), policy, requests)
    responses = sum(len(completion.token_ids) for completion in own)
    assert read - responses < 0.5 * sum(prompts)
    assert sum(reads) >= sum(prompts)


def test_requests_that_lose_their_pages_go_on_with_the_same_sample(policy: Policy, reads: list[int]) -> None:
    requests = asks(*(f"{i} different" for i in range(6)))
    longest = max(len(encode_prompt(policy.tokenizer, request.messages)) for request in requests)
    sampling = replace(SAMPLING, max_new_tokens=40)
    policy.model.generation_config.eos_token_id = policy.tokenizer.eos_token_id  # all grow
    try:
        roomy = generate(ContinuousEngine(6, page_tokens=4), policy, requests, sampling)
        needed = sum(reads)
        reads.clear()
        tight = ContinuousEngine(6, page_tokens=4, cache_tokens=2 * (longest + 40))
        assert generate(tight, policy, requests, sampling) == roomy
        assert sum(reads) > needed  # some were read again
    finally:
        policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(64)]


def test_a_guided_answer_is_that_of_the_static_engine(policy: Policy) -> None:
    pytest.importorskip("xgrammar")
    schema: Schema = {
        "type": "object",
        "properties": {"insight": {"type": "string", "maxLength": 6}, "good": {"type": "boolean"}},
        "required": ["insight", "good"],
        "additionalProperties": False,
    }
    requests = asks(*("Why? " * i for i in range(6)), purpose=Purpose.REFLECT)
    sampling = SamplingConfig(top_p=1.0, max_new_tokens=60)
    policy.model.generation_config.eos_token_id = policy.tokenizer.eos_token_id
    try:
        own = generate(ContinuousEngine(4), policy, requests, sampling, schema=schema)
        assert own == generate(HFEngine(4), policy, requests, sampling, schema=schema)
        assert all('"insight"' in completion.text for completion in own)
    finally:
        policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(64)]


def test_a_prompt_above_its_limit_is_skipped_and_all_are_reported_as_done(policy: Policy) -> None:
    lengths = [len(encode_prompt(policy.tokenizer, request.messages)) for request in REQUESTS]
    limit, done = sorted(lengths)[4], list[int]()
    own = generate(ContinuousEngine(2), policy, max_prompt_tokens=limit, done=done)
    assert own == generate(HFEngine(2), policy, max_prompt_tokens=limit)
    assert sum(completion.is_skipped for completion in own) == 2
    assert sum(done) == len(REQUESTS)


def test_nothing_is_generated_for_no_requests_or_skipped_ones_alone(policy: Policy) -> None:
    assert generate(ContinuousEngine(), policy, []) == []
    assert all(completion.is_skipped for completion in generate(ContinuousEngine(), policy, max_prompt_tokens=1))


def test_generating_draws_nothing_from_the_global_generator_and_ends_its_thread(policy: Policy) -> None:
    torch.manual_seed(3)
    before, threads = torch.get_rng_state(), threading.active_count()
    policy.model.train()
    generate(ContinuousEngine(), policy)
    assert torch.equal(torch.get_rng_state(), before)
    assert threading.active_count() == threads
    assert policy.model.training


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_the_trainers_precision_holds_in_the_thread_that_generates(quantization: str, tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base", hidden=64)
    policy = make_policy(base, dtype="bfloat16", quantization=quantization)
    policy.precision_context = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    adapter = policy.model.get_base_model().model.layers[0].mlp.down_proj.lora_A["student"]
    seen: set[tuple[bool, bool, torch.dtype]] = set()

    def look(_: nn.Module, __: tuple[object, ...], output: torch.Tensor) -> None:
        seen.add((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), output.dtype))

    hook = adapter.register_forward_hook(look)
    own = generate(ContinuousEngine(3), policy)
    hook.remove()
    assert adapter.weight.dtype == torch.float32
    assert seen == {(False, True, torch.bfloat16)}
    assert not torch.is_autocast_enabled("cpu")
    for one, other in zip(own, generate(HFEngine(3), policy), strict=True):
        torch.testing.assert_close(one.log_probs[:1], other.log_probs[:1], rtol=0.02, atol=0.02)


def test_eager_attention_is_given_back_to_the_model(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, attention="eager")
    assert generate(ContinuousEngine(3), policy) == generate(HFEngine(3), policy)
    assert policy.model.config._attn_implementation == "eager"


def test_samples_on_a_base_in_nf4_are_those_of_the_static_engine(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    policy = make_policy(make_tiny_base(tmp_path / "base", hidden=64), quantization="nf4")
    move(policy.student_weights().values(), seed=1)
    assert generate(ContinuousEngine(3), policy) == generate(HFEngine(3), policy)


def test_what_breaks_in_the_thread_is_raised_with_its_cause(policy: Policy) -> None:
    def fail(*_: object) -> None:
        raise ArithmeticError("no more numbers")

    hook = policy.model.get_base_model().register_forward_pre_hook(fail)
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="continuous batching failed: no more numbers") as raised:
        generate(ContinuousEngine(3), policy)
    hook.remove()
    assert isinstance(raised.value.__cause__, ArithmeticError)
    assert threading.active_count() == threads
    assert generate(ContinuousEngine(3), policy) == generate(HFEngine(3), policy)


def test_two_precisions_in_one_cache_are_refused_by_the_key() -> None:
    with pytest.raises(ConfigError, match=r"model\.policy\.dtype must be bfloat16 .*mixed precision"):
        ContinuousEngine().check(PolicyConfig("any", dtype="float32"), is_mixed=True)
    ContinuousEngine().check(PolicyConfig("any", dtype="float32"), is_mixed=False)
    ContinuousEngine().check(PolicyConfig("any", dtype="bfloat16"), is_mixed=True)
    HFEngine().check(PolicyConfig("any", dtype="float32"), is_mixed=True)


def test_an_attention_without_pages_is_refused_by_the_key() -> None:
    with pytest.raises(ConfigError, match=r"model\.policy\.attention must be sdpa, eager or flash_attention_\*"):
        ContinuousEngine().check(PolicyConfig("any", attention="flex_attention"), is_mixed=False)
    with pytest.raises(ConfigError, match=r"trainer\.strategy ddp"):
        ContinuousEngine().check(PolicyConfig("any"), is_mixed=False, is_sharded=True)
    ContinuousEngine().check(PolicyConfig("any", attention="flash_attention_2"), is_mixed=False)


def test_a_cache_below_one_response_is_refused_by_its_key(policy: Policy) -> None:
    with pytest.raises(ConfigError, match=r"data\.engine\.init_args\.cache_tokens 20 can't hold a prompt with a resp"):
        generate(ContinuousEngine(cache_tokens=20), policy)


@pytest.mark.parametrize("key", ["batch_size", "page_tokens", "prefill_tokens", "cache_tokens"])
def test_a_size_of_0_is_refused_by_its_key(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.engine\.init_args\.{key} must be at least \d, got 0"):
        ContinuousEngine(**{key: 0})


def test_another_transformers_than_it_was_made_for_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuous, "version", lambda _: "5.30.1")
    with pytest.raises(ConfigError, match=r"made for transformers 5\.24, and 5\.30\.1 is installed: .*HFEngine"):
        ContinuousEngine()
