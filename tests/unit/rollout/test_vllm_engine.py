from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from conftest import SMALL_LORA, make_policy, move
from resd_lightning.config import Author, ConfigError, PolicyConfig, SamplingConfig, TeacherConfig
from resd_lightning.distill.align import beside, response_logits
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Message, Purpose
from resd_lightning.rollout.chat import encode_prompt
from resd_lightning.rollout.engine import EngineError, GenerationRequest, Needs, Schema
from resd_lightning.rollout.vllm import VllmEngine
from vllm_replay import Body, Replay, replaying

SAMPLING = SamplingConfig(temperature=1.0, top_p=0.95, max_new_tokens=8)
CHAT = (Message(role="user", content="word"),)
REQUESTS = [GenerationRequest(Purpose.ROLLOUT, 2, f"e{i}", sample, CHAT) for i in range(3) for sample in range(2)]


class Twin:
    """What a server with the trainer's weights would say: tokens by the seed, log-probs by the policy itself."""

    def __init__(self, policy: Policy, off_by: float = 0.0) -> None:
        self.policy = policy
        self.off_by = off_by

    def __call__(self, body: Body) -> tuple[Sequence[int], Sequence[float]]:
        size = int(str(body["max_tokens"]))
        prompt = [int(i) for i in body["prompt"]]  # type: ignore[attr-defined]
        tokens = [(int(str(body["seed"])) >> (5 * i)) % 200 + 1 for i in range(size)]
        with self.policy.frozen("student") as model:
            ids, mask = beside([prompt], [tokens], 0)
            log_probs = response_logits(model, ids, mask, size)[0].log_softmax(dim=-1)
        own = log_probs.gather(-1, torch.tensor(tokens)[:, None])[:, 0] - self.off_by
        return tokens, own.tolist()


@pytest.fixture(scope="module")
def policy(tiny_base: Path) -> Policy:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), seed=1)
    move(policy.teacher_weights().values(), seed=2)
    return policy


@pytest.fixture
def replay(policy: Policy) -> Iterator[Replay]:
    with replaying(Replay(respond=Twin(policy))) as served:
        yield served


def needs(own: Policy, **changes: object) -> Needs:
    config = PolicyConfig("/models/smollm2", dtype="float32", lora=SMALL_LORA)
    return replace(Needs(config, own.tokenizer, 64, SAMPLING, is_weighed=True), **changes)


def make_engine(policy: Policy, tmp_path: Path, *served: Replay, **options: object) -> VllmEngine:
    for one in served:
        one.tokenize = lambda text: policy.tokenizer.encode(text, add_special_tokens=False)
    settings = {"timeout_s": 5.0, "retries": 2, "retry_pause_s": 0.01, **options}
    return VllmEngine([one.url for one in served], str(tmp_path / "adapters"), **settings)  # type: ignore[arg-type]


def ready(policy: Policy, tmp_path: Path, *served: Replay, **options: object) -> VllmEngine:
    engine = make_engine(policy, tmp_path, *served, **options)
    engine.prepare(needs(policy))
    engine.attach(policy, run_seed=5)
    return engine


def generate(
    engine: VllmEngine,
    requests: Sequence[GenerationRequest] = REQUESTS,
    sampling: SamplingConfig = SAMPLING,
    *,
    author: Author = "student",
    max_prompt_tokens: int = 100,
    schema: Schema | None = None,
) -> list[Completion]:
    done: list[int] = []
    completions = engine.generate(
        requests, sampling, author=author, max_prompt_tokens=max_prompt_tokens, schema=schema, on_progress=done.append
    )
    assert sum(done) == len(requests)
    return completions


def at(update: int, purpose: Purpose = Purpose.ROLLOUT) -> list[GenerationRequest]:
    return [replace(request, update=update, purpose=purpose) for request in REQUESTS]


# Sampling


def test_completions_are_the_servers_tokens_in_order_with_the_requests_seeds(
    policy: Policy, replay: Replay, tmp_path: Path
) -> None:
    completions = generate(ready(policy, tmp_path, replay))
    prompt = encode_prompt(policy.tokenizer, CHAT)
    assert {body["seed"] for body in replay.asked} == {request.seed(5) for request in REQUESTS}
    for request, completion in zip(REQUESTS, completions, strict=True):
        expected, log_probs = Twin(policy)({"max_tokens": 8, "prompt": prompt, "seed": request.seed(5)})
        assert completion.token_ids == tuple(expected)
        assert completion.log_probs == tuple(log_probs)
        assert (completion.prompt_ids, completion.is_truncated) == (prompt, True)
        assert completion.text == policy.tokenizer.decode(expected, skip_special_tokens=True)


def test_a_response_that_ends_by_a_stop_token_is_not_truncated(policy: Policy, replay: Replay, tmp_path: Path) -> None:
    end = policy.tokenizer.eos_token_id
    replay.respond = lambda body: ([70, 71, end], [-1.0, -2.0, -0.5])
    (completion,) = generate(ready(policy, tmp_path, replay, parity_threshold=99.0), REQUESTS[:1])
    assert (completion.token_ids, completion.is_truncated) == ((70, 71, end), False)
    assert end in replay.asked[0]["stop_token_ids"]  # type: ignore[operator]


def test_prompts_beyond_their_limit_are_skipped_and_never_sent(policy: Policy, replay: Replay, tmp_path: Path) -> None:
    long = replace(REQUESTS[0], messages=(Message(role="user", content="x" * 300),))
    skipped, done = generate(ready(policy, tmp_path, replay), [long, REQUESTS[1]])
    assert (skipped.is_skipped, done.is_skipped, len(replay.asked)) == (True, False, 1)


def test_samples_of_a_prompt_share_a_server_and_prompts_take_turns(policy: Policy, tmp_path: Path) -> None:
    with ExitStack() as stack:
        served = [stack.enter_context(replaying(Replay(respond=Twin(policy)))) for _ in range(2)]
        generate(ready(policy, tmp_path, *served))
        seeds = [{body["seed"] for body in one.asked} for one in served]
    assert seeds[0] == {r.seed(5) for r in REQUESTS if r.example_id in ("e0", "e2")}
    assert seeds[1] == {r.seed(5) for r in REQUESTS if r.example_id == "e1"}
    assert [len(one.loaded) for one in served] == [1, 1]


@pytest.mark.parametrize(
    ("sampling", "is_processed", "is_known"),
    [
        (SAMPLING, False, True),
        (replace(SAMPLING, temperature=0.7), False, False),
        (replace(SAMPLING, temperature=0.0), False, False),
        (replace(SAMPLING, temperature=0.7, top_p=1.0), True, True),
        (replace(SAMPLING, temperature=0.7), True, False),
    ],
)
def test_log_probs_are_kept_only_where_they_are_those_of_the_record(
    policy: Policy, replay: Replay, tmp_path: Path, sampling: SamplingConfig, is_processed: bool, is_known: bool
) -> None:
    replay.is_processed = is_processed
    engine = make_engine(policy, tmp_path, replay, parity_threshold=99.0)
    engine.prepare(needs(policy, rollout=replace(SAMPLING, top_p=1.0 if is_processed else 0.95)))
    engine.attach(policy, run_seed=5)
    assert all((c.log_probs is not None) == is_known for c in generate(engine, sampling=sampling))


def test_log_probs_of_guided_answers_are_neither_kept_nor_compared(
    policy: Policy, replay: Replay, tmp_path: Path
) -> None:
    replay.respond = Twin(policy, off_by=5.0)  # vLLM masks what the schema forbids before it takes log-probs
    engine = ready(policy, tmp_path, replay)
    assert all(completion.log_probs is None for completion in generate(engine, schema={"type": "object"}))
    assert "vllm/logprob_gap_mean" not in engine.take_metrics()
    assert {str(body["structured_outputs"]) for body in replay.asked} == {"{'json': {'type': 'object'}}"}
    with pytest.raises(EngineError, match="parity_threshold"):
        generate(engine)


# Adapters


def test_an_adapter_goes_over_once_an_update_under_a_name_of_its_own(
    policy: Policy, replay: Replay, tmp_path: Path
) -> None:
    engine = ready(policy, tmp_path, replay)
    for update, purpose in ((0, Purpose.VALIDATE), (0, Purpose.ROLLOUT), (0, Purpose.REFLECT), (1, Purpose.VALIDATE)):
        generate(engine, at(update, purpose))
    first, second = replay.loaded
    assert first != second
    assert [replay.adapters, replay.unloaded] == [{second: str(tmp_path / "adapters" / second)}, [first]]
    assert [body["model"] for body in replay.asked] == [first] * 18 + [second] * 6
    assert [path.name for path in (tmp_path / "adapters").iterdir()] == [second]
    engine.close()
    assert not list((tmp_path / "adapters").iterdir())
    assert replay.unloaded == [first, second]


@pytest.mark.parametrize("kind", ["ema", "live"])
@pytest.mark.parametrize("author", ["student", "teacher"])
def test_what_goes_over_are_the_authors_weights(
    tiny_base: Path, replay: Replay, tmp_path: Path, author: Author, kind: str
) -> None:
    policy = make_policy(tiny_base, TeacherConfig(kind=kind))  # type: ignore[arg-type]
    move(policy.student_weights().values(), seed=1)
    generate(ready(policy, tmp_path, replay, parity_threshold=99.0), author=author)
    (name,) = replay.loaded
    saved = load_file(tmp_path / "adapters" / name / "adapter_model.safetensors")
    weights = policy.student_weights() if author == "student" else policy.teacher_weights()
    assert saved.keys() == weights.keys()
    for key, tensor in weights.items():
        assert torch.equal(saved[key], tensor)
    config = json.loads((tmp_path / "adapters" / name / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 4)


def test_the_base_needs_no_adapter(policy: Policy, replay: Replay, tmp_path: Path) -> None:
    generate(ready(policy, tmp_path, replay), author="base")
    assert not replay.loaded
    assert {body["model"] for body in replay.asked} == {"/models/smollm2"}


def test_two_engines_on_one_server_do_not_get_each_others_weights(
    policy: Policy, replay: Replay, tmp_path: Path
) -> None:
    for _ in range(2):
        generate(ready(policy, tmp_path, replay))
    assert len(set(replay.loaded)) == 2


# Failure


def test_a_server_started_anew_is_given_the_adapter_again(policy: Policy, replay: Replay, tmp_path: Path) -> None:
    engine = ready(policy, tmp_path, replay)
    expected = generate(engine)
    replay.forget()
    replay.troubles = ["disconnect"] * 3
    assert generate(engine) == expected
    assert len(set(replay.loaded)) == 1
    assert len(replay.loaded) >= 2
    assert engine.take_metrics()["vllm/failed_tries"] == 3


def test_a_server_that_is_gone_ends_the_run_after_bounded_tries(policy: Policy, replay: Replay, tmp_path: Path) -> None:
    engine = ready(policy, tmp_path, replay, concurrency=1)
    replay.dies_after = 2
    with pytest.raises(EngineError, match=f"{replay.url}.*status 503.*after 3 tries"):
        generate(engine)
    assert 2 + 3 <= len(replay.asked) <= 2 + 3 + 3  # the next request may have begun, and is broken off
    replay.dies_after = None
    assert len(generate(engine)) == len(REQUESTS)  # an engine that failed is as good as before


def test_a_request_at_fault_is_not_tried_again(
    policy: Policy, replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_replay import recorded

    engine = ready(policy, tmp_path, replay, concurrency=1)
    answer = replay.answer
    monkeypatch.setattr(
        replay, "answer", lambda path, body: recorded("too_long") if "completions" in path else answer(path, body)
    )
    with pytest.raises(EngineError, match="cannot be greater than max_model_len"):
        generate(engine, REQUESTS[:1])
    assert len(replay.asked) == 1


# Parity


def test_parity_is_measured_at_the_start_and_every_few_updates(policy: Policy, replay: Replay, tmp_path: Path) -> None:
    engine = ready(policy, tmp_path, replay, parity_every=2)
    measured = []
    for update in range(5):
        for purpose in (Purpose.ROLLOUT, Purpose.REFLECT):
            generate(engine, at(update, purpose))
        metrics = engine.take_metrics()
        measured.append("vllm/logprob_gap_mean" in metrics)
        if measured[-1]:
            assert 0 <= metrics["vllm/logprob_gap_mean"] <= metrics["vllm/logprob_gap_max"] < 1e-5
            assert metrics["vllm/logprob_gap_tokens"] == 3 * 8  # every second of six responses, of at most four
        assert metrics["vllm/adapters_loaded"] == 1
    assert measured == [True, False, True, False, True]


def test_log_probs_beyond_the_threshold_stop_the_run_with_the_reason(
    policy: Policy, replay: Replay, tmp_path: Path
) -> None:
    replay.respond = Twin(policy, off_by=0.25)
    engine = ready(policy, tmp_path, replay)
    with pytest.raises(EngineError, match=r"0\.25 nats a token .*parity_threshold 0\.1: .*resd dequantize"):
        generate(engine)
    assert engine.take_metrics()["vllm/logprob_gap_mean"] == pytest.approx(0.25, abs=1e-5)


def test_a_lost_adapter_shows_in_the_gap(policy: Policy, replay: Replay, tmp_path: Path) -> None:
    class Base(Twin):
        def __call__(self, body: Body) -> tuple[Sequence[int], Sequence[float]]:
            with self.policy.view("base"):
                return super().__call__(body)

    base = make_policy(Path(policy.model.config._name_or_path))
    replay.respond = Twin(base)  # its adapters have not moved: they are the base
    engine = ready(policy, tmp_path, replay, parity_threshold=99.0)
    generate(engine)
    assert engine.take_metrics()["vllm/logprob_gap_mean"] > 0.1


# Before training


@pytest.mark.parametrize(
    ("served", "words"),
    [
        ({"on_load": "no_route"}, "lets no adapter be loaded while it runs: VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        ({"on_load": "lora_not_enabled"}, "without --enable-lora: .* --enable-lora"),
        ({"on_load": "rank_too_large"}, "smaller adapters .*max_lora_rank 16.* --max-lora-rank 8"),
        ({"on_load": "no_such_folder"}, "doesn't see data.engine.init_args.adapter_folder"),
        ({"max_model_len": 63}, "takes 63 tokens, .* come to 64: .* --max-model-len 64"),
        ({"is_processed": True}, "processed_logprobs.* set data.rollout.top_p 1"),
    ],
)
def test_a_server_that_lacks_something_is_refused_with_what_to_start_it_with(
    policy: Policy, tmp_path: Path, served: dict[str, object], words: str
) -> None:
    with replaying(Replay(**served)) as replay:  # type: ignore[arg-type]
        engine = make_engine(policy, tmp_path, replay)
        with pytest.raises(ConfigError, match=words):
            engine.prepare(needs(policy))
    assert not list((tmp_path / "adapters").glob("*"))


def test_a_server_that_is_not_there_is_refused_at_once(policy: Policy, tmp_path: Path) -> None:
    with replaying(Replay()) as gone:
        engine = make_engine(policy, tmp_path, gone, retries=10, retry_pause_s=30.0)
    with pytest.raises(ConfigError, match=r"servers: http.*refused.* start it with: VLLM_ALLOW.* vllm serve /models/s"):
        engine.prepare(needs(policy))


def test_another_tokenizer_is_refused(policy: Policy, replay: Replay, tmp_path: Path) -> None:
    engine = make_engine(policy, tmp_path, replay)
    replay.tokenize = lambda text: [1, 2, 3]
    with pytest.raises(ConfigError, match="serves /models/smollm2, which has another tokenizer"):
        engine.prepare(needs(policy))


@pytest.mark.parametrize("error", [OSError("no such folder"), SafetensorError("I/O error: no space left")])
def test_an_adapter_that_cannot_be_saved_stops_the_run_with_the_key(
    error: Exception, policy: Policy, replay: Replay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    engine = ready(policy, tmp_path, replay)
    monkeypatch.setattr("peft.peft_model.safe_save_file", fail)
    with pytest.raises(EngineError, match=r"data\.engine\.init_args\.adapter_folder: the adapter can't be saved"):
        generate(engine)


def test_full_fine_tuning_is_refused_before_anyone_is_asked(tmp_path: Path) -> None:
    engine = VllmEngine(["http://127.0.0.1:9"], str(tmp_path))
    config = PolicyConfig("/models/smollm2", dtype="float32", lora=None)
    with pytest.raises(ConfigError, match=r"set model\.policy\.lora, or take HFEngine"):
        engine.check(config, is_mixed=False)


def test_weights_by_log_probs_of_another_temperature_are_refused(
    policy: Policy, replay: Replay, tmp_path: Path
) -> None:
    engine = make_engine(policy, tmp_path, replay)
    cool = replace(SAMPLING, temperature=0.7)
    with pytest.raises(ConfigError, match=r"importance_clip needs log-probs at data\.rollout\.temperature 0\.7"):
        engine.prepare(needs(policy, rollout=cool))
    engine.prepare(needs(policy, rollout=cool, is_weighed=False))


def test_an_nf4_base_is_served_from_what_resd_dequantize_wrote(policy: Policy, tmp_path: Path) -> None:
    engine = VllmEngine(["http://127.0.0.1:9"], str(tmp_path))
    config = PolicyConfig("/models/smollm2", quantization="nf4", lora=SMALL_LORA)
    with pytest.raises(ConfigError, match="vllm serve FOLDER_OF_RESD_DEQUANTIZE --dtype bfloat16"):
        engine.prepare(needs(policy, policy=config))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("servers", []),
        ("servers", ["localhost:8000"]),
        ("servers", ["http://a", "http://a"]),
        ("adapter_folder", ""),
        ("timeout_s", 0),
        ("retries", -1),
        ("retry_pause_s", -1),
        ("concurrency", 0),
        ("parity_every", 0),
        ("parity_samples", 0),
        ("parity_threshold", 0),
    ],
)
def test_settings_out_of_range_are_refused_by_key(key: str, value: object) -> None:
    settings = {"servers": ["http://a"], "adapter_folder": "x", key: value}
    with pytest.raises(ConfigError, match=rf"data\.engine\.init_args\.{key} must be"):
        VllmEngine(**settings)  # type: ignore[arg-type]
