"""Writes docs/configuration.md: every setting with its type, default and sentence, from the command line's own parser.

    python scripts/write_config_reference.py

`tests/unit/test_configuration_page.py` fails while the page is not what this would write.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from inspect import getdoc, isabstract
from pathlib import Path
from types import ModuleType, UnionType
from typing import Literal, Union, get_args, get_origin

import docstring_parser
import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from resd_lightning import callbacks, config, rollout, tasks
from resd_lightning.algorithm import AlgorithmCallback
from resd_lightning.config import LoraSettings, SamplingConfig
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import ResdModule
from resd_lightning.rollout.engine import Engine
from resd_lightning.rollout.scripted import ScriptedEngine
from resd_lightning.run_cli import OPTIONS_OF_A_CALL, ResdCLI
from resd_lightning.tasks.base import Task
from resd_lightning.training import DERIVED, GRADIENT_CLIP_VAL, REFUSED

PAGE = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"

ALWAYS_THERE = (
    "WatchLoss",
    "WatchPlaybook",
    "CountSuccesses",
    "RecordMetrics",
    "StopAtBudget",
    "WriteTranscripts",
    "WriteDiagnostics",
    "TensorBoardText",
    "TensorBoardLayout",
    "ValidateFirst",
    "KeepCheckpoints",
    "WritePredictions",
)
"""Observers that the command line adds by itself."""

LIGHTNINGS = {
    "seed_everything": "Seed of the run: of every sample, draw and dropout mask.",
    "ckpt_path": "Go on from this checkpoint; last is the run folder's latest state.",
}
"""Sentences of options that are Lightning's, in the words of what they do here."""


@dataclass(frozen=True)
class Setting:
    """One row of a table.

    Attributes:
        key: As the command line has it.
        type: What it accepts, in words.
        default: As YAML has it.
        sentence: What it says in --help.
    """

    key: str
    type: str
    default: str
    sentence: str


class ReadingCLI(ResdCLI):
    """Hands over the parser of `resd fit` and stops before it reads anything."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return fit alone: its options hold those of the others."""
        return {"fit": ResdCLI.subcommands()["fit"]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Keep the parser."""
        super().add_arguments_to_parser(parser)
        self.fit_parser = parser

    def parse_arguments(self, parser: LightningArgumentParser, args: object) -> None:
        """Stop here."""
        raise ParserIsReadError


class ParserIsReadError(Exception):
    """What was wanted is there."""


def settings_of(parser: ArgumentParser) -> Iterator[Setting]:
    """Yield a parser's settings in order, without those that only ask for help or name a file of a section."""
    for action in parser._actions:
        kind = getattr(action, "_typehint", None) or action.type
        if kind is None or action.dest.endswith(".help") or action.dest == "help":
            continue
        if action.dest == "data.seed" or (isinstance(kind, type) and kind.__module__.startswith("jsonargparse")):
            continue  # seed_everything sets the former
        sentence = LIGHTNINGS.get(action.dest, " ".join(str(action.help).split()))
        default = "required" if action.required else as_yaml(action.default)
        kinds = "whole number" if action.dest == "seed_everything" else type_in_words(kind)
        yield Setting(action.dest, kinds, default, sentence)


def settings_of_class(cls: type, prefix: str) -> list[Setting]:
    """Return the arguments of a class as settings under a prefix."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(cls, prefix, fail_untyped=False)
    return [own_sentence(cls, setting) for setting in settings_of(parser)]


def own_sentence(cls: type, setting: Setting) -> Setting:
    """Return a setting with its parent's sentence where the class only refers to it."""
    if not setting.sentence.startswith("See `"):
        return setting
    name = setting.key.rpartition(".")[2]
    for parent in cls.__mro__[1:]:
        for argument in docstring_parser.parse(getdoc(parent) or "").params:
            if argument.arg_name == name and not (argument.description or "").startswith("See `"):
                return Setting(setting.key, setting.type, setting.default, " ".join(str(argument.description).split()))
    return setting


def type_in_words(kind: object) -> str:
    """Return what a type accepts, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(type_in_words(one) for one in sorted(inner, key=lambda one: one is type(None)))
    if kind is type(None):
        return "null"
    if origin is tuple and inner[-1] is not Ellipsis:
        return f"{len(inner)} x {type_in_words(inner[0])}"
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return f"list of {type_in_words(inner[0])}"
    if isinstance(origin, type) and inner:
        return "map"
    names: dict[object, str] = {str: "text", float: "number", int: "whole number", bool: "true or false", Path: "path"}
    if kind in names:
        return names[kind]
    if isinstance(kind, type) and is_dataclass(kind):
        return "settings"
    return "class" if isinstance(kind, type) else str(getattr(kind, "__name__", kind))


def as_yaml(value: object) -> str:
    """Return a value as it stands in a YAML file, in backticks."""
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix('...' + chr(10)).strip()}`"


def table(settings: Sequence[Setting], heads: Sequence[str] = ("key", "type", "default", "")) -> str:
    """Return settings as a Markdown table."""
    rows = [(f"`{setting.key}`", setting.type, setting.default, as_markdown(setting.sentence)) for setting in settings]
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def as_markdown(sentence: str) -> str:
    """Return a sentence with what Markdown would read otherwise as it is meant."""
    return sentence.replace("|", "\\|").replace("\\d", "\\\\d").replace("^", "\\^")


def first_sentence(cls: type) -> str:
    """Return the docstring's first paragraph as one line."""
    return " ".join((getdoc(cls) or "").split("\n\n")[0].split())


def concrete(base: type, package: ModuleType) -> list[type]:
    """Return the package's classes of a kind that a configuration can name, by their names."""
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)
    waiting, found = [base], set()
    while waiting:
        for child in waiting.pop().__subclasses__():
            waiting.append(child)
            if child.__module__.startswith(f"{package.__name__}.") and not isabstract(child):
                found.add(child)
    return sorted(found, key=lambda cls: cls.__name__)


def sections(settings: Sequence[Setting]) -> dict[str, list[Setting]]:
    """Return settings by what stands before their last name."""
    by_section: dict[str, list[Setting]] = {}
    for setting in settings:
        by_section.setdefault(setting.key.rpartition(".")[0], []).append(setting)
    return by_section


def class_of_section(section: str) -> type:
    """Return the dataclass behind a section of the model's settings."""
    names = {"policy": "Policy", "teacher": "Teacher", "distillation": "Distillation", "grpo": "Grpo"}
    names |= {"optimizer": "Optimizer", "context": "Context", "teacher_prompt": "TeacherPrompt"}
    found: type = getattr(config, f"{names[section.removeprefix('model.')]}Config")
    return found


def class_tables(classes: Sequence[type]) -> Iterator[str]:
    """Yield a heading, a sentence and a table for each class."""
    for cls in classes:
        yield f"### `{cls.__name__}`"
        yield first_sentence(cls)
        yield f"`class_path: {cls.__module__}.{cls.__qualname__}`"
        settings = settings_of_class(cls, "init_args")
        yield table([shortened(setting, "init_args") for setting in settings]) if settings else "It has no settings."


def shortened(setting: Setting, prefix: str) -> Setting:
    """Return a setting under its name behind the prefix."""
    return Setting(setting.key.removeprefix(f"{prefix}."), setting.type, setting.default, setting.sentence)


def page() -> str:
    """Return the page."""
    return "\n\n".join(re.sub(r"[ \t]+$", "", part, flags=re.MULTILINE) for part in parts()) + "\n"


def parts() -> Iterator[str]:
    """Yield the page's paragraphs and tables."""
    settings = list(settings_of(fit_parser()))
    by_section = sections(settings)
    yield "# Every setting"
    yield INTRODUCTION
    yield "## The run"
    run = [s for s in by_section[""] if s.key in ("seed_everything", "run_dir", "overwrite", "ckpt_path")]
    yield table(run)
    kept_out = ", ".join(f"`{name}`" for name in OPTIONS_OF_A_CALL)
    yield f"These belong to one call of the command and are left out of a run's `config.yaml`: {kept_out}."
    yield "## Budget"
    yield "A run stops with the update that reaches the first of its limits ([Comparing methods](comparing.md))."
    yield table(by_section["budget"])
    yield "## Model"
    yield f"`model` is a [`{ResdModule.__name__}`](../src/resd_lightning/module.py)."
    yield table(by_section["model"])
    for section in (name for name in by_section if name.startswith("model.") and name.count(".") == 1):
        yield f"## {section}"
        yield first_sentence(class_of_section(section))
        yield table(by_section[section])
        if section == "model.policy":
            yield "### model.policy.lora"
            yield first_sentence(LoraSettings)
            yield table(settings_of_class(LoraSettings, "model.policy.lora"))
    yield "## Data"
    yield f"`data` is a [`{RolloutDataModule.__name__}`](../src/resd_lightning/datamodule.py)."
    yield table(by_section["data"])
    yield "## Sampling"
    yield f"{first_sentence(SamplingConfig)} The five purposes have defaults of their own:"
    yield sampling_table(by_section)
    yield "## Engines"
    yield "`data.engine` has a `class_path` and, under `init_args`, the settings of that class."
    yield from class_tables([engine for engine in concrete(Engine, rollout) if engine is not ScriptedEngine])
    yield "## Tasks"
    yield "`data.task` likewise. [Your own task](your_own_task.md) says how to write one."
    yield from class_tables(concrete(Task, tasks))
    yield from callback_parts()
    yield from trainer_parts()


def sampling_table(by_section: dict[str, list[Setting]]) -> str:
    """Return the sampling settings of each purpose beside each other."""
    purposes = [name for name in by_section if {s.key.rpartition(".")[2] for s in by_section[name]} == SAMPLING_FIELDS]
    rows = [["key", "type", *(f"`{name}`" for name in purposes), ""], ["---"] * (len(purposes) + 3)]
    for setting in zip(*(by_section[name] for name in purposes), strict=True):
        first = setting[0]
        rows.append(
            [f"`{first.key.rpartition('.')[2]}`", first.type, *(one.default for one in setting), first.sentence]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def callback_parts() -> Iterator[str]:
    """Yield the callbacks: lines of the algorithm, those that can be added, those that are always there."""
    every = {name: getattr(callbacks, name) for name in callbacks.__all__}
    lines = sorted((c for c in every.values() if issubclass(c, AlgorithmCallback)), key=lambda cls: cls.line)
    others = [c for name, c in every.items() if c not in lines and name not in ALWAYS_THERE]
    plain = [c for c in lines + others if not settings_of_class(c, "init_args")]
    yield "## Callbacks"
    yield CALLBACKS
    yield "\n".join(f"- `{c.__name__}`, line {c.line:g}: {first_sentence(c)}" for c in lines)
    yield CALLBACKS_TO_ADD
    yield "\n".join(f"- `{c.__name__}`: {first_sentence(c)}" for c in others)
    yield from class_tables([c for c in lines + others if c not in plain])
    yield "### Always there"
    yield "These observe every run and stand in no list:"
    yield "\n".join(f"- `{name}`: {first_sentence(every[name])}" for name in ALWAYS_THERE)


def trainer_parts() -> Iterator[str]:
    """Yield what may be set of Lightning's trainer."""
    yield "## Trainer"
    yield TRAINER.format(
        clip=GRADIENT_CLIP_VAL,
        refused=", ".join(f"`{key}`" for key in REFUSED),
        derived=", ".join(f"`{key}`" for key in DERIVED),
    )


def fit_parser() -> ArgumentParser:
    """Return the parser of `resd fit`."""
    cli = ReadingCLI.__new__(ReadingCLI)
    try:
        ReadingCLI.__init__(cli, ["fit"])
    except ParserIsReadError:
        return cli.fit_parser
    raise AssertionError("the command line was to stop before it builds anything")


SAMPLING_FIELDS = {"temperature", "top_p", "max_new_tokens"}

INTRODUCTION = """\
Written by `scripts/write_config_reference.py` from the dataclasses and constructors that `resd fit --help` reads; a
test fails where this page and the code differ. A key is the same in YAML (`model: {teacher: {ema_rate: 0.01}}`) and on
the command line (`--model.teacher.ema_rate 0.01`). Files are composed with several `--config`, later ones winning key
by key, and so do options behind them. An unknown key is refused by name, and a value out of range before any weight is
read. `resd fit ... --print_config` prints what a composition comes to.
[configs/README.md](../configs/README.md) says which file sets what.

A default here is the code's. The files in `configs/` replace some: those for adapters, lengths and tasks above all."""

CALLBACKS = """\
The method is the list `trainer.callbacks`: lines of Algorithm 1, in order. `configs/method/resd.yaml` has six of these.
A list in a wrong order, with a line twice, or without one that another line needs is refused by name. What the lines do
is set in `model.context`."""

CALLBACKS_TO_ADD = """\
Others are added under `callbacks+:`, which replaces nothing; one with settings has a `class_path` and `init_args`:

```yaml
trainer:
  callbacks+:
    - class_path: SwitchObjective
      init_args: {success_rate: 0.4, rollouts_per_prompt: 8}
```"""

TRAINER = """\
`trainer` is Lightning's `Trainer`; `accelerator`, `devices`, `precision`, `strategy`, `logger` and `callbacks` are as
Lightning documents them. `gradient_clip_val` is {clip:g} by default, the paper's.

An epoch is one policy update ([Design](design.md)), so some arguments can't be set:

- refused, because they would cut an update short: {refused};
- derived from `data.batch_size`, `data.inner_updates` and `data.max_batches`: {derived};
- `default_root_dir` is the run folder: set `--run_dir`;
- a `precision` that rounds trained weights to 16 bits (`bf16-true`, `16-true`) is refused: on a GPU, take `bf16-mixed`.

For a shorter run there are `data.max_batches` and `budget`."""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
