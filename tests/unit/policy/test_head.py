"""When a model's logits are its last hidden states times one frozen matrix."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    Qwen3Config,
)

from conftest import SMALL_LORA, make_base, make_policy, move
from resd_lightning.config import LoraSettings, PolicyConfig
from resd_lightning.policy.head import backbone_of, frozen_head, head_obstacle, logit_transform_of
from resd_lightning.policy.load import read_base_facts
from resd_lightning.policy.views import View

IDS = torch.tensor([[5, 60, 7, 80, 9, 100]])


def make_small_base(folder: Path, config_class: type[PretrainedConfig], **settings: object) -> Path:
    """Write a tiny random model of some family: one layer with two heads."""
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    return make_base(folder, config_class, intermediate_size=64, num_hidden_layers=1, **heads, **settings)


@pytest.mark.parametrize("who", ["student", "teacher", "base"])
def test_backbone_and_head_give_each_views_logits(who: View, tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), seed=1)
    move(policy.teacher_weights().values(), seed=2)
    with policy.frozen(who) as model:
        logits = model(input_ids=IDS).logits
        hidden = backbone_of(model)(input_ids=IDS).last_hidden_state
    torch.testing.assert_close(hidden @ frozen_head(policy).T, logits)
    with policy.frozen("base") as model:
        base = model(input_ids=IDS).logits
    assert who == "base" or (logits - base).abs().max() > 0.01  # the adapter is in it


@pytest.mark.parametrize(
    ("config_class", "settings"),
    [
        (LlamaConfig, {"tie_word_embeddings": True}),
        (Qwen3Config, {}),
        (Gemma3TextConfig, {"final_logit_softcapping": None}),
        (GraniteConfig, {"logits_scaling": 1.0}),
    ],
)
def test_plain_heads_have_no_obstacle(
    config_class: type[PretrainedConfig], settings: dict[str, object], tmp_path: Path
) -> None:
    policy = make_policy(make_small_base(tmp_path, config_class, **settings))
    assert head_obstacle(policy) is None
    assert frozen_head(policy).shape == (259, 32)


@pytest.mark.parametrize(
    ("config_class", "settings", "said"),
    [
        (Gemma2Config, {}, "final_logit_softcapping 30.0"),
        (CohereConfig, {}, "logit_scale 0.0625"),
        (GraniteConfig, {"logits_scaling": 8.0}, "logits_scaling 8.0"),
    ],
)
def test_bases_that_alter_their_logits_are_told_by_their_config(
    config_class: type[PretrainedConfig], settings: dict[str, object], said: str, tmp_path: Path
) -> None:
    base = make_small_base(tmp_path, config_class, **settings)
    assert read_base_facts(PolicyConfig(str(base))).logit_transform == said
    assert head_obstacle(make_policy(base, attention="eager")) == f"the base has {said}"


def test_a_multiplier_of_the_head_is_told_by_its_key() -> None:
    assert logit_transform_of(FalconH1Config(lm_head_multiplier=0.5)) == "lm_head_multiplier 0.5"
    assert logit_transform_of(FalconH1Config(lm_head_multiplier=1.0)) is None


class UnknownTransform(LlamaForCausalLM):
    """Does something to its logits that no config key tells."""

    def forward(self, *args: object, **kwargs: object) -> object:
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 1.1
        return output


def test_what_no_config_tells_is_found_by_comparing_logits(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    assert head_obstacle(policy) is None
    policy.model.get_base_model().__class__ = UnknownTransform
    assert head_obstacle(policy) == (
        "the base's logits differ by 9% from its output head's product with its last hidden states"
    )


def test_a_head_that_is_adapted_trained_or_biased_is_an_obstacle(tiny_base: Path) -> None:
    adapted = make_policy(tiny_base, lora=LoraSettings(rank=2, alpha=4, target_modules=["q_proj", "lm_head"]))
    assert head_obstacle(adapted) == "the output head is a Linear: adapted, quantized or none"
    assert head_obstacle(make_policy(tiny_base, lora=None)) == "the output head is trained"
    biased = make_policy(tiny_base, lora=SMALL_LORA)
    head = biased.model.get_base_model().lm_head
    head.bias = nn.Parameter(torch.zeros(head.out_features), requires_grad=False)
    assert head_obstacle(biased) == "the output head has a bias"


def test_looking_for_obstacles_changes_nothing_and_draws_nothing(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, lora=LoraSettings(rank=2, alpha=4, dropout=0.5))
    state = torch.get_rng_state()
    assert policy.model.training
    head_obstacle(policy)
    assert policy.model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in policy.parameters())
