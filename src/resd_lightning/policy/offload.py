"""Keeps what a backward pass needs in the host's memory."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def activations_on_cpu(weights: Iterable[Tensor]) -> AbstractContextManager[None]:
    """Return a context in which autograd saves tensors on the CPU, and brings them back when they are needed.

    Weights and views of them stay where they are: they are there anyhow.

    Args:
        weights: The model's, frozen ones too.
    """
    stored = {weight.untyped_storage().data_ptr() for weight in weights}

    def pack(tensor: Tensor) -> tuple[torch.device, Tensor]:
        if tensor.untyped_storage().data_ptr() in stored:
            return tensor.device, tensor
        kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        return tensor.device, kept.copy_(tensor)

    def unpack(packed: tuple[torch.device, Tensor]) -> Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
