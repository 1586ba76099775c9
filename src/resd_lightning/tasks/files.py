"""Tasks whose examples stand in files: which file serves which split, and what of it is kept."""

from __future__ import annotations

import random
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from resd_lightning.config import ConfigError, require
from resd_lightning.records import Example, Split
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.rows import Fields, read_rows

KEY = "data.task.init_args"
"""Where a task's arguments stand in a configuration."""


class FileTask(Task):
    """A task that reads one file to train on and one to test on, each when its split is first asked for.

    Args:
        train_path: File with the training rows, as JSON lines or a JSON list.
        test_path: File with the test rows, in the same form.
        val_share: Share of the training rows held out as "val"; 0 validates on the test rows, as the paper does.
        seed: Decides which rows val_share holds out.
        train_size: Keep only the first so many training rows, counted before val_share is held out; None keeps all.
        test_size: Keep only the first so many test rows; None keeps all.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        train_path: str | None,
        test_path: str | None,
        val_share: float,
        seed: int,
        train_size: int | None,
        test_size: int | None,
    ) -> None:
        require(0.0 <= val_share < 1.0, f"{KEY}.val_share", "in [0, 1)", val_share)
        for name, size in (("train_size", train_size), ("test_size", test_size)):
            require(size is None or size >= 1, f"{KEY}.{name}", "at least 1, or null", size)
        self.train_path = train_path
        self.test_path = test_path
        self.val_share = val_share
        self.seed = seed
        self.train_size = train_size
        self.test_size = test_size
        self._cache: dict[Split, tuple[Example, ...]] = {}

    @abstractmethod
    def read_row(self, fields: Fields, place: str) -> Example:
        """Return a row as an example; `place`, as in "train-12", is unique to it and serves as id where it has none.

        Raises:
            ValueError: The row is wrong; the text need not say where it stands.
        """

    @abstractmethod
    def how_to_get(self, split: Split) -> str:
        """Return a sentence on the file that belongs to "train" or "test", for those who have none."""

    def without_file(self, split: Split, size: int | None) -> tuple[Example, ...]:
        """Return "train" or "test" where its path is not set: a task that makes up examples overrides this.

        Raises:
            ConfigError: Always, here; the text says what the file has to be.
        """
        alone = "" if self.train_path is None else f" To hold out training rows instead, set {KEY}.val_share."
        raise ConfigError(f"{KEY}.{split}_path is not set. {self.how_to_get(split)}{alone if split == 'test' else ''}")

    def load(self, split: Split, path: str | None, size: int | None) -> tuple[Example, ...]:
        """Return the first `size` examples of "train" or "test", before any is held out.

        Raises:
            ConfigError: There is no such file, or a row is broken; without a path, see `without_file`.
        """
        if path is None:
            return self.without_file(split, size)
        rows = read_rows(
            Path(path),
            lambda fields, number: self.read_row(fields, f"{split}-{number}"),
            key=f"{KEY}.{split}_path",
            absent=self.how_to_get(split),
        )
        return rows[:size]

    def refuse_mixture(self, split: Split) -> None:
        """Keep a task that makes up problems where no path is set from doing so for one split alone.

        Raises:
            ConfigError: A path is set, but not this split's.
        """
        if self.train_path is not None or self.test_path is not None:
            raise ConfigError(
                f"{KEY}.{split}_path is not set, but the other path is: public and generated problems are not mixed. "
                f"{self.how_to_get(split)} To hold out training problems instead, set {KEY}.val_share."
            )

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Return the split's examples in the order of its file, the same on every call.

        Raises:
            ConfigError: The split's path is not set or no file, a row is broken, or val_share leaves nothing.
        """
        if split == "val" and not self.val_share:
            return self.examples("test")
        if split not in self._cache:
            if split == "test":
                self._cache["test"] = self.load("test", self.test_path, self.test_size)
            else:
                rows = self.load("train", self.train_path, self.train_size)
                rng = random.Random(f"{type(self).__name__} val {self.seed}")
                self._cache["train"], self._cache["val"] = hold_out(rows, self.val_share, rng)
        return self._cache[split]

    def __getstate__(self) -> dict[str, object]:
        # Verification may run in worker processes: they get the config, not a copy of all examples with each call.
        return {**self.__dict__, "_cache": {}}


def hold_out(
    examples: Sequence[Example], share: float, rng: random.Random
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return what stays and what is held out, both in their order; a share above 0 holds out at least one.

    Raises:
        ConfigError: Nothing would stay.
    """
    held_out = max(1, round(share * len(examples))) if share else 0
    if held_out >= len(examples):
        raise ConfigError(f"{KEY}.val_share {share} leaves none of {len(examples)} training examples to train on")
    chosen = set(rng.sample(range(len(examples)), held_out))
    return (
        tuple(example for at, example in enumerate(examples) if at not in chosen),
        tuple(example for at, example in enumerate(examples) if at in chosen),
    )
