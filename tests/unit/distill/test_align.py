from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from resd_lightning.distill.align import empty_batch, logits_at, make_batch, response_logits

PAD = 9


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=10,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def test_response_token_t_stands_in_the_same_column_for_student_and_teacher() -> None:
    batch = make_batch([[1], [2, 3]], [[4, 5, 6], [7]], [[8, 1, 2], [3]], [0.5, 0.25], PAD)
    assert batch.student_ids.tolist() == [[PAD, 1, 8, 1, 2], [2, 3, 3, PAD, PAD]]
    assert batch.student_mask.tolist() == [[False, True, True, True, True], [True, True, True, False, False]]
    assert batch.teacher_ids.tolist() == [[4, 5, 6, 8, 1, 2], [PAD, PAD, 7, 3, PAD, PAD]]
    assert batch.teacher_mask.tolist() == [[True] * 6, [False, False, True, True, False, False]]
    assert batch.response_mask.tolist() == [[True, True, True], [True, False, False]]
    assert torch.equal(batch.student_ids[:, -3:], batch.teacher_ids[:, -3:])
    assert batch.coefficients.dtype == torch.float32
    assert batch.coefficients.tolist() == [0.5, 0.25]


def test_a_pad_token_inside_a_response_still_counts() -> None:
    batch = make_batch([[1], [1]], [[1], [1]], [[2, PAD, 3], [2]], [1.0, 1.0], PAD)
    assert batch.response_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.student_mask.sum().item() == 6


def test_moving_a_batch_keeps_every_tensor_and_its_precision() -> None:
    batch = make_batch([[1]], [[2]], [[3]], [0.5], PAD, [4])
    moved = batch.to(torch.device("cpu"))
    assert moved.rollouts == batch.rollouts == (4,)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == 7
    for name, tensor in tensors.items():
        assert torch.equal(getattr(moved, name), tensor)
        assert getattr(moved, name).dtype == tensor.dtype


def test_logits_in_a_padded_batch_are_those_of_each_sequence_alone(model: LlamaForCausalLM) -> None:
    prompts, responses = [[1], [2, 3, 4, 5], [6, 7]], [[8, 1, 2], [3], [4, 5]]
    batch = make_batch(prompts, prompts, responses, [1.0] * 3, PAD)
    with torch.no_grad():
        logits = response_logits(model, batch.student_ids, batch.student_mask, 3)
        assert logits.shape == (3, 3, 10)
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            alone = model(input_ids=torch.tensor([prompt + response])).logits[0]
            # The logits that predict response token t stand one before it.
            expected = alone[len(prompt) - 1 : -1]
            torch.testing.assert_close(logits[row, : len(response)], expected, rtol=1e-5, atol=1e-5)


def test_logits_at_some_places_are_those_of_each_prompt_alone(model: LlamaForCausalLM) -> None:
    prompts, response, places = [[1], [2, 3, 4, 5], [6, 7]], [8, 1, 2, 3, 4], [0, 2, 4]
    with torch.no_grad():
        logits = logits_at(model, prompts, response, places, PAD, torch.device("cpu"))
        assert logits.shape == (3, 3, 10)
        for row, prompt in zip(logits, prompts, strict=True):
            alone = model(input_ids=torch.tensor([prompt + response])).logits[0]
            torch.testing.assert_close(row, alone[len(prompt) - 1 : -1][places], rtol=1e-5, atol=1e-5)


def test_an_empty_batch_weighs_nothing_and_stays_on_the_graph(model: LlamaForCausalLM) -> None:
    batch = empty_batch(PAD)
    assert batch.rollouts == ()
    logits = response_logits(model, batch.student_ids, batch.student_mask, 1)
    loss = (logits.logsumexp(-1).sum(dim=1) * batch.coefficients).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert model.lm_head.weight.grad is not None
    assert not model.lm_head.weight.grad.any()
    model.zero_grad()
