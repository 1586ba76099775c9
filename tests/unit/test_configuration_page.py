"""docs/configuration.md says what the code says."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, is_dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

from resd_lightning import callbacks, config
from resd_lightning.config import LoraSettings, SamplingConfig
from resd_lightning.run_cli import SAMPLING_KEYS

ROOT = Path(__file__).resolve().parents[2]
VERLS = {
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "data.shuffle",
    "data.seed",
    "model.lora_rank",
    "model.enable_gradient_checkpointing",
}
"""Options of veRL, which has sections of the same names."""
PAGE = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("write_config_reference", ROOT / "scripts" / "write_config_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_settings_is_what_its_script_writes(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["resd"])
    written = script.page()
    differing = set(written.splitlines()) ^ set(PAGE.splitlines())
    assert written == PAGE, f"run `python scripts/write_config_reference.py`; lines that differ: {sorted(differing)}"


def test_every_field_and_callback_has_its_place_on_the_page() -> None:
    dataclasses = [value for value in vars(config).values() if isinstance(value, type) and is_dataclass(value)]
    sampling = {field.name for cls in dataclasses for field in fields(cls) if field.type == SamplingConfig.__name__}
    for cls in dataclasses:
        for field in fields(cls):
            end = f"`{field.name}` |" if cls is SamplingConfig else f".{field.name}` |"
            assert end in PAGE or field.name in sampling, f"{cls.__name__}.{field.name}"
    assert all(f"`model.policy.lora.{field.name}`" in PAGE for field in fields(LoraSettings))
    assert all(f"`{name}`" in PAGE for name in callbacks.__all__)
    assert "SUPPRESS" not in PAGE


@pytest.mark.parametrize(
    "path", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda path: path.name
)
def test_settings_that_pages_name_exist(path: Path) -> None:
    known = set(re.findall(r"^\| `([a-z_.]+)` \|", PAGE, re.MULTILINE))
    known |= {f"{key}.{field.name}" for key in SAMPLING_KEYS for field in fields(SamplingConfig)}
    sections = {key.rpartition(".")[0] for key in known}
    named = re.findall(
        r"`(?:--)?((?:model|data|budget)\.[a-z_.]*[a-z])(?:[ :][^`]*)?`", path.read_text(encoding="utf-8")
    )
    foreign = {name for name in named if path.name == "coming_from_trl_or_verl.md" and name in VERLS}
    for name in set(named) - foreign:
        is_init_arg = ".init_args." in name or name.startswith("data.task.")
        assert name in known or name in sections or is_init_arg, name
