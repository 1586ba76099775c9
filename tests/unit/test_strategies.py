"""Which of Lightning's strategies can train a policy, and what is said of those that can't."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch.distributed.fsdp import MixedPrecision

from resd_lightning.config import ConfigError, LoraSettings, OptimizerConfig, PolicyConfig
from resd_lightning.training import check_strategy

ADAMW = OptimizerConfig()
FLOAT32 = PolicyConfig("base", dtype="float32")
ANSWER = "ModelParallelStrategy, which is FSDP2, as configs/trainer/fsdp2.yaml does"


def fsdp2(ranks: int) -> ModelParallelStrategy:
    return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)


def refusal(strategy: Strategy, ranks: int, policy: PolicyConfig, optimizer: OptimizerConfig = ADAMW) -> str:
    with pytest.raises(ConfigError) as caught:
        check_strategy(strategy, ranks, policy, optimizer)
    return str(caught.value)


@pytest.mark.parametrize(
    ("strategy", "ranks", "policy"),
    [
        (DDPStrategy(), 2, PolicyConfig("base", quantization="nf4")),
        (fsdp2(2), 2, PolicyConfig("base", quantization="nf4")),
        (FSDPStrategy(), 1, FLOAT32),
        (FSDPStrategy(sharding_strategy="NO_SHARD"), 1, PolicyConfig("base", dtype="float32", lora=None)),
        (FSDPStrategy(mixed_precision=MixedPrecision()), 1, FLOAT32),  # as a fit leaves it behind
    ],
)
def test_these_train(strategy: Strategy, ranks: int, policy: PolicyConfig) -> None:
    check_strategy(strategy, ranks, policy, ADAMW)


@pytest.mark.parametrize(
    ("ranks", "policy", "said"),
    [
        (2, FLOAT32, "in different places"),
        (1, PolicyConfig("base", dtype="float32", quantization="nf4"), "flattens no nf4 weights"),
        (1, PolicyConfig("base", dtype="bfloat16", lora=LoraSettings()), "model.policy.dtype to float32"),
    ],
)
def test_what_fsdp1_cannot_do_is_refused_by_name_and_fsdp2_is_the_answer(
    ranks: int, policy: PolicyConfig, said: str
) -> None:
    message = refusal(FSDPStrategy(), ranks, policy)
    assert "FSDPStrategy (FSDP1)" in message
    assert said in message
    assert ANSWER in message
    check_strategy(fsdp2(ranks), ranks, policy, ADAMW)


@pytest.mark.parametrize(
    ("key", "strategy"),
    [
        ("mixed_precision", FSDPStrategy(mixed_precision=MixedPrecision(param_dtype=torch.bfloat16))),
        ("cpu_offload", FSDPStrategy(cpu_offload=True)),
        ("activation_checkpointing_policy", FSDPStrategy(activation_checkpointing_policy={torch.nn.Linear})),
        ("state_dict_type", FSDPStrategy(state_dict_type="sharded")),
        ("auto_wrap_policy", FSDPStrategy(auto_wrap_policy={torch.nn.Linear})),
        ("use_orig_params", FSDPStrategy(use_orig_params=False)),
    ],
)
def test_options_of_fsdp1_that_one_process_has_no_use_for_are_refused(key: str, strategy: FSDPStrategy) -> None:
    assert f"trainer.strategy.init_args.{key} has no use in one process" in refusal(strategy, 1, FLOAT32)


@pytest.mark.parametrize("strategy", [fsdp2(1), FSDPStrategy()])
def test_neither_fsdp_copies_activations_to_the_host_or_keeps_8_bit_states(strategy: Strategy) -> None:
    policy = PolicyConfig("base", dtype="float32", offload_activations=True, gradient_checkpointing=True)
    assert "model.policy.offload_activations" in refusal(strategy, 1, policy)
    assert "model.optimizer.kind adamw_8bit" in refusal(strategy, 1, FLOAT32, OptimizerConfig(kind="adamw_8bit"))


def test_fsdp2_must_spread_over_all_processes_of_the_run() -> None:
    assert "init_args.data_parallel_size must be 4 for this run, got 2" in refusal(fsdp2(2), 4, FLOAT32)


def test_deepspeed_is_refused_though_lightning_derives_it_from_ddp() -> None:
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)  # deepspeed itself isn't installed
    message = refusal(strategy, 2, FLOAT32)
    assert "trainer.strategy DeepSpeedStrategy isn't supported" in message
    assert ANSWER in message
