"""A random model in the shape of Qwen3 with a tokenizer of one word per token: a text has any length that is asked."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

CONTROLS = ("<|pad|>", "<|im_start|>", "<|im_end|>", "<|unknown|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|> {{ message['content'] }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. Heads have 64 channels, two query heads share a key, and embeddings are tied."""

    hidden: int
    layers: int
    vocab: int


def words(number: int, vocab: int, rng: random.Random) -> str:
    """Return a text of so many tokens."""
    return " ".join(f"w{rng.randrange(len(CONTROLS), vocab)}" for _ in range(number))


def make_random_model(folder: Path, shape: Shape, *, stop_share: float) -> Path:
    """Write a model and its tokenizer in Hugging Face format.

    Args:
        folder: Where to.
        shape: Its sizes.
        stop_share: Share of the vocabulary that ends a response: a random model's responses are then about as long as
            one over it. With 0 none does, and the end-of-turn token is suppressed: all reach their limit.
    """
    vocab = {token: i for i, token in enumerate([*CONTROLS, *(f"w{i}" for i in range(len(CONTROLS), shape.vocab))])}
    raw = Tokenizer(models.WordLevel(vocab, unk_token="<|unknown|>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        unk_token="<|unknown|>",
        additional_special_tokens=["<|im_start|>"],
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=3 * shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.hidden // 64,
        num_key_value_heads=max(1, shape.hidden // 128),
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.1,  # logits then spread by about 1.6, and contexts make a difference
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    stops = [tokenizer.eos_token_id, *range(len(CONTROLS), len(CONTROLS) + round(stop_share * shape.vocab))]
    # What a call of `generate` doesn't say, it reads from here, whoever calls it.
    model.generation_config = GenerationConfig(
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=None if stop_share > 0 else [tokenizer.eos_token_id],
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
