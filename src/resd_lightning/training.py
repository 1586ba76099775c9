"""How a Lightning trainer must be set for an epoch to be one policy update."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch.distributed.fsdp import MixedPrecision

from resd_lightning.config import ConfigError, OptimizerConfig, PolicyConfig

WHOLE_UPDATE = 2**30
"""More micro-batches than any update has: Lightning then steps once, at the epoch's last. A power of two is exact."""

GRADIENT_CLIP_VAL = 1.0
"""The paper's clip of the gradient norm; a default, which a trainer's own argument replaces."""

REFUSED: Mapping[str, tuple[object, ...]] = {
    "max_steps": (-1,),
    "min_steps": (None,),
    "max_time": (None,),
    "fast_dev_run": (False, 0),
    "limit_train_batches": (None, 1.0),
    "overfit_batches": (0.0, 0),
    "reload_dataloaders_every_n_epochs": (0,),
    "val_check_interval": (None, 1.0),
    "inference_mode": (False,),
}
"""Trainer arguments that would cut an update short, and the values that leave it whole."""

DERIVED = ("max_epochs", "min_epochs", "check_val_every_n_epoch", "accumulate_grad_batches", "num_sanity_val_steps")
"""Trainer arguments that follow from the data, so that a user can't set them apart from it."""

AUTOCAST_ALONE = MixedPrecision()
"""No casts of FSDP1's own: autocast's are those of other runs, and FSDP's would round a batch's weights as well."""

_FSDP2 = "ModelParallelStrategy, which is FSDP2, as configs/trainer/fsdp2.yaml does"
_INIT_ARGS = "trainer.strategy.init_args"


def derived_arguments(num_updates: int, inner_updates: int) -> dict[str, object]:
    """Return the trainer arguments of a run of `num_updates`, validated after each batch's `inner_updates`."""
    return {
        "max_epochs": num_updates,
        "check_val_every_n_epoch": inner_updates,
        "accumulate_grad_batches": WHOLE_UPDATE,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "inference_mode": False,  # tensors made in inference mode can never enter a backward pass again
    }


def check_arguments(arguments: Mapping[str, object]) -> None:
    """Refuse trainer arguments that would break an update apart, or that are derived.

    Raises:
        ConfigError: Names the argument and what to set instead.
    """
    for key, whole in REFUSED.items():
        # As text: a limit of 1 is one batch and 1.0 is all of them, though they are equal.
        if key in arguments and repr(arguments[key]) not in map(repr, whole):
            raise ConfigError(
                f"trainer.{key} is {arguments[key]!r}, but an epoch is one whole policy update here: leave it out, and "
                "use data.max_batches for a shorter run"
            )
    defaults = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1}
    for key in DERIVED:
        if key in arguments and arguments[key] is not None and arguments[key] != defaults.get(key):
            raise ConfigError(
                f"trainer.{key} follows from data.batch_size, data.inner_updates and data.max_batches: leave it out"
            )


def check_strategy(strategy: Strategy, num_processes: int, policy: PolicyConfig, optimizer: OptimizerConfig) -> None:
    """Refuse a strategy that can't train this policy, before any weight is loaded.

    Args:
        strategy: The trainer's.
        num_processes: How many there are on all nodes.
        policy: How the model is held.
        optimizer: What trains it.

    Raises:
        ConfigError: Names the strategy or its option, and what to set instead.
    """
    if isinstance(strategy, ModelParallelStrategy):
        _check_fsdp2(strategy, num_processes, policy, optimizer)
    elif isinstance(strategy, FSDPStrategy):
        _check_fsdp1(strategy, num_processes, policy, optimizer)
    elif isinstance(strategy, DeepSpeedStrategy) or not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise ConfigError(f"trainer.strategy {type(strategy).__name__} isn't supported: use ddp, or {_FSDP2}")


def _check_fsdp2(
    strategy: ModelParallelStrategy, num_processes: int, policy: PolicyConfig, optimizer: OptimizerConfig
) -> None:
    wanted = {"data_parallel_size": num_processes, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    for name, value in wanted.items():
        if (found := getattr(strategy, f"_{name}")) != value:
            raise ConfigError(f"{_INIT_ARGS}.{name} must be {value} for this run, got {found}")
    _check_either_fsdp(strategy, policy, optimizer)


def _check_fsdp1(strategy: FSDPStrategy, num_processes: int, policy: PolicyConfig, optimizer: OptimizerConfig) -> None:
    """Refuse what FSDP1 can't do: it flattens all weights into one tensor, of one precision, and cuts it anywhere."""
    fsdp1 = "trainer.strategy FSDPStrategy (FSDP1)"
    if num_processes > 1:
        raise ConfigError(
            f"{fsdp1} would cut the student's weights and their teacher's in different places, so that neither average "
            f"nor checkpoint could be made of the pieces: use it in one process, or {_FSDP2}"
        )
    if policy.quantization != "none":
        raise ConfigError(f"{fsdp1} flattens no {policy.quantization} weights: use {_FSDP2}")
    if policy.dtype != "float32":
        raise ConfigError(
            f"{fsdp1} flattens weights of one precision, and what is trained is float32: set model.policy.dtype to "
            f"float32, or use {_FSDP2}"
        )
    refused = {
        "mixed_precision": strategy.mixed_precision not in (None, AUTOCAST_ALONE),
        "cpu_offload": strategy.cpu_offload is not None and strategy.cpu_offload.offload_params,
        "activation_checkpointing_policy": strategy._activation_checkpointing_kwargs,
        "state_dict_type": strategy._state_dict_type != "full",
    }
    refused |= {key: key != "use_orig_params" or not value for key, value in strategy.kwargs.items()}
    for key, is_set in refused.items():
        if is_set:
            raise ConfigError(f"{_INIT_ARGS}.{key} has no use in one process, which shards nothing: leave it out")
    _check_either_fsdp(strategy, policy, optimizer)


def _check_either_fsdp(strategy: Strategy, policy: PolicyConfig, optimizer: OptimizerConfig) -> None:
    if policy.offload_activations:
        raise ConfigError(
            "model.policy.offload_activations would copy gathered weights to the host too under "
            f"{type(strategy).__name__}: leave it out, and set model.policy.gradient_checkpointing"
        )
    if optimizer.kind != "adamw":
        raise ConfigError(f"model.optimizer.kind {optimizer.kind} can't update sharded weights: set it to adamw")


def validate_now(trainer: Trainer) -> None:
    """Run the whole validation between two updates, besides those that fall due."""
    trainer.validating = True  # the loop logs by the trainer's stage
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def check_trainer(trainer: Trainer, num_updates: int, inner_updates: int) -> None:
    """Refuse a trainer that was built by hand without `derived_arguments`.

    Raises:
        ConfigError: Names the argument that differs.
    """
    check_arguments(
        {
            "max_steps": trainer.max_steps,
            "fast_dev_run": trainer.fast_dev_run,  # type: ignore[attr-defined]
            "limit_train_batches": trainer.limit_train_batches,
            "overfit_batches": trainer.overfit_batches,  # type: ignore[attr-defined]
        }
    )
    found = {
        "max_epochs": trainer.max_epochs,
        "check_val_every_n_epoch": trainer.check_val_every_n_epoch,
        "accumulate_grad_batches": trainer.accumulate_grad_batches,
        "num_sanity_val_steps": trainer.num_sanity_val_steps,
    }
    if str(trainer.precision).endswith("-true") and not str(trainer.precision).startswith(("32", "64")):
        raise ConfigError(
            f"trainer.precision {trainer.precision} would round the trained weights, and their teacher's, to 16 bits: "
            "use bf16-mixed, with model.policy.dtype bfloat16 for a small base"
        )
    wanted = derived_arguments(num_updates, inner_updates)
    for key, value in found.items():
        if value != wanted[key]:
            raise ConfigError(
                f"trainer.{key} must be {wanted[key]}, got {value}: build the trainer with "
                "Trainer(**derived_arguments(data.num_updates, data.inner_updates))"
            )
