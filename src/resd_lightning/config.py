"""Every setting of a run, as frozen dataclasses; the sentence under a field is its --help text.

A default lives here and nowhere else: YAML files hold differences. Range checks run when the dataclass is built, which
is before any weight is loaded, and name the key as it is written on the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

TeacherKind = Literal["ema", "live", "initial", "trust_region"]
Author = Literal["student", "teacher", "base"]
ObjectiveName = Literal["distillation", "grpo", "mixture"]
OptimizerKind = Literal["adamw", "adamw_8bit"]
Reduction = Literal["sequence_mean", "sequence_sum", "token_mean"]
OperationName = Literal["ADD", "UPDATE", "MERGE", "DELETE"]
Currency = Literal["prompts", "rollouts", "generated_tokens"]


class ConfigError(ValueError):
    """A setting is wrong, or two of them contradict each other; the message names the key to change."""


def require(condition: bool, key: str, rule: str, got: object) -> None:
    """Raise `ConfigError` naming `key` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key} must be {rule}, got {got!r}")


def flat(config: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return a configuration's values by their dotted keys."""
    values: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def differing(configs: Sequence[Mapping[str, str]]) -> dict[str, list[str | None]]:
    """Return the keys, in their order, that configurations as text differ in, with each one's value or None."""
    keys = dict.fromkeys(key for config in configs for key in config)
    rows = {key: [config.get(key) for config in configs] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters on the frozen base; student and teacher get one each."""

    rank: int = 32
    """Rank of the update matrices."""
    alpha: int = 64
    """Scaling numerator: an update is multiplied by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the adapters' input while training, seeded per update."""
    target_modules: str | list[str] = "all-linear"
    """Names of the layers that get an adapter; all-linear is every linear layer but the output head."""

    def __post_init__(self) -> None:
        require(self.rank >= 1, "model.policy.lora.rank", "at least 1", self.rank)
        require(0.0 <= self.dropout < 1.0, "model.policy.lora.dropout", "in [0, 1)", self.dropout)


@dataclass(frozen=True)
class PolicyConfig:
    """The language model and how it is held in memory."""

    base: str
    """Hugging Face name or local folder of the model that is trained; micro-lm is the package's own."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision the base weights are stored in; the compute precision of NF4 layers."""
    quantization: Literal["none", "nf4"] = "none"
    """Store the base's linear layers in 4-bit NF4 (double quantization), or as they are."""
    lora: LoraSettings | None = field(default_factory=LoraSettings)
    """Adapters to train; null trains all weights and keeps a second copy of them for the teacher."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, with much less memory."""
    offload_activations: bool = False
    """Keep what the backward pass needs in the host's memory: slower, for what still does not fit."""
    attention: str = "sdpa"
    """Attention implementation of transformers, for example sdpa, eager or flash_attention_2."""
    packing: Literal["auto", "on", "off"] = "auto"
    """Train on micro-batches without padding, as one sequence; auto is on where attention is flash_attention."""
    chat_template: str | None = None
    """Path of a Jinja chat template that replaces the tokenizer's own; null uses the tokenizer's."""

    @property
    def is_packed(self) -> bool:
        """Whether micro-batches are run without padding.

        Other attention than flash attention computes packed sequences as one, however many there are, and masks them
        from each other.
        """
        return self.packing == "on" or (self.packing == "auto" and self.attention.startswith("flash_attention"))

    def __post_init__(self) -> None:
        require(bool(self.base), "model.policy.base", "a model name or folder", self.base)
        if self.lora is None and self.quantization == "none" and self.dtype != "float32":
            raise ConfigError(
                f"model.policy.dtype {self.dtype} with model.policy.lora null: small steps are lost in 16-bit weights; "
                "set model.policy.dtype float32 (and trainer.precision bf16-mixed for speed)"
            )
        if self.quantization != "none" and self.lora is None:
            raise ConfigError(
                f"model.policy.quantization {self.quantization} stores weights that cannot be trained: "
                "set model.policy.lora, or model.policy.quantization to none for full fine-tuning"
            )


@dataclass(frozen=True)
class TeacherConfig:
    """Whose weights score the student's tokens (RESD Alg. 1 lines 17 and 19)."""

    kind: TeacherKind = "ema"
    """Moving average of the student (ema), the student itself (live), its start (initial), or a mix (trust_region)."""
    ema_rate: float = 1e-4
    """Step of the moving average toward the student after each update; LoRA wants a larger one."""
    trust_region_rate: float = 0.05
    """Share of the student's logits in the trust-region teacher; the rest are the initial model's."""

    def __post_init__(self) -> None:
        require(0.0 <= self.ema_rate <= 1.0, "model.teacher.ema_rate", "in [0, 1]", self.ema_rate)
        require(
            0.0 <= self.trust_region_rate <= 1.0, "model.teacher.trust_region_rate", "in [0, 1]", self.trust_region_rate
        )


@dataclass(frozen=True)
class DistillationConfig:
    """The self-distillation loss (RESD Eq. 1 and 3; App. B and G)."""

    alpha: float = 1.0
    """Divergence: 0 is forward KL, 1 reverse KL, 0.5 Jensen-Shannon."""
    top_k: int | None = 100
    """Vocabulary items compared per position, by the student's probability; null compares the whole vocabulary."""
    tail: bool = True
    """Compare the mass outside the top-k as one more item; otherwise the top-k is renormalised on each side."""
    clip_min: float | None = 0.2
    """Lower bound of the ratio teacher / student; null for none."""
    clip_max: float | None = None
    """Upper bound of the ratio teacher / student; null for none."""
    reduction: Reduction = "sequence_mean"
    """Token mean per sequence (the authors' code), token sum per sequence (the paper), or mean over all tokens."""
    success_weights: bool = False
    """Weigh successes and failures by how rare they are in the batch (App. B)."""
    success_alpha: float = 1.0
    """Exponent a of the weight (1 - s)^a of a success, s being the batch's success rate."""
    success_beta: float = 1.0
    """Exponent b of the weight s^b of a failure."""
    loss: Literal["auto", "fused", "plain"] = "auto"
    """Never hold all logits at once (fused), hold them (plain), or fused where it can be and pays (auto)."""
    chunk_tokens: int = 256
    """Response tokens whose logits the fused loss holds at once."""
    teacher_prefix: Literal["auto", "shared", "repeated"] = "auto"
    """Read what all teacher prompts begin with once an update (shared), with each (repeated), or as it pays (auto)."""
    importance_clip: float | None = 2.0
    """Where a server samples, most that a token weighs by its ratio trainer / server; null weighs all tokens alike."""

    def __post_init__(self) -> None:
        require(self.chunk_tokens >= 1, "model.distillation.chunk_tokens", "at least 1", self.chunk_tokens)
        clip = self.importance_clip
        require(clip is None or clip >= 1, "model.distillation.importance_clip", "at least 1", clip)
        # The divergence's own settings are checked by `distill.divergence.check_divergence_settings`.
        for key, exponent in (("success_alpha", self.success_alpha), ("success_beta", self.success_beta)):
            require(exponent >= 0, f"model.distillation.{key}", "at least 0", exponent)


@dataclass(frozen=True)
class GrpoConfig:
    """GRPO's policy gradient over the group of responses to one prompt (Shao et al. 2024), a baseline of the paper."""

    normalize_by_std: bool = True
    """Divide advantages by the standard deviation of their group; off, only the mean is taken away (Dr. GRPO)."""
    clip_low: float = 0.2
    """The probability ratio of new to old policy has no gradient below 1 minus this where the advantage is negative."""
    clip_high: float = 0.28
    """The ratio has no gradient above 1 plus this where the advantage is positive."""
    kl_coefficient: float = 0.0
    """Weight of the KL divergence from the initial model, by the k3 estimator; 0 is none, as in the paper."""
    reduction: Reduction = "sequence_mean"
    """Token mean per sequence (GRPO's own), token sum per sequence, or mean over all tokens (DAPO, veRL's default)."""

    def __post_init__(self) -> None:
        require(0 <= self.clip_low <= 1, "model.grpo.clip_low", "in [0, 1]", self.clip_low)
        require(self.clip_high >= 0, "model.grpo.clip_high", "at least 0", self.clip_high)
        require(self.kl_coefficient >= 0, "model.grpo.kl_coefficient", "at least 0", self.kl_coefficient)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a linear warm-up and a constant rate after it."""

    learning_rate: float = 1e-6
    """Learning rate after warm-up; the paper's value for full fine-tuning, LoRA wants 10 to 100 times as much."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's moment estimates."""
    warmup_updates: int = 10
    """Updates over which the learning rate rises linearly; 0 starts at the full rate."""
    kind: OptimizerKind = "adamw"
    """Torch's AdamW, or bitsandbytes' with its moments in 8 bits, which needs CUDA."""

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, "model.optimizer.learning_rate", "above 0", self.learning_rate)
        require(all(0 <= beta < 1 for beta in self.betas), "model.optimizer.betas", "two in [0, 1)", self.betas)
        require(self.weight_decay >= 0, "model.optimizer.weight_decay", "at least 0", self.weight_decay)
        require(self.warmup_updates >= 0, "model.optimizer.warmup_updates", "at least 0", self.warmup_updates)


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn for one purpose."""

    temperature: float = 1.0
    """Divides the logits before sampling; 0 is greedy."""
    top_p: float = 0.95
    """Sample from the smallest set of tokens that holds this much probability."""
    max_new_tokens: int = 1024
    """Longest response, in tokens; a longer one is truncated and counted."""

    def __post_init__(self) -> None:
        require(self.temperature >= 0, "sampling.temperature", "at least 0", self.temperature)
        require(0 < self.top_p <= 1, "sampling.top_p", "in (0, 1]", self.top_p)
        require(self.max_new_tokens >= 1, "sampling.max_new_tokens", "at least 1", self.max_new_tokens)


@dataclass(frozen=True)
class ContextConfig:
    """The playbook, the solution buffer, and who writes them (RESD Alg. 1 lines 6 to 11; App. D)."""

    scope: Literal["global", "example"] = "global"
    """One playbook for the run, or one for each example."""
    initial_playbook: str | None = None
    """File (.json or .md) that a run's playbook starts from, as `resd playbook export` writes it; null starts empty."""
    concise: Literal["prioritized", "staleness"] = "staleness"
    """How a playbook is pruned: staleness goes by age, prioritized keeps helpful entries only."""
    max_entries: int | None = 120
    """Budget of a playbook, in entries; null for none."""
    concise_every: int = 4
    """Prune every this many context updates of a playbook, whatever its size."""
    operations: tuple[OperationName, ...] = ("ADD",)
    """Operations the curator may use; the authors' code has ADD only."""
    keep_solutions: bool = False
    """Keep solutions of prompts that have left the stream; otherwise the buffer holds the current batch's."""
    author: Author = "student"
    """Who writes reflections, tags and curation: the student (as the paper), the teacher, or the untrained base."""
    guided_json: bool = False
    """Hold reflections and curator answers to their JSON schema while sampling (needs the extra `guided`)."""
    templates: str | None = None
    """Folder with reflect.jinja, tag.jinja, curate.jinja or teacher.jinja that replace the package's own, or micro."""
    max_prompt_tokens: int = 8192
    """Longest reflector or curator prompt; sections that do not fit are dropped, then the call is skipped."""
    reflect: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of reflections on failures."""
    tag: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of the light reflection on successes."""
    curate: SamplingConfig = field(default_factory=SamplingConfig)
    """Sampling of the curator."""

    def __post_init__(self) -> None:
        budget = self.max_entries
        require(budget is None or budget >= 0, "model.context.max_entries", "at least 0", budget)
        if self.initial_playbook is not None and self.scope != "global":
            raise ConfigError(
                f"model.context.initial_playbook is one playbook for all: model.context.scope must be global, got "
                f"{self.scope!r}"
            )
        require(self.concise_every >= 1, "model.context.concise_every", "at least 1", self.concise_every)
        require(self.max_prompt_tokens >= 1, "model.context.max_prompt_tokens", "at least 1", self.max_prompt_tokens)
        require(len(self.operations) > 0, "model.context.operations", "at least one operation", self.operations)
        if self.guided_json and find_spec("xgrammar") is None:
            raise ConfigError(
                "model.context.guided_json needs the extra `guided`: pip install 'resd-lightning[guided]'"
            )


@dataclass(frozen=True)
class TeacherPromptConfig:
    """Which sections the teacher reads (RESD Alg. 1 lines 14 and 15)."""

    playbook: bool = True
    """Show the playbook."""
    reflection: bool = True
    """Show the reflection on this response."""
    trial: bool = True
    """Show the failed response itself, without its thinking."""
    feedback: bool = True
    """Show the environment's feedback."""
    solution: bool = True
    """Show a solution: the response itself if it succeeded, else a successful peer, else the buffer's."""
    feedback_with_solution: bool = False
    """Show feedback also where a solution is shown; off in the authors' defaults."""
    self_success: Literal["own", "peer", "none"] = "own"
    """Solution shown for a success: itself (SDPO+ss), another one of its group (SDPO's authors), or none (RESD's)."""
    max_tokens: int = 8192
    """Longest teacher prompt; what does not fit is dropped section by section, then the sample is skipped."""

    def __post_init__(self) -> None:
        require(self.max_tokens >= 1, "model.teacher_prompt.max_tokens", "at least 1", self.max_tokens)


@dataclass(frozen=True)
class BudgetConfig:
    """What a run may spend on training; it stops with the update that reaches the first of its limits."""

    prompts: int | None = None
    """Training prompts drawn, each counted once whatever the updates on it; null for no limit."""
    rollouts: int | None = None
    """Responses sampled for training; null for no limit."""
    generated_tokens: int | None = None
    """Tokens generated for training: rollouts, reflections, tags and curation; null for no limit."""

    def __post_init__(self) -> None:
        for currency, limit in self.limits.items():
            require(limit >= 1, f"budget.{currency}", "at least 1", limit)

    @property
    def limits(self) -> dict[Currency, int]:
        """The limits that are set."""
        every: dict[Currency, int | None] = {
            "prompts": self.prompts,
            "rollouts": self.rollouts,
            "generated_tokens": self.generated_tokens,
        }
        return {currency: limit for currency, limit in every.items() if limit is not None}
