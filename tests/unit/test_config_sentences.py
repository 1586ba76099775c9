"""Every setting says in one sentence what it is: that sentence is its --help."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from inspect import getdoc, getsource, signature

import pytest

from resd_lightning import config
from resd_lightning.cli import main
from resd_lightning.config import ContextConfig, LoraSettings, SamplingConfig
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import ResdModule
from resd_lightning.run_cli import SAMPLING_KEYS

DATACLASSES = [value for value in vars(config).values() if isinstance(value, type) and is_dataclass(value)]


def sentences(cls: type) -> Iterator[tuple[str, str]]:
    """Yield each field with the text that stands under it."""
    (tree,) = ast.parse(getsource(cls)).body
    assert isinstance(tree, ast.ClassDef)
    for node, below in zip(tree.body, [*tree.body[1:], ast.Pass()], strict=True):
        if isinstance(node, ast.AnnAssign):
            assert isinstance(node.target, ast.Name)
            has_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            yield node.target.id, str(below.value.value) if has_text else ""


@pytest.mark.parametrize("cls", DATACLASSES)
def test_every_field_of_the_configuration_has_a_sentence(cls: type) -> None:
    said = dict(sentences(cls))
    assert said.keys() == {field.name for field in fields(cls)}
    for name, sentence in said.items():
        assert re.fullmatch(r"[A-Z0-9].{9,118}\.", sentence), f"{cls.__name__}.{name}: {sentence!r}"


@pytest.mark.parametrize("cls", [ResdModule, RolloutDataModule])
def test_every_argument_of_model_and_data_has_a_sentence(cls: type) -> None:
    documentation = getdoc(cls) or ""
    for name in set(signature(cls).parameters) - {"self"}:
        assert re.search(rf"^ +{name}: [A-Z].{{7,}}\.$", documentation, re.MULTILINE), f"{cls.__name__}: {name}"


def test_the_keys_of_sampling_are_all_there_are() -> None:
    data = signature(RolloutDataModule).parameters.values()
    keys = {f"data.{argument.name}" for argument in data if argument.annotation == SamplingConfig.__name__}
    keys |= {f"model.context.{field.name}" for field in fields(ContextConfig) if field.type == SamplingConfig.__name__}
    assert keys == set(SAMPLING_KEYS)


def help_of(command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what is shown, without whitespace: lines break where they like."""
    monkeypatch.setattr("sys.argv", ["resd"])
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 0
    return "".join(capsys.readouterr().out.split())


def test_help_shows_the_sentences(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # A section within a section is shown under its class's own sentence, an optional one on request (below).
    plain = [cls for cls in DATACLASSES if cls is not LoraSettings]
    sections = {field.name for cls in plain for field in fields(cls) if field.type == SamplingConfig.__name__}
    said = [sentence for cls in plain for name, sentence in sentences(cls) if name not in sections]
    said += ["Prompts per update.", "Folder of the run; null names it itself."]
    shown = help_of(["fit", "--help"], capsys, monkeypatch)
    for sentence in said:
        assert "".join(sentence.split()) in shown, sentence


def test_an_optional_sections_sentences_are_shown_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = help_of(["fit", "--model.policy.lora.help"], capsys, monkeypatch)
    for _, sentence in sentences(LoraSettings):
        assert "".join(sentence.split()) in shown, sentence
