"""The sizes of a base and of the adapters on it, counted on a model without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from resd_lightning.config import ConfigError, PolicyConfig
from resd_lightning.policy.head import module_obstacle
from resd_lightning.policy.load import build_on_meta, quantizable
from resd_lightning.policy.views import STUDENT, adapter_weights, with_two_adapters

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers of a decoder layer as Llama has it; also Mistral's, Qwen's, SmolLM's and Gemma's."""
STACKS = {"gate_up_proj", "down_proj"}
"""The matrices of all experts of a layer, as transformers keeps them: (experts, outputs, inputs)."""
BESIDE_EXPERTS = LINEARS[:4]
"""Those of a layer whose MLP is a mixture of experts: their matrices are stacked in two tensors, not linear layers."""


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

    @property
    def adapter_weights(self) -> int:
        """Weights of its adapter."""
        return self.rank * (self.inputs + self.outputs)


@dataclass(frozen=True)
class Experts:
    """The experts of a decoder layer, of which each token meets a few (Qwen3-MoE's, OLMoE's, Mixtral's).

    Attributes:
        number: How many there are.
        per_token: How many a token meets.
        hidden: Width of what they read and write.
        intermediate: Width inside one.
    """

    number: int
    per_token: int
    hidden: int
    intermediate: int

    @property
    def weights_of_one(self) -> int:
        """Weights of one expert: gate, up and down."""
        return 3 * self.hidden * self.intermediate

    @property
    def weights_met(self) -> int:
        """Weights that a token meets: its experts' and the router's."""
        return self.per_token * self.weights_of_one + self.number * self.hidden

    def expected(self, tokens: int) -> float:
        """Return how many experts `tokens` tokens meet on average, if each chooses by chance."""
        return self.number * (1 - (1 - self.per_token / self.number) ** tokens)


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
        outside_weights: Weights of the base outside its decoder layers: embeddings, output head, last norm.
        experts: What its layers have for an MLP; None for linear layers.
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
    outside_weights: int
    experts: Experts | None

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
        """Width inside an MLP of linear layers."""
        return next(linear.inputs for linear in self.linears if linear.name == "down_proj")

    @property
    def layer_weights(self) -> int:
        """Weights in the linear layers of one decoder layer."""
        return sum(linear.weights for linear in self.linears)

    @property
    def weights_met(self) -> int:
        """Weights in the matrices of one decoder layer that a token meets."""
        return self.layer_weights + (0 if self.experts is None else self.experts.weights_met)

    @property
    def widest(self) -> int:
        """Weights of a decoder layer's largest matrix."""
        return max(linear.weights for linear in self.linears)


def read_shape(config: PolicyConfig) -> Shape:
    """Return the sizes of a base and its adapters; of the base only the config file is read, no weight.

    Raises:
        ConfigError: The base's config can't be read, its decoder layers aren't Llama's, no layer has the adapters'
            names, or experts have adapters.
    """
    base = build_on_meta(config)
    facts = base.config.get_text_config()
    layer, experts = _decoder_layer(config.base, base)
    matrices = quantizable(base)
    base_weights = sum(weight.numel() for weight in base.parameters())
    inside = facts.num_hidden_layers * sum(weight.numel() for weight in layer.parameters())
    names = [name for name, _ in layer.named_parameters()]
    norms = sum(1 for weight in layer.parameters() if weight.shape == (facts.hidden_size,) and weight.dim() == 1)
    adapters = 0
    obstacle = None if config.lora is not None else "the output head is trained"
    if config.lora is not None:
        with torch.device("meta"):
            adapted = with_two_adapters(base, config.lora)
        adapters = sum(weight.numel() for weight in adapter_weights(adapted, STUDENT).values())
        obstacle = module_obstacle(base)
    linears = tuple(_linear(layer, name) for name in (LINEARS if experts is None else BESIDE_EXPERTS))
    beside_experts = facts.num_hidden_layers * sum(one.adapter_weights for one in linears)
    if experts is not None and (config.lora is None or adapters != beside_experts):
        raise ConfigError(
            f"model.policy.base {config.base!r} is a mixture of experts, and `resd plan` doesn't count what is trained "
            f"in these: set model.policy.lora.target_modules to {list(BESIDE_EXPERTS)}"
        )
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
        quantizable=matrices,
        adapter_weights=adapters,
        head_obstacle=obstacle,
        outside_weights=base_weights - inside,
        experts=experts,
    )


def _decoder_layer(name: str, base: PreTrainedModel) -> tuple[nn.Module, Experts | None]:
    """Return the first decoder layer, and its experts if its MLP is a mixture of them."""
    layers = [module for path, module in base.named_modules() if path.rpartition(".")[0].endswith("layers")]
    found = {path.rpartition(".")[2] for layer in layers for path, m in layer.named_modules() if type(m) is nn.Linear}
    kinds = {tuple((path, weight.shape) for path, weight in layer.named_parameters()) for layer in layers}
    stacks = {path.rpartition(".")[2]: shape for path, shape in next(iter(kinds), ()) if len(shape) == 3}
    facts = base.config.get_text_config()
    if len(kinds) == 1 and found == set(LINEARS) and not stacks:
        return layers[0], None
    if len(kinds) == 1 and found == set(BESIDE_EXPERTS) and stacks.keys() == STACKS:
        number, hidden, intermediate = stacks["down_proj"]
        if stacks["gate_up_proj"] == (number, 2 * intermediate, hidden):  # not gpt-oss's, which are the other way round
            return layers[0], Experts(number, facts.num_experts_per_tok, hidden, intermediate)
    own = f"have {sorted(found | stacks.keys()) or 'none of them'}" if len(kinds) < 2 else "differ among themselves"
    raise ConfigError(
        f"model.policy.base {name!r}: `resd plan` knows decoder layers like Llama's, all alike, with {list(LINEARS)}, "
        f"or with {list(BESIDE_EXPERTS)} and experts like Mixtral's, and this one's {own}"
    )


def _linear(layer: nn.Module, name: str) -> Linear:
    module = next(m for path, m in layer.named_modules() if path.rpartition(".")[2] == name)
    rank = 0
    if isinstance(module, BaseTunerLayer):
        rank = module.r[STUDENT]
        module = module.get_base_layer()
    weight = cast("nn.Linear", module)
    return Linear(name, weight.in_features, weight.out_features, rank)
