from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from conftest import make_policy, move
from resd_lightning.config import Author, ConfigError, SamplingConfig
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Message, Purpose
from resd_lightning.rollout.chat import encode_prompt
from resd_lightning.rollout.engine import GenerationRequest
from resd_lightning.rollout.hf import HFEngine

SAMPLING = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=12)
REQUESTS = [
    GenerationRequest(Purpose.ROLLOUT, 2, f"e{i}", 0, (Message(role="user", content="word " * length),))
    for i, length in enumerate([3, 1, 9, 0, 30, 2, 5])
]


@pytest.fixture(scope="module")
def policy(tiny_base: Path) -> Policy:
    """Student and teacher that differ from the base and from each other."""
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), seed=1)
    move(policy.teacher_weights().values(), seed=2)
    return policy


@pytest.fixture
def talkative(policy: Policy) -> Iterator[Policy]:
    """The same policy, with a quarter of the bytes for stop tokens: responses end in their middle."""
    configured = policy.model.generation_config.eos_token_id
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(64)]
    yield policy
    policy.model.generation_config.eos_token_id = configured


def generate(
    policy: Policy,
    requests: Sequence[GenerationRequest],
    sampling: SamplingConfig = SAMPLING,
    *,
    batch_size: int = 16,
    run_seed: int = 5,
    author: Author = "student",
    max_prompt_tokens: int = 1000,
    done: list[int] | None = None,
) -> list[Completion]:
    engine = HFEngine(batch_size)
    engine.attach(policy, run_seed)
    return engine.generate(
        requests,
        sampling,
        author=author,
        max_prompt_tokens=max_prompt_tokens,
        schema=None,
        on_progress=([] if done is None else done).append,
    )


@pytest.mark.parametrize("batch_size", [2, 5, 16])
def test_a_sample_is_the_same_in_every_batch_size(batch_size: int, talkative: Policy) -> None:
    alone = generate(talkative, REQUESTS, batch_size=1)
    assert generate(talkative, REQUESTS, batch_size=batch_size) == alone
    assert len({len(completion.token_ids) for completion in alone}) > 2  # rows end at different times


def test_a_sample_is_the_same_whoever_shares_its_batch_and_in_which_order(policy: Policy) -> None:
    together = dict(zip((r.example_id for r in REQUESTS), generate(policy, REQUESTS, batch_size=3), strict=True))
    for others in ([6, 5, 4, 3, 2, 1, 0], [4, 2], [0, 4, 6, 1], [2]):
        requests = [REQUESTS[i] for i in others]
        for request, completion in zip(requests, generate(policy, requests, batch_size=3), strict=True):
            assert completion == together[request.example_id]


def test_each_part_of_a_request_and_the_runs_seed_draw_another_sample(policy: Policy) -> None:
    request = REQUESTS[0]
    variants = [
        request,
        replace(request, update=3),
        replace(request, purpose=Purpose.VALIDATE),
        replace(request, sample=1),
        replace(request, example_id="other"),
    ]
    completions = [*generate(policy, variants), *generate(policy, [request], run_seed=6)]
    assert len({completion.token_ids for completion in completions}) == len(variants) + 1
    assert generate(policy, [request]) == completions[:1]


def test_sampling_draws_nothing_from_the_global_generator(policy: Policy) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    generate(policy, REQUESTS)
    assert torch.equal(torch.get_rng_state(), before)


def test_temperature_0_is_what_transformers_says_greedily(policy: Policy) -> None:
    completions = generate(policy, REQUESTS, replace(SAMPLING, temperature=0.0), batch_size=3)
    config = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=policy.tokenizer.eos_token_id)
    with policy.frozen("student") as model:
        for request, completion in zip(REQUESTS, completions, strict=True):
            ids = torch.tensor([list(encode_prompt(policy.tokenizer, request.messages))])
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config, pad_token_id=257
            )
            assert completion.token_ids == tuple(output[0, ids.shape[1] :].tolist())
            assert completion.prompt_ids == tuple(ids[0].tolist())


def test_a_response_is_made_of_tokens_that_sampling_allows_step_by_step(policy: Policy) -> None:
    sampling = SamplingConfig(temperature=0.7, top_p=0.5, max_new_tokens=8)
    for completion in generate(policy, REQUESTS, sampling):
        ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
        with policy.frozen("student") as model:
            logits = model(input_ids=ids).logits[0]
        for step, token in enumerate(completion.token_ids):
            p = (logits[len(completion.prompt_ids) + step - 1] / 0.7).softmax(dim=-1)
            assert float(p[p > p[token]].sum()) < 0.5 + 1e-4  # the tokens before it don't fill the nucleus


@pytest.mark.parametrize("batch_size", [1, 3])
def test_recorded_log_probs_are_the_policys_at_the_temperature_whatever_top_p_took_away(
    talkative: Policy, batch_size: int
) -> None:
    sampling = SamplingConfig(temperature=0.7, top_p=0.5, max_new_tokens=8)
    completions = generate(talkative, REQUESTS, sampling, batch_size=batch_size)
    assert len({len(completion.token_ids) for completion in completions}) > 1  # some end before their neighbours
    for completion in completions:
        ids = torch.tensor([[*completion.prompt_ids, *completion.token_ids]])
        with talkative.frozen("student") as model:
            logits = model(input_ids=ids).logits[0, len(completion.prompt_ids) - 1 : -1]
        expected = (logits / 0.7).log_softmax(dim=-1).gather(-1, torch.tensor(completion.token_ids)[:, None])
        torch.testing.assert_close(torch.tensor(completion.log_probs), expected[:, 0], rtol=1e-4, atol=1e-5)


def test_a_greedy_or_skipped_response_has_no_log_probs(policy: Policy) -> None:
    assert {completion.log_probs for completion in generate(policy, REQUESTS, replace(SAMPLING, temperature=0.0))} == {
        None
    }
    assert generate(policy, REQUESTS[:1], max_prompt_tokens=1)[0].log_probs is None


@pytest.mark.parametrize("author", ["student", "teacher", "base"])
def test_the_author_writes_with_its_own_weights(author: Author, policy: Policy) -> None:
    greedy = replace(SAMPLING, temperature=0.0)
    texts = {who: generate(policy, REQUESTS, greedy, author=who) for who in ("student", "teacher", "base")}
    with policy.frozen(author) as model:
        ids = torch.tensor([list(encode_prompt(policy.tokenizer, REQUESTS[0].messages))])
        first = int(model(input_ids=ids).logits[0, -1].argmax())
    assert texts[author][0].token_ids[0] == first
    assert all(texts[author] != other for who, other in texts.items() if who != author)


def test_the_stop_token_is_part_of_a_response_and_ends_it(talkative: Policy) -> None:
    stops = {talkative.tokenizer.eos_token_id, *range(64)}
    completions = generate(talkative, REQUESTS)
    ended = [completion for completion in completions if not completion.is_truncated]
    assert ended
    for completion in ended:
        assert completion.token_ids[-1] in stops
        assert not stops & set(completion.token_ids[:-1])


def test_a_response_is_truncated_iff_it_ran_into_its_limit(talkative: Policy) -> None:
    stops = {talkative.tokenizer.eos_token_id, *range(64)}
    completions = generate(talkative, REQUESTS, replace(SAMPLING, max_new_tokens=3))
    assert {completion.is_truncated for completion in completions} == {True, False}
    for completion in completions:
        assert completion.is_truncated == (completion.token_ids[-1] not in stops)
        assert len(completion.token_ids) <= 3
        assert len(completion.token_ids) == 3 or not completion.is_truncated


def test_a_longer_limit_goes_on_with_the_same_sample(policy: Policy) -> None:
    short = generate(policy, REQUESTS, replace(SAMPLING, max_new_tokens=4))
    long = generate(policy, REQUESTS, replace(SAMPLING, max_new_tokens=9))
    for one, other in zip(short, long, strict=True):
        assert other.token_ids[:4] == one.token_ids


def test_a_prompt_above_its_limit_is_skipped_and_the_others_are_not_touched(policy: Policy) -> None:
    lengths = [len(encode_prompt(policy.tokenizer, request.messages)) for request in REQUESTS]
    limit = sorted(lengths)[4]  # two are longer
    done: list[int] = []
    completions = generate(policy, REQUESTS, max_prompt_tokens=limit, batch_size=2, done=done)
    assert [completion.is_skipped for completion in completions] == [length > limit for length in lengths]
    for completion, whole in zip(completions, generate(policy, REQUESTS), strict=True):
        if completion.is_skipped:
            assert completion == Completion("", whole.prompt_ids, (), is_skipped=True)
        else:
            assert completion == whole
    assert sum(done) == len(REQUESTS)


def test_progress_is_told_after_each_batch(policy: Policy) -> None:
    done: list[int] = []
    generate(policy, REQUESTS, batch_size=3, done=done)
    assert [number for number in done if number] == [3, 3, 1]


def test_nothing_is_generated_for_no_requests(policy: Policy) -> None:
    assert generate(policy, []) == []


def test_generation_leaves_the_model_in_the_mode_it_was_in(policy: Policy) -> None:
    policy.model.train()
    generate(policy, REQUESTS[:1])
    assert policy.model.training


def test_a_batch_size_of_0_is_refused_by_its_key() -> None:
    with pytest.raises(ConfigError, match=r"data\.engine\.init_args\.batch_size must be at least 1, got 0"):
        HFEngine(0)


def test_generating_before_attach_is_refused() -> None:
    engine = HFEngine()
    with pytest.raises(RuntimeError, match="before attach"):
        engine.generate(
            REQUESTS, SAMPLING, author="student", max_prompt_tokens=10, schema=None, on_progress=lambda _: None
        )
