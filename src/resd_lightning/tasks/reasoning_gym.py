"""Problems of the package reasoning-gym: more than a hundred generators, each with a scorer of its own."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from itertools import count
from math import isfinite
from typing import Final, Protocol

import numpy as np

from resd_lightning.config import ConfigError, require
from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.files import KEY
from resd_lightning.tasks.marked_answer import find_answer
from resd_lightning.tasks.rows import clip
from resd_lightning.thinking import strip_thinking

EVALUATING: Final = frozenset(
    {
        "binary_matrix",
        "countdown",
        "intermediate_integration",
        "n_queens",
        "polynomial_multiplication",
        "puzzle24",
        "simple_integration",
        "spiral_matrix",
        "string_insertion",
    }
)
"""Datasets whose scorer hands the answer to Python's eval, or to sympy's parser, which does; as of 0.1.25."""

_ASKED: Final = "Give the final answer between <answer> and </answer>."
_MAX_SHOWN: Final = 300
"""Characters of an answer that feedback repeats."""

_REGION: Final = 2**29
"""Width of the regions that seeds are drawn from: problem k of a dataset has the seed that it begins with, plus k."""

_REGIONS: Final[Mapping[Split, int]] = {"train": 0, "test": 2 * _REGION, "val": 4 * _REGION}
"""Where a split's region begins; with one region left free between two, and all below numpy's limit of 2**32."""


@dataclass(frozen=True)
class GymDataset:
    """One dataset of a mixture."""

    name: str
    """The dataset's name in reasoning-gym, for example leg_counting."""
    weight: float = 1.0
    """Its share of the problems is its weight over the sum of all weights."""
    config: dict[str, object] = field(default_factory=dict)
    """Arguments of the dataset's config class, for example max_animals; not seed and size, which are the task's."""


@dataclass(frozen=True)
class GymEntry:
    """An example's answer: what the dataset's scorer needs.

    Attributes:
        dataset: The dataset's name.
        entry: The problem as the dataset made it, with question, answer and metadata.
    """

    dataset: str
    entry: Mapping[str, object]


class ProblemSource(Protocol):
    """What this task uses of reasoning-gym's `ProceduralDataset`."""

    def __getitem__(self, at: int) -> dict[str, object]:
        """Return a problem with question, answer and metadata."""
        ...

    def score_answer(self, answer: str | None, entry: dict[str, object]) -> float:
        """Return the score of an answer to a problem."""
        ...


class ReasoningGymTask(Task):
    """Problems of one or several datasets of reasoning-gym (extra `reasoning-gym`), mixed by weight.

    The last complete `<answer>...</answer>` after the thinking trace is the answer, or else all that follows the trace.
    The reward is the dataset's own score, its quirks included; less than 1, it is no success. Some scorers catch every
    exception, the alarm of a time limit too, and some answers make them count for ever: set data.verify_workers above
    0. Training and test seeds are disjoint; problems are, as far as a dataset has enough different ones. Constructing
    imports nothing.

    Args:
        datasets: What is mixed, each with name, weight and config.
        seed: Decides the order of the mixture and the problems.
        train_size: Training problems.
        test_size: Test problems.
        val_size: Problems of a validation split with seeds of its own; None validates on the test problems.
        leak_answers: Feedback on a wrong answer shows a right one, where the dataset has one.
        allow_eval: Take datasets whose scorer evaluates the model's answer as Python code, with no sandbox around it.

    Raises:
        ConfigError: An argument is out of range, or a dataset evaluates answers and that is not allowed.
    """

    def __init__(
        self,
        datasets: tuple[GymDataset, ...],
        seed: int = 0,
        train_size: int = 640,
        test_size: int = 100,
        val_size: int | None = None,
        leak_answers: bool = False,
        allow_eval: bool = False,
    ) -> None:
        sizes = {"train_size": train_size, "test_size": test_size, "val_size": val_size}
        for key, size in sizes.items():
            require(size is None or 1 <= size <= _REGION, f"{KEY}.{key}", f"in [1, {_REGION}]", size)
        names = [dataset.name for dataset in datasets]
        require(bool(names) and len(names) == len(set(names)), f"{KEY}.datasets", "different datasets", names)
        for dataset in datasets:
            _check(dataset, allow_eval)
        self.datasets = {dataset.name: dataset for dataset in datasets}
        self.seed = seed
        self.leak_answers = leak_answers
        self._sizes: dict[Split, int | None] = {"train": train_size, "test": test_size, "val": val_size}
        self._cache: dict[Split, tuple[Example, ...]] = {}

    @property
    def name(self) -> str:
        """The task's name in run folders and reports."""
        return "reasoning_gym"

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Return the split's problems, the same on every call; fewer are the first of more.

        Raises:
            ConfigError: The package is missing, has no such dataset, or refuses a dataset's config.
        """
        size = self._sizes[split]
        if size is None:
            return self.examples("test")
        if split not in self._cache:
            with _own_streams(f"reasoning gym {self.seed} {split}"):
                self._cache[split] = self._generate(split, size)
        return self._cache[split]

    def verify(self, example: Example, response: str) -> Feedback:
        """Judge one response by its dataset's scorer; the feedback has bounded length whatever a model writes.

        Raises:
            ValueError: The example's answer is no entry of one of the task's datasets.
            ConfigError: As `examples`.
        """
        item = example.answer
        if not isinstance(item, GymEntry) or item.dataset not in self.datasets:
            raise ValueError(f"example {example.id}: answer must be an entry of this task, got {item!r:.60}")
        marked, said = find_answer(response), strip_thinking(response)
        answer = said if marked is None else marked
        if marked is None and not said:  # a marked answer may be empty: the dataset ab asks for what is left of a word
            return Feedback(0.0, (False,), f"The response holds no answer. {_ASKED}")
        note = (
            "" if marked is not None else f"No complete <answer>...</answer>: the whole response was taken. {_ASKED}\n"
        )
        text = f"{note}The answer found is: {clip(answer, _MAX_SHOWN)}\n"
        source = _scorer(item.dataset, json.dumps(self.datasets[item.dataset].config))
        try:
            given = float(source.score_answer(answer, deepcopy(dict(item.entry))))
        except Exception as error:  # noqa: BLE001  # scorers raise whatever a malformed answer leads them to
            score, text = 0.0, f"{text}The scorer of {item.dataset} could not read it: {clip(repr(error), _MAX_SHOWN)}"
        else:
            score = min(1.0, max(0.0, given))
            said_of_it = "right" if score == 1.0 else "not right"
            text = f"{text}It is {said_of_it}: the scorer of {item.dataset} gives it {score:.4g} of 1."
        right = item.entry["answer"]
        if self.leak_answers and score < 1.0 and isinstance(right, str):  # some datasets have only a scorer
            text = f"{text}\nA right answer is: {clip(right, _MAX_SHOWN)}"
        return Feedback(score, (score == 1.0,), text)

    def __getstate__(self) -> dict[str, object]:
        # Verification may run in worker processes: they get the config, not a copy of all examples with each call.
        return {**self.__dict__, "_cache": {}}

    def _generate(self, split: Split, size: int) -> tuple[Example, ...]:
        rng = random.Random(f"reasoning gym mixture {self.seed} {split}")
        weights = [dataset.weight for dataset in self.datasets.values()]
        problems = {name: self._problems(dataset, split) for name, dataset in self.datasets.items()}
        examples = []
        for number in range(size):
            name = rng.choices(list(self.datasets), weights)[0]
            entry = next(problems[name])
            content = f"{str(entry['question']).rstrip()}\n\n{_ASKED}"
            message = Message(role="user", content=content)
            examples.append(Example(f"{split}-{number:05d}", (message,), GymEntry(name, entry), family=name))
        return tuple(examples)

    def _problems(self, dataset: GymDataset, split: Split) -> Iterator[dict[str, object]]:
        start = _REGIONS[split] + random.Random(f"reasoning gym {self.seed} {dataset.name}").randrange(_REGION)
        source = _make(dataset.name, dataset.config, start)
        for at in count():
            try:
                yield source[at]
            except (TypeError, ValueError, AssertionError, IndexError) as error:
                raise ConfigError(
                    f"{KEY}.datasets: {dataset.name} can't make its problem {at} with {dataset.config}: {error!r}"
                ) from error


def _check(dataset: GymDataset, allow_eval: bool) -> None:
    key = f"{KEY}.datasets ({dataset.name})"
    require(isfinite(dataset.weight) and dataset.weight > 0, f"{key}: weight", "a number above 0", dataset.weight)
    own = sorted({"seed", "size"} & dataset.config.keys())
    require(not own, f"{key}: config", "without seed and size, which the task has arguments for", own)
    require(dataset.name != "composite", key, "a dataset, not a mixture: name the datasets here", dataset.name)
    if dataset.name in EVALUATING and not allow_eval:
        raise ConfigError(
            f"{key}: its scorer evaluates what the model wrote as Python code, in the process that verifies. If that "
            f"is acceptable here, set {KEY}.allow_eval to true"
        )


@lru_cache(maxsize=128)
def _scorer(name: str, config: str) -> ProblemSource:
    """Return a dataset to score with, its config given as JSON; kept, as some read large files when they are made."""
    return _make(name, json.loads(config))


def _make(name: str, config: Mapping[str, object], seed: int = 0) -> ProblemSource:
    """Return a dataset whose first problem has the seed.

    Raises:
        ConfigError: The package is missing, has no such dataset, or refuses the config.
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ConfigError(
            "ReasoningGymTask needs the extra `reasoning-gym`: pip install 'resd-lightning[reasoning-gym]'"
        ) from error
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=3)
        hint = f"near it: {', '.join(near)}" if near else f"it has {', '.join(sorted(DATASETS))}"
        raise ConfigError(f"{KEY}.datasets: reasoning-gym has no dataset {name}; {hint}")
    try:
        source: ProblemSource = create_dataset(name, seed=seed, **config)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"{KEY}.datasets: {name} refuses its config {config}: {error}") from error
    return source


@contextmanager
def _own_streams(seed: str) -> Iterator[None]:
    """Give generators that draw from the global streams a seed there, and training its own streams back."""
    python, numpy = random.getstate(), np.random.get_state()
    rng = random.Random(seed)
    random.seed(rng.random())
    np.random.seed(rng.randrange(2**32))
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
