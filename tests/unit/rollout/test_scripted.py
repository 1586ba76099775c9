from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import make_policy
from resd_lightning.config import SamplingConfig
from resd_lightning.records import Completion, Message, Purpose
from resd_lightning.rollout.engine import GenerationRequest
from resd_lightning.rollout.scripted import ScriptedEngine

QUESTION = (Message(role="user", content="What is 1 + 1?"),)


def answers(
    engine: ScriptedEngine,
    requests: Sequence[GenerationRequest],
    *,
    max_new_tokens: int = 50,
    max_prompt_tokens: int = 500,
    done: list[int] | None = None,
) -> list[Completion]:
    return engine.generate(
        requests,
        SamplingConfig(max_new_tokens=max_new_tokens),
        author="student",
        max_prompt_tokens=max_prompt_tokens,
        schema=None,
        on_progress=([] if done is None else done).append,
    )


def test_a_script_is_told_purpose_update_example_sample_and_messages(tiny_base: Path) -> None:
    asked: list[tuple[object, ...]] = []

    def script(purpose: str, update: int, example_id: str, sample: int, messages: Sequence[Message]) -> str:
        asked.append((purpose, update, example_id, sample, messages))
        return f"{purpose} {sample}"

    engine = ScriptedEngine(script)
    engine.attach(make_policy(tiny_base), run_seed=0)
    requests = [GenerationRequest(purpose, 7, f"e-{purpose}", i, QUESTION) for i, purpose in enumerate(Purpose)]
    done: list[int] = []
    completions = answers(engine, requests, done=done)
    names = ["rollout", "reflect", "tag", "curate", "validate", "predict", "rescore", "diagnose"]
    assert asked == [(name, 7, f"e-{name}", i, QUESTION) for i, name in enumerate(names)]
    assert [completion.text for completion in completions] == [f"{name} {i}" for i, name in enumerate(names)]
    assert all(type(purpose) is str for purpose, *_ in asked)
    assert sum(done) == len(requests)


def test_an_answer_has_the_tokens_of_its_text_and_ends_its_turn(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    engine = ScriptedEngine(lambda *_: "two é")
    engine.attach(policy, run_seed=0)
    (completion,) = answers(engine, [GenerationRequest(Purpose.ROLLOUT, 0, "e", 0, QUESTION)])
    assert completion.token_ids[-1] == policy.tokenizer.eos_token_id
    assert policy.tokenizer.decode(list(completion.token_ids[:-1])) == "two é"
    assert policy.tokenizer.decode(list(completion.prompt_ids)).endswith("<|im_start|>assistant\n")
    assert not completion.is_truncated


def test_an_answer_is_cut_at_its_limit_as_a_models_is(tiny_base: Path) -> None:
    engine = ScriptedEngine(lambda *_: "12345")
    engine.attach(make_policy(tiny_base), run_seed=0)
    request = GenerationRequest(Purpose.ROLLOUT, 0, "e", 0, QUESTION)
    (cut,) = answers(engine, [request], max_new_tokens=3)
    assert (cut.text, len(cut.token_ids), cut.is_truncated) == ("123", 3, True)
    (without_end,) = answers(engine, [request], max_new_tokens=5)
    assert (without_end.text, without_end.is_truncated) == ("12345", True)
    (whole,) = answers(engine, [request], max_new_tokens=6)
    assert (whole.text, whole.is_truncated) == ("12345", False)


def test_a_prompt_above_its_limit_is_skipped_and_the_script_not_asked(tiny_base: Path) -> None:
    def script(*request: object) -> str:
        raise AssertionError(request)

    engine = ScriptedEngine(script)
    engine.attach(make_policy(tiny_base), run_seed=0)
    done: list[int] = []
    request = GenerationRequest(Purpose.ROLLOUT, 0, "e", 0, QUESTION)
    (completion,) = answers(engine, [request], max_prompt_tokens=10, done=done)
    assert completion.is_skipped
    assert (completion.text, completion.token_ids) == ("", ())
    assert sum(done) == 1


def test_generating_before_attach_is_refused() -> None:
    with pytest.raises(RuntimeError, match="before attach"):
        answers(ScriptedEngine(lambda *_: ""), [])
