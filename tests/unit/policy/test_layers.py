from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import cast

import pytest
from transformers import LlamaConfig, MistralConfig, PretrainedConfig, PreTrainedModel, Qwen3NextConfig

from resd_lightning.config import ConfigError, PolicyConfig
from resd_lightning.policy.layers import obstacle_to_packing
from resd_lightning.policy.load import _can_be_packed


def model(config: PretrainedConfig) -> PreTrainedModel:
    """Return as much of a model as is asked: its config."""
    return cast("PreTrainedModel", SimpleNamespace(config=config))


HYBRID = model(Qwen3NextConfig(num_hidden_layers=4))


def test_attention_keeps_packed_sequences_apart_and_a_recurrent_state_does_not() -> None:
    assert obstacle_to_packing(model(LlamaConfig())) is None
    assert obstacle_to_packing(model(MistralConfig(sliding_window=4))) is None
    assert "the base has layers of the kind Linear" in str(obstacle_to_packing(HYBRID))


def test_packing_that_would_mix_sequences_is_refused_where_asked_for_and_else_left_off(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(
        ConfigError, match=r"model\.policy\.packing on can't be: the base has layers of the kind Linear"
    ):
        _can_be_packed(HYBRID, PolicyConfig("base", packing="on"))
    with caplog.at_level(logging.INFO, logger="resd_lightning.policy.load"):
        assert not _can_be_packed(HYBRID, PolicyConfig("base", attention="flash_attention_2"))
    assert "model.policy.packing auto: off, as the base has layers of the kind Linear" in caplog.text
    assert _can_be_packed(model(LlamaConfig()), PolicyConfig("base", packing="on"))
