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
from torch import nn
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

_AUTOCAST_ALONE = MixedPrecision()
"""No casts of FSDP1's own: autocast's are those of other runs, and FSDP's would round a batch's weights as well."""

_FROZEN = "ignored_states"
"""What FSDP1 calls the weights that it leaves be; no option, as a file can't name weights."""

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
    if "deepspeed" in str(arguments.get("strategy")).lower():  # before Lightning asks for the package
        raise ConfigError(f"trainer.strategy DeepSpeedStrategy isn't supported: use ddp, or {_FSDP2}")
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


def check_strategy(
    strategy: Strategy, num_processes: int, precision: str, policy: PolicyConfig, optimizer: OptimizerConfig
) -> None:
    """Refuse a strategy that can't train this policy, before any weight is loaded.

    Args:
        strategy: The trainer's.
        num_processes: How many there are on all nodes.
        precision: The trainer's.
        policy: How the model is held.
        optimizer: What trains it.

    Raises:
        ConfigError: Names the strategy or its option, and what to set instead.
    """
    if isinstance(strategy, ModelParallelStrategy):
        _check_fsdp2(strategy, num_processes, policy, optimizer)
    elif isinstance(strategy, FSDPStrategy):
        _check_fsdp1(strategy, num_processes, precision, policy, optimizer)
    elif isinstance(strategy, DeepSpeedStrategy) or not isinstance(strategy, DDPStrategy | SingleDeviceStrategy):
        raise ConfigError(f"trainer.strategy {type(strategy).__name__} isn't supported: use ddp, or {_FSDP2}")


def _check_fsdp2(
    strategy: ModelParallelStrategy, num_processes: int, policy: PolicyConfig, optimizer: OptimizerConfig
) -> None:
    wanted = {"data_parallel_size": num_processes, "tensor_parallel_size": 1, "save_distributed_checkpoint": False}
    for name, value in wanted.items():
        if (found := getattr(strategy, f"_{name}")) != value:
            raise ConfigError(f"{_INIT_ARGS}.{name} must be {value} for this run, got {found}")
    _check_any_fsdp(strategy, policy, optimizer)


def _check_fsdp1(
    strategy: FSDPStrategy, num_processes: int, precision: str, policy: PolicyConfig, optimizer: OptimizerConfig
) -> None:
    """Refuse what FSDP1 can't do: it flattens weights into one tensor, of one precision, and cuts that anywhere."""
    if num_processes > 1:
        raise ConfigError(
            "trainer.strategy FSDPStrategy (FSDP1) can't share out a frozen base beside what is trained in another "
            "precision, and cuts trained weights where their teacher's aren't cut: use it in one process, or "
            f"{_FSDP2}"
        )
    if precision == "32-true" and policy.dtype != "float32":
        raise ConfigError(
            f"trainer.precision 32-true under FSDPStrategy (FSDP1) would turn a {policy.dtype} base into float32: set "
            f"it to bf16-mixed, or use {_FSDP2}"
        )
    offload = strategy.cpu_offload
    refused = {
        "mixed_precision": (
            strategy.mixed_precision not in (None, _AUTOCAST_ALONE),
            "would round the loss's weights too: trainer.precision does what it is for",
        ),
        "state_dict_type": (
            strategy._state_dict_type != "full",
            "would make a checkpoint a folder of pieces: leave it at full",
        ),
        "cpu_offload": (
            offload is not None and offload.offload_params,
            "would leave trained weights on the CPU, where the model isn't",
        ),
        "activation_checkpointing_policy": (
            bool(strategy._activation_checkpointing_kwargs),
            "renames the model's layers: set model.policy.gradient_checkpointing",
        ),
        "use_orig_params": (
            not strategy.kwargs["use_orig_params"],
            "would hide trained weights from their teacher's average: leave it out",
        ),
    }
    others = strategy.kwargs.keys() - {"use_orig_params", _FROZEN}
    refused |= dict.fromkeys(sorted(others), (True, "has no use in one process, which cuts nothing up"))
    for key, (is_set, reason) in refused.items():
        if is_set:
            raise ConfigError(f"{_INIT_ARGS}.{key} of FSDPStrategy (FSDP1) {reason}; or use {_FSDP2}")
    _check_any_fsdp(strategy, policy, optimizer)


def _check_any_fsdp(strategy: Strategy, policy: PolicyConfig, optimizer: OptimizerConfig) -> None:
    if policy.offload_activations:
        raise ConfigError(
            "model.policy.offload_activations would copy weights that FSDP has put together to the host as well, under "
            f"{type(strategy).__name__}: leave it out, and set model.policy.gradient_checkpointing"
        )
    if optimizer.kind != "adamw":
        raise ConfigError(
            f"model.optimizer.kind {optimizer.kind} keeps states that {type(strategy).__name__} can't save: set it to "
            "adamw"
        )


def wrap_trained_alone(strategy: FSDPStrategy, model: nn.Module, *, is_fit: bool) -> None:
    """Have FSDP1 flatten a model's trained weights and leave frozen ones be, on the device and in their own precision.

    Flattened with the rest, frozen weights would have to be of one precision with them, and would get gradients.

    Raises:
        ConfigError: It was flattened for an earlier trainer: FSDP1 couldn't load a checkpoint into it.
    """
    if is_fit and any(hasattr(weight, "_fsdp_flattened") for weight in model.parameters()):
        raise ConfigError(
            "trainer.strategy FSDPStrategy (FSDP1) trains a module once: make a new one, and give the trainer the "
            "checkpoint"
        )
    model.to(strategy.root_device)  # FSDP moves what it flattens, and nothing else
    strategy.kwargs[_FROZEN] = [weight for weight in model.parameters() if not weight.requires_grad]
    strategy.mixed_precision = _AUTOCAST_ALONE


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
