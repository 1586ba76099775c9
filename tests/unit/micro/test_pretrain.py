from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from resd_lightning.micro import pretrain as module
from resd_lightning.micro.pretrain import pretrain

SMALL = {"total_tokens": 24_000, "batch_tokens": 2_000, "hidden": 32, "layers": 2, "heads": 2, "warm_up_steps": 2}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_the_same_command_makes_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        pretrain(tmp_path / name, seed=seed, **SMALL)
    one, again, other = (weights(tmp_path / name) for name in ("one", "again", "other"))
    assert all(one[name].equal(again[name]) for name in one)
    assert not all(one[name].equal(other[name]) for name in one)


def test_it_writes_a_hugging_face_folder_and_what_made_it(tmp_path: Path) -> None:
    pretrain(tmp_path / "out", **SMALL)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "pretraining.json"} <= names
    made_by = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert made_by["arguments"]["total_tokens"] == SMALL["total_tokens"]
    assert made_by["trained"]["tokens"] >= SMALL["total_tokens"]


def test_a_stopped_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOL", 64)
    monkeypatch.setattr(module, "SAVE_EVERY_S", 0.0)
    pretrain(tmp_path / "whole", **SMALL)
    step, calls = module._step, 0

    def stop_late(*arguments: object) -> float:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module, "_step", stop_late)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tmp_path / "stopped", **SMALL)
    assert 0 < json.loads((tmp_path / "stopped" / "pretraining.json").read_text())["trained"]["steps"] < 8
    with pytest.raises(ValueError, match="another seed"):
        pretrain(tmp_path / "stopped", seed=1, **SMALL)
    pretrain(tmp_path / "stopped", **SMALL)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(whole[name].equal(resumed[name]) for name in whole)
