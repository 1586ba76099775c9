"""Tokens that many prompts begin with, read once: their keys and values serve every prompt that goes on from them.

The teacher's prompts of an update begin with the same instructions and playbook. The keys and values are those of one
set of weights, so they hold for one update.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class SharedPrefix:
    """Keys and values of a prefix, by layer.

    Args:
        model: Reads the prefix; in eval mode and without gradient.
        ids: (prefix,) its tokens, at least one.
    """

    def __init__(self, model: PreTrainedModel, ids: Int[Tensor, " prefix"]) -> None:
        self.length = len(ids)
        cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        # Renamed within transformers 5; models take the one or the other.
        names = inspect.signature(model.forward).parameters
        self._name = "cache" if "cache" in names else "past_key_values"
        model(input_ids=ids.unsqueeze(0), use_cache=True, **{self._name: cache})
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def cache(self) -> dict[str, Cache]:
        """Return the argument by which the prefix stands before every row of one forward pass."""
        return {self._name: Cache(layers=[_PrefixLayer(keys, values) for keys, values in self._layers])}


class _PrefixLayer(DynamicLayer):  # type: ignore[misc]  # transformers is untyped here
    """Puts the prefix before what a forward pass computes, and keeps nothing of it."""

    def __init__(
        self, keys: Float[Tensor, "1 head prefix channel"], values: Float[Tensor, "1 head prefix channel"]
    ) -> None:
        super().__init__()
        self.keys, self.values, self.is_initialized = keys, values, True

    def update(
        self,
        key_states: Float[Tensor, "batch head time channel"],
        value_states: Float[Tensor, "batch head time channel"],
        *_: object,
        **__: object,
    ) -> tuple[Float[Tensor, "batch head total channel"], Float[Tensor, "batch head total channel"]]:
        """Return prefix and new states together, (batch, head, prefix + time, channel)."""
        rows = len(key_states)
        return (
            torch.cat([self.keys.expand(rows, -1, -1, -1), key_states], dim=-2),
            torch.cat([self.values.expand(rows, -1, -1, -1), value_states], dim=-2),
        )


def common_prefix(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the longest run of tokens that all prompts begin with and that leaves each of them one token at least."""
    heads = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return tuple(tokens[0] for tokens in takewhile(lambda tokens: len(set(tokens)) == 1, heads))
