"""Loads the tokenizer and the base model, and checks what can be checked before any weight is read."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.pytorch_utils import Conv1D

from resd_lightning.config import ConfigError, PolicyConfig, TeacherConfig
from resd_lightning.micro.shipped import FOLDER, MICRO_LM
from resd_lightning.policy.head import logit_transform_of
from resd_lightning.policy.layers import obstacle_to_packing
from resd_lightning.policy.views import Policy

logger = logging.getLogger(__name__)

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class BaseFacts:
    """What a base model's small files tell about it.

    Attributes:
        vocab_size: Number of output logits.
        max_positions: Longest sequence the model was made for, in tokens.
        architecture: Model type and sizes, as one string: tells a foreign checkpoint.
        logit_transform: What its config says it does to logits after the output head; None where that is nothing.
    """

    vocab_size: int
    max_positions: int
    architecture: str
    logit_transform: str | None


def source_of(base: str) -> str:
    """Return what transformers is to load: the name or folder as it is, or the package's own folder for micro-lm."""
    return str(FOLDER) if base == MICRO_LM else base


def load_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """Return the base's tokenizer, set up for left-padded batches.

    Raises:
        ConfigError: The base can't be read, or has no chat template and none is configured.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(source_of(config.base))
    except (OSError, ValueError) as error:
        raise _unreadable(config.base, "tokenizer", error) from error
    if config.chat_template is not None:
        path = Path(config.chat_template)
        if not path.is_file():
            raise ConfigError(f"model.policy.chat_template: no file at {path}")
        tokenizer.chat_template = path.read_text()
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"model.policy.base {config.base!r} has no chat template, so it is not an instruction-tuned model: "
            "choose one that is, or give model.policy.chat_template"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.policy.base {config.base!r}: its tokenizer has no end-of-sequence token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # only ever behind an attention mask
    tokenizer.padding_side = "left"
    return tokenizer


def read_base_facts(config: PolicyConfig) -> BaseFacts:
    """Return the base's sizes from its config file alone.

    Raises:
        ConfigError: The base can't be read.
    """
    try:
        base = AutoConfig.from_pretrained(source_of(config.base)).get_text_config()
    except (OSError, ValueError) as error:
        raise _unreadable(config.base, "config", error) from error
    sizes = f"{base.model_type} {base.num_hidden_layers}x{base.hidden_size} vocab {base.vocab_size}"
    return BaseFacts(base.vocab_size, base.max_position_embeddings, sizes, logit_transform_of(base))


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


def quantizable(base: PreTrainedModel) -> tuple[int, ...]:
    """Return the sizes of the matrices that NF4 stores in 4 bits: all linear layers but the output head.

    GPT-2's, transformers' `Conv1D`, are linear layers too.
    """
    head = base.get_output_embeddings()
    layers = (m for m in base.modules() if (type(m) is nn.Linear or isinstance(m, Conv1D)) and m is not head)
    return tuple(layer.weight.numel() for layer in layers)


def check_quantization(config: PolicyConfig) -> None:
    """Refuse NF4 where it would leave most of a model as it is, before any weight is read.

    bitsandbytes quantizes linear layers. The experts of a mixture are none: transformers stacks them in one tensor.

    Raises:
        ConfigError: Most weights of the decoder layers would stay in `model.policy.dtype`.
    """
    if config.quantization == "none":
        return
    base = build_on_meta(config)
    ends = [end.weight for end in (base.get_input_embeddings(), base.get_output_embeddings()) if end is not None]
    matrices = [w.numel() for w in base.parameters() if w.dim() > 1 and not any(w is end for end in ends)]
    share = sum(quantizable(base)) / max(1, sum(matrices))
    if share < 0.5:
        has_experts = any(weight.dim() == 3 for weight in base.parameters())
        raise ConfigError(
            f"model.policy.quantization nf4 would quantize {share:.0%} of {config.base!r}'s layers: bitsandbytes knows "
            f"linear layers{', which the stacked experts here are not' if has_experts else ''}. Set "
            "model.policy.quantization to none"
        )


def _unreadable(base: str, what: str, error: Exception) -> ConfigError:
    where = "the folder" if Path(base).is_dir() else "there is no such folder, and the hub's model"
    reason = " ".join(str(error).split())
    return ConfigError(f"model.policy.base {base!r}: {where} has no readable {what}: {reason}")


def load_base(config: PolicyConfig, device: torch.device = CPU) -> PreTrainedModel:
    """Return the base model as `config` stores it: NF4 on `device`, else bf16 or fp32 on the CPU, in train mode.

    Raises:
        ConfigError: Its weights can't be read, or the attention or quantization asked for isn't there.
    """
    dtype = DTYPES[config.dtype]
    quantization = None
    if config.quantization == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source_of(config.base),
            dtype=dtype,
            quantization_config=quantization,
            attn_implementation=config.attention,
            # 4-bit weights are packed where they are loaded: on the trainer's device, not on whatever GPU is visible.
            device_map=None if quantization is None else {"": device},
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"model.policy.base {config.base!r} can't be loaded with quantization {config.quantization} and "
            f"attention {config.attention}: {error}"
        ) from error
    if config.quantization == "nf4":
        keep_gradients_exact(model)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # The engine samples by itself. What a base recommends for generation (a repetition penalty, say) would make
    # rollouts another distribution than the one that is trained, and `generate` merges it into every call.
    shipped = model.generation_config
    model.generation_config = GenerationConfig(eos_token_id=shipped.eos_token_id, bos_token_id=shipped.bos_token_id)
    return model.train()


def keep_gradients_exact(model: PreTrainedModel) -> None:
    """Keep bitsandbytes from repacking 4-bit weights in place for its CPU inference kernel.

    On CPUs with AVX512-BF16 a forward without gradient repacks the weight for a kernel that has no autograd; training
    forwards after it then use the repacked weight and return wrong gradients.
    """
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def load_policy(
    config: PolicyConfig, teacher: TeacherConfig, tokenizer: PreTrainedTokenizerBase, device: torch.device = CPU
) -> Policy:
    """Return student and teacher on one loaded base."""
    logger.info("loading %s (%s, quantization %s)", config.base, config.dtype, config.quantization)
    base = load_base(config, device)
    is_packed = config.is_packed and _can_be_packed(base, config)
    return Policy(base, tokenizer, lora=config.lora, teacher=teacher, is_packed=is_packed)


def _can_be_packed(base: PreTrainedModel, config: PolicyConfig) -> bool:
    """Return whether packed sequences stay apart.

    Raises:
        ConfigError: They don't, and `model.policy.packing` is on.
    """
    obstacle = obstacle_to_packing(base)
    if obstacle is not None and config.packing == "on":
        raise ConfigError(f"model.policy.packing on can't be: {obstacle}")
    if obstacle is not None:
        logger.info("model.policy.packing auto: off, as %s", obstacle)
    return obstacle is None
