"""A prefix read once serves every prompt as if each had been read whole; packed rows come out as padded ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from conftest import make_policy, move
from resd_lightning.distill.align import make_batch, response_hidden, response_logits
from resd_lightning.distill.prefix import SharedPrefix, common_prefix
from resd_lightning.policy.head import backbone_of
from resd_lightning.policy.layers import obstacle_to_prefix
from resd_lightning.policy.views import Policy

PREFIX = [40, 41, 42, 43, 44]
TEACHER = [[*PREFIX, 50], [*PREFIX, 51, 52, 53], [*PREFIX, 54, 55]]
STUDENT = [[1], [2, 3, 4], [5, 6]]
RESPONSES = [[90, 91, 92], [93], [94, 95]]
WHOLE = make_batch(STUDENT, TEACHER, RESPONSES, [1.0] * 3, 0)


@pytest.fixture
def policy(tiny_base: Path) -> Policy:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), by=0.05)
    policy.model.eval()
    return policy


def test_the_common_prefix_leaves_every_prompt_a_token() -> None:
    assert common_prefix(TEACHER) == tuple(PREFIX)
    assert common_prefix([[1, 2, 3], [1, 2]]) == (1,)
    assert common_prefix([[1, 2], [1, 2]]) == (1,)
    assert common_prefix([[1, 2], [3, 2]]) == ()
    assert common_prefix([[1], [1, 2]]) == ()
    assert common_prefix([]) == ()


@torch.no_grad()
def test_behind_a_shared_prefix_states_and_logits_are_those_of_whole_prompts(policy: Policy) -> None:
    batch = make_batch(STUDENT, TEACHER, RESPONSES, [1.0] * 3, 0, teacher_prefix=PREFIX)
    assert batch.teacher_prefix.tolist() == PREFIX
    assert batch.teacher_ids.shape[1] == WHOLE.teacher_ids.shape[1] - len(PREFIX)
    backbone = backbone_of(policy.model)
    prefix = SharedPrefix(backbone, batch.teacher_prefix)
    for _ in range(2):  # reading leaves no trace in the prefix
        hidden = response_hidden(backbone, batch.teacher_ids, batch.teacher_mask, 3, prefix=prefix)
        logits = response_logits(policy.model, batch.teacher_ids, batch.teacher_mask, 3, prefix=prefix)
        for found, expected in (
            (hidden, response_hidden(backbone, WHOLE.teacher_ids, WHOLE.teacher_mask, 3)),
            (logits, response_logits(policy.model, WHOLE.teacher_ids, WHOLE.teacher_mask, 3)),
        ):
            own = WHOLE.response_mask
            torch.testing.assert_close(found[own], expected[own], rtol=1e-5, atol=1e-5)


def test_sliding_windows_are_an_obstacle_and_said(policy: Policy) -> None:
    assert obstacle_to_prefix(policy.model) is None
    config = MistralConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8, sliding_window=4,
        num_key_value_heads=1,
    )  # fmt: skip
    assert "DynamicSlidingWindowLayer" in str(obstacle_to_prefix(MistralForCausalLM(config)))


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_positions_that_depend_on_the_whole_length_are_an_obstacle(policy: Policy, kind: str) -> None:
    policy.model.config.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0}
    assert f"positions are of the kind {kind}" in str(obstacle_to_prefix(policy.model))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_packed_rows_give_the_states_logits_and_gradients_of_padded_ones(
    tiny_base: Path, attention: str, is_checkpointed: bool
) -> None:
    policy = make_policy(tiny_base, attention=attention, gradient_checkpointing=is_checkpointed)
    move(policy.student_weights().values(), by=0.05)
    policy.model.train()
    weights, own = list(policy.student_weights().values()), WHOLE.response_mask
    ids, mask = WHOLE.teacher_ids, WHOLE.teacher_mask
    for read, model in ((response_hidden, backbone_of(policy.model)), (response_logits, policy.model)):
        packed, padded = (read(model, ids, mask, 3, is_packed=is_packed) for is_packed in (True, False))
        assert packed.shape == padded.shape
        torch.testing.assert_close(packed[own], padded[own], rtol=1e-4, atol=1e-5)
        along = torch.linspace(-1, 1, packed[own].numel()).view_as(packed[own])
        found, expected = (torch.autograd.grad((out[own] * along).sum(), weights) for out in (packed, padded))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert max(gradient.abs().max() for gradient in expected) > 1e-2


def test_a_packed_pass_has_as_many_tokens_as_are_real(tiny_base: Path) -> None:
    seen = []
    model = LlamaForCausalLM.from_pretrained(tiny_base).eval()
    model.model.embed_tokens.register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    response_logits(model, WHOLE.student_ids, WHOLE.student_mask, 3, is_packed=True)
    assert seen == [(1, sum(map(len, STUDENT)) + sum(map(len, RESPONSES)))]
