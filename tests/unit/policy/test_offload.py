from __future__ import annotations

import torch
from torch import nn

from resd_lightning.policy import offload
from resd_lightning.policy.offload import activations_on_cpu


def test_activations_are_copied_and_weights_and_their_views_are_not() -> None:
    layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    inputs = torch.randn(3, 4, requires_grad=True)
    expected = torch.autograd.grad(layers(inputs).square().sum(), [inputs, *layers.parameters()])
    packed: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Watched(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pack: object, unpack: object) -> None:
            def watch(tensor: torch.Tensor) -> object:
                kept = pack(tensor)  # type: ignore[operator]
                packed.append((tensor, kept[1]))
                return kept

            super().__init__(watch, unpack)  # type: ignore[arg-type]

    original, offload.saved_tensors_hooks = offload.saved_tensors_hooks, Watched
    try:
        with activations_on_cpu(layers.parameters()):
            loss = layers(inputs).square().sum()
    finally:
        offload.saved_tensors_hooks = original
    weights = {weight.data_ptr() for weight in layers.parameters()}
    stayed = [tensor for tensor, kept in packed if kept.data_ptr() == tensor.data_ptr()]
    moved = [tensor for tensor, kept in packed if kept.data_ptr() != tensor.data_ptr()]
    assert stayed
    assert all(tensor.data_ptr() in weights for tensor in stayed)
    assert {tuple(tensor.shape) for tensor in moved} >= {(3, 4), (3, 8), (3, 2)}
    for found, right in zip(torch.autograd.grad(loss, [inputs, *layers.parameters()]), expected, strict=True):
        assert torch.equal(found, right)
