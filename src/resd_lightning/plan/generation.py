"""What generating holds: the cache of keys and values, and the forward pass over the prompts."""

from __future__ import annotations

from resd_lightning.plan.activations import weight_copy, without_gradient
from resd_lightning.plan.run import Call, Run
from resd_lightning.plan.weights import Item, head_cast, head_copies

SAMPLER_BYTES = 4 + 4 + 4 + 4 + 4 + 4 + 4 + 1
"""Bytes for each logit of a step (rollout/sampling.py): as computed, fp32, tempered, noise, noisy, mass, the mass of
likelier tokens, and which these are."""


def cache_bytes_per_token(run: Run) -> int:
    """Return the cache's bytes for a token of one sequence: layers x width of keys and values.

    Rotation multiplies keys by numbers in the residual stream's precision, so that is the least they have.
    """
    keys = max(run.compute_bytes, run.stored_bytes)
    return run.shape.layers * run.shape.key * (keys + run.compute_bytes)


def generation(run: Run, call: Call) -> tuple[Item, ...]:
    """Return what one batch of responses holds at its height.

    That is at the prompt's forward pass, when the cache has the prompt alone, or at the last token, when the cache is
    full, one layer's keys are there twice (transformers' DynamicCache grows by
    concatenation), and the next token is drawn.
    """
    if run.engine_batch is None or call.sequences == 0:
        return ()
    batch = min(run.engine_batch, run.on_a_rank(call.sequences))
    per_token = cache_bytes_per_token(run)
    sampler = Item("sampler", batch * run.shape.vocab * SAMPLER_BYTES)
    work = max(without_gradient(run, batch, call.prompt), _first_logits(run, batch))
    prompt = Item("activations of the prompts", work)
    at_prompt = (Item("KV cache", batch * call.prompt * per_token), prompt)
    full = batch * (call.prompt + call.response) * per_token
    copies = max(weight_copy(run), head_cast(run.shape, run))
    grown = Item("one layer's keys again, a matrix's copy", full // (2 * run.shape.layers) + copies)
    at_end = (Item("KV cache", full), grown, sampler)
    return max(at_prompt, at_end, key=lambda items: sum(item.bytes for item in items))


def _first_logits(run: Run, batch: int) -> int:
    """Return what the logits behind the prompts take: those of the last position, as computed and in fp32."""
    heads = head_copies(run, batch) + head_cast(run.shape, run)
    return heads + batch * run.shape.vocab * (run.compute_bytes + 4)
