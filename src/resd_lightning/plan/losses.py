"""What the losses hold beside the model's activations, from last hidden states to their gradient."""

from __future__ import annotations

from dataclasses import replace

from resd_lightning.config import ObjectiveName
from resd_lightning.plan.run import Run
from resd_lightning.plan.weights import head_cast, head_copies


def from_teacher(run: Run) -> int:
    """Return what is left of the teacher's forward pass while the student's runs: hidden states, or all logits."""
    tokens = run.micro_batch * run.response
    if run.is_fused:
        return tokens * run.shape.hidden * run.stored_bytes
    if run.teacher == "trust_region":
        return (tokens + run.micro_batch) * run.shape.vocab * 4
    return (tokens + run.micro_batch) * run.shape.vocab * run.compute_bytes


def teacher_output(run: Run) -> int:
    """Return what the teacher's forward pass ends with, before any of it is dropped."""
    stream = run.micro_batch * (run.teacher_prompt + run.response) * run.shape.hidden * run.stored_bytes
    if run.is_fused:
        return stream + from_teacher(run)
    logits = (run.micro_batch * (run.response + 1)) * run.shape.vocab
    heads = head_cast(run.shape, run) + head_copies(run, run.micro_batch)
    if run.teacher == "trust_region":  # both models' logits, as computed and in fp32, and what is between them
        return stream + logits * (2 * run.compute_bytes + 3 * 4) + heads
    return stream + logits * run.compute_bytes + heads


def loss(run: Run, objective: ObjectiveName) -> int:
    """Return what a loss holds at its height, the teacher's part (`from_teacher`) not included."""
    if objective == "grpo" and run.is_grpo_fused:
        return _fused(replace(run, distillation=replace(run.distillation, top_k=1))) + head_cast(run.shape, run)
    if objective == "grpo":
        return _grpo(run) + head_cast(run.shape, run)
    if run.is_fused:  # the student's copy of the head is kept for its gradient while the teacher's is made
        return _fused(run) + 2 * head_cast(run.shape, run)
    return _plain(run) + head_cast(run.shape, run)


def _fused(run: Run) -> int:
    """Return the fused loss's height (distill/fused.py).

    For each response token: the masked copy of the student's hidden states, the mean of the head's rows that is the
    gradient, top-k logits with their indices, and then some ten numbers for each bucket. For each token of a chunk: its
    logits in fp32, and once more in 16 bits where the head is in 16 bits; their product with the head, twice.
    """
    tokens, width = run.micro_batch * run.response, run.compute_bytes
    logits = run.shape.vocab * (4 + (width if width < 4 else 0))
    chunk = min(run.distillation.chunk_tokens, tokens) * (logits + 2 * run.shape.hidden * width)
    top_k = run.distillation.top_k or 0
    reduced = tokens * (2 * run.shape.hidden * width + top_k * (4 + 8))
    buckets = tokens * (top_k + 1) * 4 * 10
    return reduced + max(chunk, buckets)


def _plain(run: Run) -> int:
    """Return the plain loss's height (distill/divergence.py): how many times it has all logits at once.

    Student's logits as computed and again in fp32, masked; the teacher's likewise, of which the first are counted by
    `from_teacher`; and the exponentials inside a logsumexp. With the whole vocabulary compared, each side's
    log-softmax, the clipped teacher's, and for each divergence its exponential, difference and product come on top.
    """
    logits, width = run.micro_batch * run.response * run.shape.vocab, run.compute_bytes
    copies = width + 3 * 4
    if run.distillation.top_k is None:
        divergences = 1 if run.distillation.alpha in (0, 1) else 2
        copies += (1 + 3 * divergences + (divergences - 1)) * 4
    return logits * copies


def _grpo(run: Run) -> int:
    """Return the policy gradient's height: logits as computed, in fp32, over the temperature, and their log-softmax."""
    return run.micro_batch * run.response * run.shape.vocab * (run.compute_bytes + 3 * 4)
