from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conftest import make_tiny_base
from resd_lightning.cli import main
from resd_lightning.config import ConfigError, PolicyConfig
from resd_lightning.dequantize import dequantize
from resd_lightning.policy.load import load_base

IDS = torch.tensor([[5, 60, 7, 80, 9, 100]])


@pytest.fixture(scope="module")
def nf4_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model whose matrices NF4 can pack: it takes blocks of 64 weights."""
    return make_tiny_base(tmp_path_factory.mktemp("nf4-base"), hidden=64)


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 1e-5), ("bfloat16", 0.05)])
@torch.no_grad()
def test_dequantized_weights_say_what_the_nf4_base_says(
    nf4_base: Path, tmp_path: Path, dtype: Literal["float32", "bfloat16"], gap: float
) -> None:
    dequantize(str(nf4_base), str(tmp_path / "plain"), dtype, "cpu")
    quantized = load_base(PolicyConfig(str(nf4_base), dtype=dtype, quantization="nf4")).eval()
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", dtype="auto").eval()
    original = AutoModelForCausalLM.from_pretrained(nf4_base, dtype=dtype).eval()
    assert plain.dtype == getattr(torch, dtype)
    assert "quantization_config" not in plain.config.to_dict()
    expected = quantized(input_ids=IDS).logits.float()
    scale = expected.abs().max()
    assert (plain(input_ids=IDS).logits.float() - expected).abs().max() <= gap * scale
    assert (original(input_ids=IDS).logits.float() - expected).abs().max() > 2 * gap * scale


def test_the_tokenizer_comes_along(nf4_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["resd"])
    assert main(["dequantize", str(nf4_base), str(tmp_path / "plain")]) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(nf4_base).chat_template
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]


def test_a_folder_that_exists_is_left_alone(nf4_base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--out must be a folder that doesn't exist"):
        dequantize(str(nf4_base), str(tmp_path))
