"""The runs of a study: their options, their folders, and whether what lies there is what is asked for."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import yaml

from resd_lightning.checkpoint import differences
from resd_lightning.compare.study import Study
from resd_lightning.config import ConfigError
from resd_lightning.run_folder import RunFolder

State = Literal["new", "unfinished", "finished"]

Options = Mapping[str, object]


@dataclass(frozen=True)
class Composition:
    """What `resd fit` would run with, built and checked.

    Attributes:
        options: The whole configuration.
        batch_size: Prompts per batch.
        num_prompts: Training prompts in full batches, however many of them are asked for.
    """

    options: Options
    batch_size: int
    num_prompts: int


Compose = Callable[[Sequence[str]], Composition]
"""Composes the arguments of `resd fit`; raises `ConfigError` where `resd fit` would."""


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One variant with one seed.

    Attributes:
        variant: Name of the variant.
        seed: The run's seed.
        folder: Where it runs.
        arguments: Of `resd fit`, for a run from the start.
        options: What they come to.
    """

    variant: str
    seed: int
    folder: RunFolder
    arguments: tuple[str, ...]
    options: Options

    @property
    def log(self) -> Path:
        """What the run's processes wrote to the terminal."""
        return self.folder.path.with_name(f"{self.folder.path.name}.log")

    @property
    def machine(self) -> Path:
        """Where, and beside how many others, the run was last started."""
        return self.folder.path.with_name(f"{self.folder.path.name}.machine.json")

    @property
    def command(self) -> str:
        """The command that makes the run from the start."""
        return shlex.join(["resd", "fit", *self.arguments])

    @property
    def state(self) -> State:
        """What the run's folder holds."""
        if not self.folder.has_run:
            return "new"
        if not self.folder.summary.is_file():
            return "unfinished"
        return (
            "finished" if json.loads(self.folder.summary.read_text(encoding="utf-8"))["is_finished"] else "unfinished"
        )

    def check_unchanged(self) -> None:
        """Refuse a folder that was run with another configuration than is asked now.

        Raises:
            ConfigError: Names the keys that differ, with their values then and now.
        """
        if self.state == "new":
            return
        found = cast("Options", yaml.safe_load(self.folder.config.read_text(encoding="utf-8")))
        changed = differences({**found, "run_dir": None}, {**self.options, "run_dir": None})  # folders may be moved
        if changed:
            raise ConfigError(
                f"{self.folder.path} was run with other options than the study asks for now ({'; '.join(changed)}): "
                "choose another --out, or delete that folder to run it again"
            )


def plan(study: Study, out: Path, compose: Compose) -> list[PlannedRun]:
    """Return the study's runs, seed by seed, each composed and checked as `resd fit` checks it.

    Raises:
        ConfigError: Options that `resd fit` refuses, validations that can't be compared, or too few prompts for the
            budget; the message names the variant.
    """
    runs = []
    for position, seed in enumerate(study.seeds):
        for name in study.variants:
            folder = RunFolder(out / "runs" / f"{name}-seed{seed}")
            arguments = _arguments(study, name, position, folder)
            try:
                composition = compose(arguments)
                run = PlannedRun(name, seed, folder, arguments, composition.options)
                runs.append(_bounded(run, study, composition))
            except ConfigError as error:
                raise ConfigError(f"variants.{name}, seed {seed}: {error}") from error
    samples = {run.variant: _data(run.options)["validation_samples"] for run in runs}
    if len(set(samples.values())) > 1:
        raise ConfigError(f"variants: data.validation_samples must be the same for all of them, got {samples}")
    return runs


def _arguments(study: Study, name: str, position: int, folder: RunFolder) -> tuple[str, ...]:
    variant, seed = study.variants[name], study.seeds[position]
    own = {key: values[position] for key, values in study.per_seed.items()}
    files = [f"--config={path}" for path in (*study.configs, *variant.configs)]
    options = [f"--{key}={_text(value)}" for key, value in (study.options | variant.options | own).items()]
    return (
        "--trainer.enable_progress_bar=false",
        *files,
        *options,
        f"--budget.{study.currency}={study.limit}",
        f"--seed_everything={seed}",
        f"--run_dir={folder.path}",
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _bounded(run: PlannedRun, study: Study, composition: Composition) -> PlannedRun:
    """Return the run with `data.max_batches` where that follows from the budget, which only one of prompts tells."""
    if study.currency != "prompts":
        return run
    if composition.num_prompts < study.limit:
        raise ConfigError(
            f"budget.prompts is {study.limit}, but data.task yields {composition.num_prompts} training prompts in full "
            f"batches of {composition.batch_size}"
        )
    max_batches = -(-study.limit // composition.batch_size)
    return replace(
        run,
        arguments=(*run.arguments, f"--data.max_batches={max_batches}"),
        options={**run.options, "data": {**_data(run.options), "max_batches": max_batches}},
    )


def _data(options: Options) -> Options:
    return cast("Options", options["data"])
