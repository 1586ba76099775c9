"""The 4-bit base on a CPU, as bitsandbytes holds it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import Tensor, nn

from conftest import make_policy, make_tiny_base, move
from resd_lightning.config import DistillationConfig, PolicyConfig, SamplingConfig
from resd_lightning.distill.align import make_batch
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.policy.load import keep_gradients_exact, load_base
from resd_lightning.policy.views import Policy, View
from resd_lightning.records import Message, Purpose
from resd_lightning.rollout.engine import GenerationRequest
from resd_lightning.rollout.hf import HFEngine

BATCH = make_batch([[5, 6, 7], [8, 9]], [[40, 41, 42, 43], [44, 45]], [[90, 91, 92], [93]], [0.5, 0.5], pad_id=0)
IDS = torch.tensor([[5, 60, 7, 80, 9, 100]])


@pytest.fixture(scope="module")
def nf4_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model whose matrices NF4 can pack: it takes blocks of 64 weights."""
    return make_tiny_base(tmp_path_factory.mktemp("nf4-base"), hidden=64)


def make_nf4(base: Path) -> Policy:
    policy = make_policy(base, quantization="nf4")
    move(policy.student_weights().values(), seed=1)
    return policy


def four_bit_layers(model: nn.Module) -> dict[str, Linear4bit]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def generate_much(policy: Policy) -> None:
    engine = HFEngine(batch_size=3)
    engine.attach(policy, run_seed=0)
    requests = [
        GenerationRequest(Purpose.ROLLOUT, 0, f"e{i}", 0, (Message(role="user", content="x" * i),)) for i in range(7)
    ]
    authors: tuple[View, ...] = ("student", "teacher", "base")
    for author in authors:
        engine.generate(
            requests,
            SamplingConfig(max_new_tokens=4),
            author=author,
            max_prompt_tokens=100,
            schema=None,
            on_progress=lambda _: None,
        )


def gradients(policy: Policy, loss: Literal["fused", "plain"] = "plain") -> dict[str, Tensor]:
    policy.zero_grad()
    policy.model.train()
    DistillationObjective(DistillationConfig(top_k=20, loss=loss)).loss(policy, BATCH).backward()
    return {name: weight.grad for name, weight in policy.student_weights().items()}


def test_every_linear_layer_but_the_head_is_stored_in_4_bits(nf4_base: Path) -> None:
    model = load_base(PolicyConfig(str(nf4_base), dtype="float32", quantization="nf4"))
    layers = four_bit_layers(model)
    assert len(layers) == 7 * 2
    assert {layer.weight.dtype for layer in layers.values()} == {torch.uint8}
    assert {layer.weight.quant_type for layer in layers.values()} == {"nf4"}
    assert all(layer.weight.quant_state.nested for layer in layers.values())  # double quantization
    assert not isinstance(model.lm_head, Linear4bit)
    assert model.lm_head.weight.dtype == torch.float32


def test_4_bits_stay_near_the_weights_they_stand_for(nf4_base: Path) -> None:
    nf4 = load_base(PolicyConfig(str(nf4_base), dtype="float32", quantization="nf4")).eval()
    plain = load_base(PolicyConfig(str(nf4_base), dtype="float32")).eval()
    with torch.no_grad():
        seen, right = nf4(input_ids=IDS).logits.flatten(), plain(input_ids=IDS).logits.flatten()
    similarity = float(torch.cosine_similarity(seen, right, dim=0))
    assert 0.9 < similarity < 0.99999  # near, and not the same model by mistake


def test_no_4_bit_layer_may_repack_its_weight_for_inference(nf4_base: Path) -> None:
    policy = make_nf4(nf4_base)
    layers = four_bit_layers(policy.model)
    assert len(layers) == 14
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers.values())
    assert not any(layer.support_avx512bf16_for_cpu for layer in four_bit_layers(policy.model.eval()).values())


def test_the_flag_is_cleared_where_the_processor_sets_it(nf4_base: Path) -> None:
    model = load_base(PolicyConfig(str(nf4_base), dtype="float32", quantization="nf4"))
    for layer in four_bit_layers(model).values():
        layer.support_avx512bf16_for_cpu = True
    keep_gradients_exact(model)
    assert not any(layer.support_avx512bf16_for_cpu for layer in four_bit_layers(model).values())


def test_gradients_after_much_generation_are_those_of_a_fresh_model(nf4_base: Path) -> None:
    fresh, used = make_nf4(nf4_base), make_nf4(nf4_base)
    generate_much(used)
    right, seen = gradients(fresh), gradients(used)
    assert right.keys() == seen.keys()
    for name, gradient in right.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(seen[name], gradient, rtol=1e-5, atol=1e-8, msg=name)


def test_gradients_are_those_of_the_dequantized_model(nf4_base: Path) -> None:
    policy = make_nf4(nf4_base)
    generate_much(policy)
    plain = make_policy(nf4_base)
    move(plain.student_weights().values(), seed=1)
    with torch.no_grad():
        for name, layer in four_bit_layers(policy.model).items():
            plain.model.get_parameter(f"{name}.weight").copy_(dequantize_4bit(layer.weight, layer.weight.quant_state))
    right, seen = gradients(plain), gradients(policy)
    for name, gradient in right.items():
        torch.testing.assert_close(seen[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_the_fused_loss_gives_the_plain_ones_gradients(nf4_base: Path) -> None:
    policy = make_nf4(nf4_base)
    right, seen = gradients(policy), gradients(policy, "fused")
    for name, gradient in right.items():
        assert gradient.abs().sum() > 0, name
        torch.testing.assert_close(seen[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_checkpoint_of_a_4_bit_policy_holds_no_weight_of_the_base(nf4_base: Path) -> None:
    policy = make_nf4(nf4_base)
    policy.sync_teacher()
    state = policy.state()
    assert all(".lora_" in name for weights in state.values() for name in weights)
    assert {weight.dtype for weights in state.values() for weight in weights.values()} == {torch.float32}
    num_trained = sum(weight.numel() for weight in policy.parameters() if weight.requires_grad)
    assert sum(weight.numel() for weights in state.values() for weight in weights.values()) == 2 * num_trained
    other = make_policy(nf4_base, quantization="nf4")
    other.load_state(state)
    with policy.frozen("student") as one, other.frozen("student") as two:
        assert torch.equal(one(input_ids=IDS).logits, two(input_ids=IDS).logits)
