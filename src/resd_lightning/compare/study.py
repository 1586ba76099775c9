"""A study: what is compared, over which seeds, at which budget; read from a YAML file and checked before any run."""

from __future__ import annotations

import re
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from jsonargparse import ArgumentParser

from resd_lightning.config import BudgetConfig, ConfigError, Currency, require

Score = Literal["per_task/mean", "per_task/best", "per_test/mean", "per_test/best"]
"""The four numbers of a validation, without the number of samples that their full names end in."""

SCORES: tuple[Score, ...] = get_args(Score)

SET_BY_STUDY = ("seed_everything", "data.seed", "run_dir", "budget", "overwrite", "ckpt_path", "config")
"""Keys that options may not set: the study does."""


@dataclass(frozen=True)
class Variant:
    """One of the things compared: what it lays over the study's common configuration."""

    label: str | None = None
    """Name in tables and figures; null takes the variant's key."""
    configs: list[str] = field(default_factory=list)
    """Configuration files, laid over the study's in this order."""
    options: dict[str, object] = field(default_factory=dict)
    """Options of `resd fit` by their dotted keys; they win over all files and over the study's options."""


@dataclass(frozen=True)
class Study:
    """Variants, seeds and a budget."""

    variants: dict[str, Variant]
    """What is compared, by the name that run folders get."""
    budget: BudgetConfig
    """What each run may spend: exactly one of prompts, rollouts and generated_tokens."""
    seeds: list[int]
    """Seeds that every variant is run with."""
    configs: list[str] = field(default_factory=list)
    """Configuration files of all variants, as `resd fit --config` takes them, later ones winning."""
    options: dict[str, object] = field(default_factory=dict)
    """Options of all variants by their dotted keys; they win over all files."""
    per_seed: dict[str, list[object]] = field(default_factory=dict)
    """Options that have a value for each seed, in the order of the seeds; they win over all others."""
    metric: Score = "per_task/mean"
    """The number that levels are levels of, and that figures show."""
    levels: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75])
    """Values of the metric, each with the spending until a run first reaches it."""

    def __post_init__(self) -> None:
        require(len(self.variants) > 0, "variants", "at least one variant", self.variants)
        require(len(self.seeds) > 0, "seeds", "at least one seed", self.seeds)
        require(len(set(self.seeds)) == len(self.seeds), "seeds", "different from each other", self.seeds)
        require(len(self.budget.limits) == 1, "budget", "in exactly one currency", dict(self.budget.limits))
        require(all(0 < level <= 1 for level in self.levels), "levels", "above 0 and at most 1", self.levels)
        for key, values in self.per_seed.items():
            require(len(values) == len(self.seeds), f"per_seed.{key}", "one value for each of the seeds", values)
        for name in self.variants:
            is_folder_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+=-]*", name) is not None
            require(is_folder_name, "variants", "named by letters, digits and _.+=-; `label` takes any text", name)
        labels = list(self.labels.values())
        require(len(set(labels)) == len(labels), "variants", "labelled differently from each other", labels)
        self._check_options("options", self.options)
        self._check_options("per_seed", self.per_seed)
        self._check_files("configs", self.configs)
        for name, variant in self.variants.items():
            self._check_options(f"variants.{name}.options", variant.options)
            self._check_files(f"variants.{name}.configs", variant.configs)

    @staticmethod
    def _check_options(where: str, options: Mapping[str, object]) -> None:
        for key in options:
            for own in SET_BY_STUDY:
                if key == own or key.startswith(f"{own}."):
                    raise ConfigError(f"{where}: {key} is not the options' to set: the study sets it for each run")

    @staticmethod
    def _check_files(where: str, paths: list[str]) -> None:
        for path in paths:
            require(Path(path).is_file(), where, f"files that exist, seen from {Path.cwd()}", path)

    @property
    def labels(self) -> dict[str, str]:
        """What each variant is called in tables and figures."""
        return {name: variant.label or name for name, variant in self.variants.items()}

    @property
    def currency(self) -> Currency:
        """What the budget is counted in."""
        return next(iter(self.budget.limits))

    @property
    def limit(self) -> int:
        """How much of it each run may spend."""
        return self.budget.limits[self.currency]


def read_study(path: Path) -> Study:
    """Return the study that a YAML file describes.

    Raises:
        ConfigError: There is no such file, it has an unknown key, or a value is wrong; the message names the file.
    """
    if not path.is_file():
        raise ConfigError(f"study {path}: no such file")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Study)
    try:
        parsed = parser.instantiate(parser.parse_path(path))
        return Study(**cast("dict[str, object]", parsed.as_dict()))  # type: ignore[arg-type]
    except ConfigError as error:
        raise ConfigError(f"study {path}: {error}") from error
    except ArgumentError as error:
        raise ConfigError(f"study {path}: {' '.join(str(error).split())}") from error
