"""Answers held to a JSON schema; the model is random, so all structure comes from the guide."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import byte_tokenizer, make_policy
from resd_lightning.config import SamplingConfig
from resd_lightning.context.reflect import REFLECTION_SCHEMA, TAGS_SCHEMA, parse_reflection
from resd_lightning.records import Completion, Message, Purpose
from resd_lightning.rollout.engine import GenerationRequest, Schema
from resd_lightning.rollout.guided import JsonGuides
from resd_lightning.rollout.hf import HFEngine

pytest.importorskip("xgrammar")

WORDS: Schema = {
    "type": "object",
    "properties": {"key_insight": {"type": "string", "maxLength": 6}, "tags": TAGS_SCHEMA["properties"]["tags"]},
    "required": ["key_insight", "tags"],
    "additionalProperties": False,
}


def answers(base: Path, schema: Schema | None, *, max_new_tokens: int, batch_size: int = 16) -> list[Completion]:
    engine = HFEngine(batch_size)
    engine.attach(make_policy(base), run_seed=1)
    requests = [
        GenerationRequest(Purpose.REFLECT, 0, f"e{i}", 0, (Message(role="user", content="Why? " * i),))
        for i in range(6)
    ]
    sampling = SamplingConfig(temperature=1.0, top_p=1.0, max_new_tokens=max_new_tokens)
    return engine.generate(
        requests, sampling, author="student", max_prompt_tokens=500, schema=schema, on_progress=lambda _: None
    )


def test_a_guided_reflection_is_json_with_the_required_fields(tiny_base: Path) -> None:
    completions = answers(tiny_base, REFLECTION_SCHEMA, max_new_tokens=1500)
    whole = [completion for completion in completions if not completion.is_truncated]
    assert whole
    for completion in whole:
        fields = json.loads(completion.text)
        assert set(REFLECTION_SCHEMA["required"]) <= fields.keys() <= REFLECTION_SCHEMA["properties"].keys()
        assert isinstance(fields["key_insight"], str)
        assert all(tag.keys() == {"id", "tag"} for tag in fields["tags"])
        assert {tag["tag"] for tag in fields["tags"]} <= {"helpful", "harmful", "neutral"}


def test_the_parser_reads_a_guided_answer_without_forgiving_anything(tiny_base: Path) -> None:
    whole = [c for c in answers(tiny_base, WORDS, max_new_tokens=400) if not c.is_truncated]
    assert whole
    for completion in whole:
        kinds = {problem.kind for problem in parse_reflection(completion.text).problems}
        # What the random model put into the strings may be nonsense; the structure may not.
        assert not kinds & {"no_json", "not_an_object", "repaired_json", "truncated_json", "wrong_type", "unknown_tag"}


def test_without_the_guide_the_same_model_writes_no_json(tiny_base: Path) -> None:
    for completion in answers(tiny_base, None, max_new_tokens=50):
        with pytest.raises(json.JSONDecodeError):
            json.loads(completion.text)


def test_a_guided_sample_is_the_same_in_every_batch(tiny_base: Path) -> None:
    alone = answers(tiny_base, WORDS, max_new_tokens=60, batch_size=1)
    assert answers(tiny_base, WORDS, max_new_tokens=60, batch_size=4) == alone


def allowed_after(response: str, *, opens_thinking: bool) -> set[str]:
    """The characters that may follow, when a response is fed to a guide byte by byte."""
    tokenizer = byte_tokenizer()
    prompt = tokenizer.encode("<|im_start|>assistant\n" + ("<think>" if opens_thinking else ""))
    vocab_size = len(tokenizer)
    guide = JsonGuides(tokenizer, vocab_size, [tokenizer.eos_token_id]).guide(WORDS, [prompt])
    scores = torch.zeros(0)
    for end in range(len(tokenizer.encode(response)) + 1):
        ids: Tensor = torch.tensor([prompt + tokenizer.encode(response)[:end]])
        scores = guide(ids, torch.zeros(1, vocab_size))
    return {tokenizer.decode([i]) for i in range(vocab_size) if scores[0, i] == 0}


def test_a_response_begins_with_an_object_at_once() -> None:
    assert allowed_after("", opens_thinking=False) == {"{"}


def test_a_model_that_thinks_first_is_free_until_its_trace_closes() -> None:
    tokenizer = byte_tokenizer()
    everything = {tokenizer.decode([i]) for i in range(len(tokenizer))}
    assert allowed_after("", opens_thinking=True) == everything
    assert allowed_after("I wonder { [", opens_thinking=True) == everything
    assert allowed_after("I wonder</think", opens_thinking=True) == everything
    assert allowed_after("I wonder</think>", opens_thinking=True) == {"{"}
    after_key = allowed_after('I wonder</think>{"key_insight"', opens_thinking=True)
    assert ":" in after_key
    assert "," not in after_key


def test_a_finished_object_can_only_be_followed_by_the_end_of_the_turn() -> None:
    allowed = allowed_after('{"key_insight": "x", "tags": []}', opens_thinking=False)
    assert allowed == {"<|im_end|>"}
