"""The sizes of a base and of the adapters on it, counted on a model without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from resd_lightning.config import ConfigError, PolicyConfig
from resd_lightning.policy.head import module_obstacle
from resd_lightning.policy.load import DTYPES, source_of
from resd_lightning.policy.views import STUDENT, adapter_weights, with_two_adapters

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a decoder layer as Llama has it; also Mistral's, Qwen's, SmolLM's and Gemma's."""


@dataclass(frozen=True)
class Linear:
    """A linear layer.

    Attributes:
        name: Its name within a decoder layer.
        inputs: Width of what it reads.
        outputs: Width of what it writes.
        rank: Rank of its adapter; 0 where it has none.
    """

    name: str
    inputs: int
    outputs: int
    rank: int

    @property
    def weights(self) -> int:
        """Weights of the base's matrix."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class Shape:
    """What sets the memory of a base with its adapters.

    Attributes:
        layers: Decoder layers.
        hidden: Width of the residual stream.
        heads: Heads of the queries.
        kv_heads: Heads of keys and values.
        head_dim: Width of a head.
        vocab: Output logits.
        max_positions: Longest sequence the base was made for, in tokens.
        linears: The linear layers of one decoder layer.
        hidden_norms: Norms of the residual stream's width in one decoder layer.
        has_head_norms: Whether queries and keys are normalised (Qwen3).
        base_weights: All weights of the base; a tied output head counts once.
        quantizable: Sizes of the matrices that NF4 stores in 4 bits: all linear layers but the output head.
        adapter_weights: Weights of one adapter; 0 without adapters.
        head_obstacle: Why the fused loss can't use the output head; None where it can.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    max_positions: int
    linears: tuple[Linear, ...]
    hidden_norms: int
    has_head_norms: bool
    base_weights: int
    quantizable: tuple[int, ...]
    adapter_weights: int
    head_obstacle: str | None

    @property
    def query(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all keys, or all values, of a token."""
        return self.kv_heads * self.head_dim

    @property
    def intermediate(self) -> int:
        """Width inside the MLP."""
        return next(linear.inputs for linear in self.linears if linear.name == "down_proj")

    @property
    def layer_weights(self) -> int:
        """Weights in the matrices of one decoder layer."""
        return sum(linear.weights for linear in self.linears)

    @property
    def widest(self) -> int:
        """Weights of a decoder layer's largest matrix."""
        return max(linear.weights for linear in self.linears)


def read_shape(config: PolicyConfig) -> Shape:
    """Return the sizes of a base and its adapters; of the base only the config file is read, no weight.

    Raises:
        ConfigError: The base's config can't be read, its decoder layers aren't Llama's, or no layer has the adapters'
            names.
    """
    base = build_on_meta(config)
    facts = base.config.get_text_config()
    head = base.get_output_embeddings()
    layer = _decoder_layer(config.base, base)
    quantizable = tuple(m.weight.numel() for m in base.modules() if type(m) is nn.Linear and m is not head)
    base_weights = sum(weight.numel() for weight in base.parameters())
    names = [name for name, _ in layer.named_parameters()]
    norms = sum(1 for weight in layer.parameters() if weight.shape == (facts.hidden_size,) and weight.dim() == 1)
    adapters = 0
    obstacle = None if config.lora is not None else "the output head is trained"
    if config.lora is not None:
        with torch.device("meta"):
            adapted = with_two_adapters(base, config.lora)
        adapters = sum(weight.numel() for weight in adapter_weights(adapted, STUDENT).values())
        obstacle = module_obstacle(base)
    linears = tuple(_linear(layer, name) for name in LINEARS)
    head_dim = next(one.outputs for one in linears if one.name == "q_proj") // facts.num_attention_heads
    return Shape(
        layers=facts.num_hidden_layers,
        hidden=facts.hidden_size,
        heads=facts.num_attention_heads,
        kv_heads=next(one.outputs for one in linears if one.name == "k_proj") // head_dim,
        head_dim=head_dim,
        vocab=facts.vocab_size,
        max_positions=facts.max_position_embeddings,
        linears=linears,
        hidden_norms=norms,
        has_head_norms=any("q_norm" in name for name in names),
        base_weights=base_weights,
        quantizable=quantizable,
        adapter_weights=adapters,
        head_obstacle=obstacle,
    )


def build_on_meta(config: PolicyConfig) -> PreTrainedModel:
    """Return the base as modules without weights.

    Raises:
        ConfigError: Its config can't be read, or names no causal language model.
    """
    try:
        facts = AutoConfig.from_pretrained(source_of(config.base))
        with torch.device("meta"):
            return cast("PreTrainedModel", AutoModelForCausalLM.from_config(facts, dtype=DTYPES[config.dtype]))
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.policy.base {config.base!r} can't be built from its config: {error}") from error


def _decoder_layer(name: str, base: PreTrainedModel) -> nn.Module:
    layers: list[nn.Module] = [module for path, module in base.named_modules() if path.endswith("layers.0")]
    found = {path.rpartition(".")[2] for layer in layers for path, m in layer.named_modules() if type(m) is nn.Linear}
    if found != set(LINEARS):
        raise ConfigError(
            f"model.policy.base {name!r}: `resd plan` knows decoder layers like Llama's, with {list(LINEARS)}, and "
            f"this one has {sorted(found) or 'none of them'}"
        )
    return layers[0]


def _linear(layer: nn.Module, name: str) -> Linear:
    module = next(m for path, m in layer.named_modules() if path.rpartition(".")[2] == name)
    rank = 0
    if isinstance(module, BaseTunerLayer):
        rank = module.r[STUDENT]
        module = module.get_base_layer()
    weight = cast("nn.Linear", module)
    return Linear(name, weight.in_features, weight.out_features, rank)
