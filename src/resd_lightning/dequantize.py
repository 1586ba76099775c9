"""`resd dequantize`: an NF4 base as plain weights, so that a server holds the same ones as the trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from torch import nn
from transformers import PreTrainedModel

from resd_lightning.config import ConfigError, PolicyConfig, require
from resd_lightning.policy.load import load_base, load_tokenizer
from resd_lightning.run_folder import replaced_folder

logger = logging.getLogger(__name__)


def dequantize(
    base: str, out: str, dtype: Literal["float32", "bfloat16"] = "bfloat16", device: str | None = None
) -> None:
    """Write a base whose linear layers went to 4-bit NF4 and back, in Hugging Face format, with its tokenizer.

    A run with model.policy.quantization nf4 computes with these weights; a server that is started with them samples
    from the same model.

    Args:
        base: The run's model.policy.base.
        out: Folder to write; it must not exist.
        dtype: The run's model.policy.dtype, which the weights are dequantized to.
        device: Where the weights are quantized, for example cuda; null takes a GPU where there is one.

    Raises:
        ConfigError: The folder exists, or the base can't be read.
    """
    target = Path(out)
    require(not target.exists(), "--out", "a folder that doesn't exist", out)
    place = _device(device)
    policy = PolicyConfig(base, dtype=dtype, quantization="nf4")
    tokenizer = load_tokenizer(policy)
    model = load_base(policy, place)
    count = replace_quantized(model)
    require(count > 0, "base", "a model with linear layers to quantize", base)
    with replaced_folder(target) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
    logger.info("dequantized %d layers to %s, in %s", count, dtype, target)


@torch.no_grad()
def replace_quantized(model: PreTrainedModel) -> int:
    """Put a plain layer in the place of each 4-bit one, with the weights that it computes with; return how many."""
    found = [(name, module) for name, module in model.named_modules() if isinstance(module, Linear4bit)]
    for name, layer in found:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(layer.compute_dtype)
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.data.to(layer.compute_dtype), requires_grad=False)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, plain)
    model.hf_quantizer = None
    model.is_quantized = False
    for attribute in ("quantization_config", "_pre_quantization_dtype"):
        if attribute in model.config.__dict__:
            delattr(model.config, attribute)
    return len(found)


def _device(name: str | None) -> torch.device:
    try:
        return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: {' '.join(str(error).split())}") from error
