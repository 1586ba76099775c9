"""A tiny random model and a toy task: the whole package runs on them in seconds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedTokenizerFast, Qwen3MoeConfig

from resd_lightning.config import LoraSettings, PolicyConfig, TeacherConfig
from resd_lightning.policy.load import load_policy, load_tokenizer
from resd_lightning.policy.views import Policy

torch.set_num_threads(1)  # models this small only lose time between threads

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token per byte and ChatML control tokens: it encodes any text exactly."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def make_base(folder: Path, config_class: type[PretrainedConfig], **settings: object) -> Path:
    """Write a random model of a few thousand weights, in Hugging Face format, and return its folder."""
    tokenizer = byte_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = config_class(
        vocab_size=len(tokenizer),
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
        **{**sizes, **settings},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_base(folder: Path, *, hidden: int = 32, layers: int = 2) -> Path:
    """Write a tiny random Llama, and return its folder."""
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": layers}
    return make_base(folder, LlamaConfig, max_position_embeddings=16384, tie_word_embeddings=False, **sizes)


def make_tiny_mixture(folder: Path) -> Path:
    """Write a tiny random Qwen3 of 8 experts, of which a token meets 2, and return its folder."""
    experts = {"moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2}
    return make_base(folder, Qwen3MoeConfig, head_dim=8, max_position_embeddings=16384, **experts)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random chat model."""
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


SMALL_LORA = LoraSettings(rank=2, alpha=4)


def make_policy(
    base: Path, teacher: TeacherConfig | None = None, *, lora: LoraSettings | None = SMALL_LORA, **config: object
) -> Policy:
    """Return student and teacher on a base as it comes from a file, the adapters drawn from a fixed seed."""
    policy_config = PolicyConfig(str(base), **{"dtype": "float32", "lora": lora, **config})
    torch.manual_seed(0)
    return load_policy(policy_config, teacher or TeacherConfig(), load_tokenizer(policy_config))


@torch.no_grad()
def move(weights: Iterable[Tensor], *, by: float = 0.1, seed: int = 1) -> None:
    """Add noise to weights, as training would: a new adapter changes no logit before that."""
    noise = torch.Generator().manual_seed(seed)
    for weight in weights:
        weight.add_(by * torch.randn(weight.shape, generator=noise).to(weight.dtype))
