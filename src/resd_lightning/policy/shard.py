"""A policy spread over ranks by FSDP2: how a model is cut up, made whole for a while, saved and restored.

A sharded weight is a `DTensor` that holds this rank's rows of it. Layers gather theirs for their own forward and
backward pass; what reads weights outside of one, reads a share, so checkpoints and generation ask for whole ones here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from resd_lightning.config import ConfigError


def shard_whole(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard every weight of a model that is trained as a whole, or of a copy of it; it is run by its own forward.

    Raises:
        ConfigError: The model doesn't say what its layers are.
    """
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)


def shard_layers(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Shard a model whose adapters are trained: its layers, base weights and adapters alike.

    What is frozen outside the layers, embeddings and output head, stays whole on every rank: the fused loss reads the
    head, and it reads the model below the head, which is therefore the outermost unit.

    Raises:
        ConfigError: The model doesn't say what its layers are.
    """
    layers = layers_of(model)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    inside = {weight for layer in layers for weight in layer.parameters()}
    kept = {weight for weight in model.parameters() if weight not in inside and not weight.requires_grad}
    for weight in kept:  # FSDP moves what it shards, and nothing else
        weight.data = weight.data.to(mesh.device_type)
    fully_shard(model.base_model, mesh=mesh, reshard_after_forward=True, ignored_params=kept)


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers that stay in one piece on a rank, as the model names them.

    Raises:
        ConfigError: It names none.
    """
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ConfigError(
            f"trainer.strategy: {type(model).__name__} doesn't say which of its layers may be sharded: use ddp"
        )
    return layers


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Hold the whole weights of a model on every rank: gathered once, however many forward passes follow.

    All ranks enter together; what each does inside is its own affair.
    """
    units = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor, gathered where it is sharded; then all ranks must ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def copy_whole(target: Tensor, source: Tensor) -> None:
    """Copy a whole tensor that every rank holds into one that may be sharded.

    Raises:
        RuntimeError: The shapes differ.
    """
    if isinstance(target, DTensor):
        if target.shape != source.shape:
            raise RuntimeError(f"a weight of shape {tuple(target.shape)} can't hold one of {tuple(source.shape)}")
        own = source.to(target.device, target.dtype)
        source = distribute_tensor(own, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(source)
