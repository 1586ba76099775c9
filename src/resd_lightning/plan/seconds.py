"""The least time that a card's data sheet lets the counted tokens of an update take.

Reading many tokens at once is bound by arithmetic, so a phase takes no less than its operations over the card's peak.
Generating writes a token at a time and is bound by memory: every step reads the weights and the cache once (Pope et al.
2022, "Efficiently Scaling Transformer Inference", section 3). No run comes down to these times: launches of kernels,
4-bit weights that are unpacked first, padding and unequal ranks come on top, and how much that is must be measured.
Of a mixture a step is taken to read the experts that its tokens meet if each chooses by chance; tokens that choose
alike read fewer. What a run leaves out, such as a prefix that many prompts share, is counted as if it were read: the
floor is that of the counted tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from resd_lightning.plan.generation import cache_bytes_per_token
from resd_lightning.plan.run import Call, Run
from resd_lightning.plan.weights import base_bytes
from resd_lightning.plan.work import Work, prompt_flops


@dataclass(frozen=True)
class Speed:
    """What a card's data sheet says.

    Attributes:
        tflops: Peak of 16-bit matrix products without sparsity, in 10^12 operations a second.
        gb_per_s: Bandwidth of its memory, in 10^9 bytes a second.
    """

    tflops: float
    gb_per_s: float


def least_seconds(run: Run, phase: Work, speed: Speed) -> float | None:
    """Return the least time of a phase, in seconds, on the rank with most of it; None where another process does it.

    The run computes in 16 bits.
    """
    calls = {call.name: call for call in (run.rollout, *run.context)}
    if phase.name not in calls:
        share = run.on_a_rank(phase.sequences) / phase.sequences
        return share * phase.flops / (speed.tflops * 1e12)
    if run.engine_batch is None:
        return None
    return _generating(run, calls[phase.name], run.engine_batch, speed)


def _generating(run: Run, call: Call, engine_batch: int, speed: Speed) -> float:
    sequences = run.on_a_rank(call.sequences)
    if sequences == 0:
        return 0.0
    reading = sequences * prompt_flops(run, call) / (speed.tflops * 1e12)
    full, rest = divmod(sequences, engine_batch)
    a_step = full * _weights_read(run, engine_batch) + (_weights_read(run, rest) if rest else 0)
    weights = call.response * a_step
    cache = sequences * call.response * (call.prompt + call.response / 2) * cache_bytes_per_token(run)
    return reading + (weights + cache) / (speed.gb_per_s * 1e9)


def _weights_read(run: Run, batch: int) -> float:
    """Return the bytes of weights that one step of a batch reads: all but unused embeddings and experts.

    Of trained weights that is what autocast made of them and keeps; frozen ones are read as they are stored.
    """
    shape, is_trained = run.shape, run.policy.lora is None
    width = run.compute_bytes if is_trained else run.stored_bytes
    stored = width * shape.base_weights if is_trained else base_bytes(run)
    tables = shape.outside_weights // (shape.vocab * shape.hidden)  # 1 where the output head is the embeddings
    unused: float = (tables - 1) * shape.vocab * shape.hidden
    if shape.experts is not None:
        unused += shape.layers * (shape.experts.number - shape.experts.expected(batch)) * shape.experts.weights_of_one
    return stored - width * unused + run.compute_bytes * shape.adapter_weights
