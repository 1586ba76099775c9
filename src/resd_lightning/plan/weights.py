"""What a run holds at all times: weights, gradients and the optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from resd_lightning.config import OptimizerKind
from resd_lightning.plan.run import Run
from resd_lightning.plan.shape import Shape

NF4_BLOCK = 64
"""Weights that share a scale in NF4."""
SCALE_BLOCK = 256
"""Scales that share a scale of their own under double quantization."""
TABLES = 4 * (16 + SCALE_BLOCK + 1)
"""Bytes beside each matrix in NF4: the 16 values, the 256 values of a scale, and the scales' mean, in fp32."""


@dataclass(frozen=True)
class Item:
    """Something that takes memory.

    Attributes:
        name: What it is.
        bytes: How much it takes.
    """

    name: str
    bytes: int


MOMENTS_BYTES: Mapping[OptimizerKind, float] = {"adamw": 8, "adamw_8bit": 2 * (1 + 4 / 256)}
"""Of AdamW's two moments for each weight: in fp32, or in 8 bits with an fp32 scale for each block of 256."""


def resident(run: Run) -> tuple[Item, ...]:
    """Return what a rank holds in every phase from the second update on.

    Gradients are among it: Lightning sets them to none before an update's first backward pass, so they outlast the
    rollouts in between. Sharded, a rank has its part of the layers, and with adapters the whole of what is around them.
    """
    trained, adapter = ceil(trained_weights(run) / run.shards), ceil(run.shape.adapter_weights / run.shards)
    whole = around_bytes(run) if run.policy.lora is not None else 0
    has_teacher_copy = run.shape.adapter_weights > 0 or run.teacher != "live"  # the second adapter is always there
    items = (
        Item("base weights", whole + ceil((base_bytes(run) - whole) / run.shards)),
        Item("student's adapter", 4 * adapter),
        # In fp32, so the teacher's weights are the moving average themselves: it has no copy of its own.
        Item("teacher's weights and average", 4 * trained if has_teacher_copy else 0),
        Item("gradients", 4 * trained),
        Item("optimizer state", ceil(MOMENTS_BYTES[run.optimizer] * trained)),
        # torch keeps ddp's buckets, into which gradients are copied, for the whole run.
        Item("gradients in ddp's buckets", 4 * trained if run.ranks > 1 and not run.is_sharded else 0),
        # Of gathered weights under FSDP2, so never a part of them.
        Item("weights cast by autocast", cast_bytes(run)),
    )
    return tuple(item for item in items if item.bytes > 0)


def around_bytes(run: Run) -> int:
    """Return the size of what the base has around its layers: embeddings, output head and last norm."""
    return run.stored_bytes * run.shape.outside_weights


def gathered(run: Run, layers: int) -> tuple[Item, ...]:
    """Return the whole weights of so many sharded layers, both adapters included; a rank has its part besides.

    Layers are gathered one at a time for their own work, and the next one meanwhile; for generation all at once. What
    is around them is sharded where all weights are trained, and then gathered throughout.
    """
    if run.shards == 1:
        return ()
    inside = base_bytes(run) - around_bytes(run) + 2 * 4 * run.shape.adapter_weights
    around = around_bytes(run) if run.policy.lora is None else 0
    return (Item(f"{layers} layers gathered", ceil(inside * layers / run.shape.layers) + around),)


def gathered_gradients(run: Run) -> tuple[Item, ...]:
    """Return the whole gradients, in fp32, that FSDP2 has before it shares them out: of the layers it has gathered."""
    if run.shards == 1:
        return ()
    around = run.shape.outside_weights if run.policy.lora is None else 0
    layers = ceil((trained_weights(run) - around) * 2 / run.shape.layers)
    return (Item("whole gradients of 2 layers", 4 * (layers + around)),)


def trained_weights(run: Run) -> int:
    """Return how many weights are trained, all in fp32: the student's adapter, or the whole base."""
    return run.shape.adapter_weights or run.shape.base_weights


def base_bytes(run: Run) -> int:
    """Return the size of the base: each weight as stored, or its linear layers in NF4."""
    if not run.is_nf4:
        return run.stored_bytes * run.shape.base_weights
    rest = run.shape.base_weights - sum(run.shape.quantizable)
    return run.stored_bytes * rest + sum(nf4_bytes(weights) for weights in run.shape.quantizable)


def nf4_bytes(weights: int) -> int:
    """Return the size of a matrix in NF4 with double quantization (Dettmers et al. 2023, QLoRA, section 3).

    Half a byte a weight, a byte for the scale of each block of 64, four bytes for each 256 of these scales, and tables.
    """
    scales = ceil(weights / NF4_BLOCK)
    return ceil(weights / 2) + scales + 4 * ceil(scales / SCALE_BLOCK) + TABLES


def cast_bytes(run: Run) -> int:
    """Return the 16-bit copies of trained fp32 weights, which autocast keeps until its context ends.

    It keeps a copy of a weight that requires a gradient, whether or not one is computed.
    """
    if not run.is_mixed:
        return 0
    return 2 * trained_weights(run)


def optimizer_step(run: Run) -> int:
    """Return what AdamW holds beside its state while it steps.

    On a GPU it works on all weights at once (foreach) and makes one more list of their size, the square roots; on a CPU
    it goes weight by weight, and no weight is larger than the output head.
    """
    if run.device == "cuda":
        return ceil(4 * trained_weights(run) / run.shards)
    largest = max(one.rank * max(one.inputs, one.outputs) for one in run.shape.linears)
    return 4 * (largest or max(run.shape.vocab * run.shape.hidden, run.shape.widest))


def head_cast(shape: Shape, run: Run) -> int:
    """Return the 16-bit copy of an fp32 output head that each use under autocast makes."""
    return 2 * shape.vocab * shape.hidden if run.is_mixed and run.stored_bytes == 4 else 0


def head_copies(run: Run, batch: int) -> int:
    """Return the copies of a 16-bit output head that a CPU makes, one for each sequence, where it makes logits.

    The hidden states of the last positions are a slice, so torch multiplies them by the head sequence by sequence, and
    on a CPU copies the head for it. On a GPU it doesn't; nor where autocast makes a tensor of its own of the slice.
    """
    is_copied = run.device == "cpu" and run.stored_bytes == 2
    return 2 * batch * run.shape.vocab * run.shape.hidden if is_copied else 0
