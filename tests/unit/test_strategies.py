"""Which of Lightning's strategies can train a policy, and what is said of those that can't."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import MixedPrecision

from resd_lightning.config import ConfigError, OptimizerConfig, PolicyConfig
from resd_lightning.module import ResdModule
from resd_lightning.policy.views import Policy
from resd_lightning.training import check_arguments, check_strategy, wrap_trained_alone

ADAMW = OptimizerConfig()
FLOAT32 = PolicyConfig("base", dtype="float32")
ANSWER = "ModelParallelStrategy, which is FSDP2, as configs/trainer/fsdp2.yaml does"


def fsdp2(ranks: int) -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)


def refusal(
    strategy: Strategy,
    ranks: int,
    policy: PolicyConfig,
    optimizer: OptimizerConfig = ADAMW,
    precision: str = "bf16-mixed",
) -> str:
    with pytest.raises(ConfigError) as caught:
        check_strategy(strategy, ranks, precision, policy, optimizer)
    return str(caught.value)


NF4 = PolicyConfig("base", quantization="nf4")


@pytest.mark.parametrize("policy", [FLOAT32, NF4, PolicyConfig("base", dtype="float32", lora=None)])
@pytest.mark.parametrize(
    ("strategy", "ranks"),
    [
        (DDPStrategy(), 2),
        (fsdp2(2), 2),
        (FSDPStrategy(), 1),
        (FSDPStrategy(sharding_strategy="NO_SHARD"), 1),
    ],
)
def test_these_train(strategy: Strategy, ranks: int, policy: PolicyConfig) -> None:
    check_strategy(strategy, ranks, "bf16-mixed", policy, ADAMW)


def test_several_processes_under_fsdp1_are_refused_by_name_and_fsdp2_is_the_answer() -> None:
    message = refusal(FSDPStrategy(), 2, FLOAT32)
    assert "FSDPStrategy (FSDP1)" in message
    assert ANSWER in message


def test_a_precision_by_which_fsdp1_would_widen_the_base_is_refused() -> None:
    assert "set it to bf16-mixed" in refusal(FSDPStrategy(), 1, NF4, precision="32-true")
    check_strategy(FSDPStrategy(), 1, "32-true", FLOAT32, ADAMW)


@pytest.mark.parametrize(
    ("key", "said", "strategy"),
    [
        ("mixed_precision", "trainer.precision", FSDPStrategy(mixed_precision=MixedPrecision(torch.bfloat16))),
        ("cpu_offload", "on the CPU", FSDPStrategy(cpu_offload=True)),
        (
            "activation_checkpointing_policy",
            "model.policy.gradient_checkpointing",
            FSDPStrategy(activation_checkpointing_policy={nn.Linear}),
        ),
        ("state_dict_type", "leave it at full", FSDPStrategy(state_dict_type="sharded")),
        ("auto_wrap_policy", "cuts nothing up", FSDPStrategy(auto_wrap_policy={nn.Linear})),
        ("use_orig_params", "leave it out", FSDPStrategy(use_orig_params=False)),
    ],
)
def test_options_of_fsdp1_are_refused_with_a_reason_and_fsdp2(key: str, said: str, strategy: FSDPStrategy) -> None:
    message = refusal(strategy, 1, FLOAT32)
    assert f"trainer.strategy.init_args.{key} of FSDPStrategy (FSDP1)" in message
    assert said in message
    assert ANSWER in message


def test_frozen_weights_are_left_out_of_what_fsdp1_flattens() -> None:
    model = nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 2))
    strategy = FSDPStrategy(parallel_devices=[torch.device("cpu")], cluster_environment=LightningEnvironment())
    wrap_trained_alone(strategy, model, is_fit=True)
    ignored = strategy.kwargs["ignored_states"]
    assert {id(weight) for weight in ignored} == {id(weight) for weight in model[0].parameters()}
    assert strategy.mixed_precision_config == MixedPrecision()
    check_strategy(strategy, 1, "bf16-mixed", FLOAT32, ADAMW)  # a trainer that has fitted may test


def test_a_module_is_trained_under_fsdp1_once_and_may_be_tested_after() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    for weight in model.parameters():
        weight._fsdp_flattened = True  # type: ignore[attr-defined]  # as FSDP1 leaves it behind
    strategy = FSDPStrategy(parallel_devices=[torch.device("cpu")], cluster_environment=LightningEnvironment())
    with pytest.raises(ConfigError, match=r"FSDPStrategy \(FSDP1\) trains a module once"):
        wrap_trained_alone(strategy, model, is_fit=True)
    wrap_trained_alone(strategy, model, is_fit=False)


@pytest.mark.parametrize(
    ("is_sharded", "strategy", "said"), [(True, DDPStrategy(), "cut up"), (False, fsdp2(1), "left whole")]
)
def test_a_module_that_another_strategy_has_held_is_refused(is_sharded: bool, strategy: Strategy, said: str) -> None:
    module = ResdModule(PolicyConfig("base"))
    module.policy = cast("Policy", SimpleNamespace(is_sharded=is_sharded))
    module._trainer = cast("Trainer", SimpleNamespace(strategy=strategy))
    with pytest.raises(ConfigError, match=f"{type(strategy).__name__} can't hold a module that .* has {said}"):
        module.configure_model()


@pytest.mark.parametrize("strategy", [fsdp2(1), FSDPStrategy()])
def test_neither_fsdp_copies_activations_to_the_host_or_keeps_8_bit_states(strategy: Strategy) -> None:
    policy = PolicyConfig("base", dtype="float32", offload_activations=True, gradient_checkpointing=True)
    assert "model.policy.offload_activations" in refusal(strategy, 1, policy)
    assert "model.optimizer.kind adamw_8bit" in refusal(strategy, 1, FLOAT32, OptimizerConfig(kind="adamw_8bit"))


def test_fsdp2_must_spread_over_all_processes_of_the_run() -> None:
    assert "init_args.data_parallel_size must be 4 for this run, got 2" in refusal(fsdp2(2), 4, FLOAT32)


def test_deepspeed_is_refused_though_lightning_derives_it_from_ddp() -> None:
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # deepspeed itself isn't installed
    assert "trainer.strategy DeepSpeedStrategy isn't supported" in refusal(strategy, 2, FLOAT32)


@pytest.mark.parametrize(
    "asked", ["deepspeed_stage_2", {"class_path": "lightning.pytorch.strategies.DeepSpeedStrategy"}]
)
def test_deepspeed_is_refused_before_it_would_have_to_be_installed(asked: object) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.strategy DeepSpeedStrategy isn't supported: use ddp, or"):
        check_arguments({"strategy": asked})
