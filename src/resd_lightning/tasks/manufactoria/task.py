"""The Manufactoria-Has task: its config, its examples, its judge."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.files import KEY, hold_out
from resd_lightning.tasks.manufactoria.cases import read_cases
from resd_lightning.tasks.manufactoria.generator import generate
from resd_lightning.tasks.manufactoria.machine import NODE_LIMIT
from resd_lightning.tasks.manufactoria.puzzles import DIFFICULTIES, FAMILIES
from resd_lightning.tasks.manufactoria.rows import load_rows
from resd_lightning.tasks.manufactoria.verdict import judge

_TEMPLATES: Final = {"full": "problem.jinja", "short": "problem_short.jinja"}


@dataclass(frozen=True)
class _Graded:
    """An example with what the config filters by."""

    example: Example
    difficulty: str


class ManufactoriaTask(Task):
    """Write a program in a small tape-machine language that accepts the right tapes (RESD, Tasks: Manufactoria-Has).

    Problems are generated, or read from the public datasets if both paths are given. Constructing reads no file.

    Args:
        train_path: File with the rows of manufactoria/has_train as JSON lines or a JSON list; None generates problems.
        test_path: File with the rows of manufactoria/has_test as JSON lines or a JSON list; None generates problems.
        seed: Decides which problems and tapes are generated, and what val_share holds out.
        families: Keep only these of contains_count, contains_ordered, contains_substring; None keeps all.
        difficulties: Keep only these difficulties (easy, medium or hard where problems are generated); None keeps all.
        train_size: Keep only so many training problems, counted before val_share is held out; None keeps all.
        test_size: Keep only so many test problems; None keeps all.
        max_shown_tapes: How many failing tapes a feedback text describes, smallest first.
        val_share: Share of the training problems held out as "val"; 0 validates on the test split, as the paper does.
        prompt: The generated problems' prompt: full describes the language at length, short in about 250 tokens.
    """

    def __init__(
        self,
        train_path: str | None = None,
        test_path: str | None = None,
        seed: int = 0,
        families: tuple[str, ...] | None = None,
        difficulties: tuple[str, ...] | None = None,
        train_size: int | None = None,
        test_size: int | None = None,
        max_shown_tapes: int = 3,
        val_share: float = 0.0,
        prompt: Literal["full", "short"] = "full",
    ) -> None:
        _check_sizes(train_size=train_size, test_size=test_size, max_shown_tapes=max_shown_tapes)
        if not 0.0 <= val_share < 1.0:
            raise ValueError(f"val_share must be in [0, 1), got {val_share}")
        if prompt not in _TEMPLATES:
            raise ValueError(f"prompt must be one of {', '.join(_TEMPLATES)}, got {prompt!r}")
        is_public = train_path is not None or test_path is not None
        if is_public and prompt != "full":
            raise ValueError(f"prompt={prompt!r} is only for generated problems: public rows bring their own prompts")
        _check_choice("families", families, None if is_public else FAMILIES)
        _check_choice("difficulties", difficulties, None if is_public else DIFFICULTIES)
        self.train_path = train_path
        self.test_path = test_path
        self.seed = seed
        self.families = families
        self.difficulties = difficulties
        self.train_size = train_size
        self.test_size = test_size
        self.max_shown_tapes = max_shown_tapes
        self.val_share = val_share
        self.prompt = prompt
        self._cache: dict[Split, tuple[Example, ...]] = {}

    @property
    def name(self) -> str:
        """The task's name in run folders and reports."""
        return "manufactoria"

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Return the split's examples in their training order, the same on every call.

        Raises:
            ConfigError: A configured path is no file, a row is broken, or val_share leaves nothing to train on.
            ValueError: No problem is left, or this split has no path while the other one does.
        """
        if split not in self._cache:
            self._cache.update(self._build("test" if split == "val" and not self.val_share else split))
            if split == "val" and not self.val_share:
                self._cache["val"] = self._cache["test"]
        return self._cache[split]

    def verify(self, example: Example, response: str) -> Feedback:
        """Judge one response; whatever a model writes, the result is a feedback of bounded length.

        Raises:
            ValueError: The example's answer is not a tuple of test cases, so it is not one of this task's.
        """
        return judge(read_cases(example.answer), response, self.max_shown_tapes)

    def __getstate__(self) -> dict[str, object]:
        # Verification may run in worker processes: they get the config, not a copy of all examples with each call.
        return {**self.__dict__, "_cache": {}}

    def _build(self, split: Split) -> dict[Split, tuple[Example, ...]]:
        """Return the split; train and val together where both come from the training problems."""
        if split == "test":
            return {"test": self._select("test", self.test_size)}
        chosen = self._select("train", self.train_size)
        if not self.val_share:
            return {"train": chosen}
        train, val = hold_out(chosen, self.val_share, random.Random(f"manufactoria val {self.seed}"))
        return {"train": train, "val": val}

    def _select(self, split: Literal["train", "test"], size: int | None) -> tuple[Example, ...]:
        """Return the first problems that pass the filters, in their order."""
        kept = tuple(
            graded.example
            for graded in self._load(split)
            if (self.families is None or graded.example.family in self.families)
            and (self.difficulties is None or graded.difficulty in self.difficulties)
        )
        if not kept:
            raise ValueError(
                f"no {split} problem passes the filters families={self.families}, difficulties={self.difficulties}"
            )
        return kept[:size]

    def _load(self, split: Literal["train", "test"]) -> tuple[_Graded, ...]:
        path, key = (self.train_path, "train_path") if split == "train" else (self.test_path, "test_path")
        if path is None and (self.train_path is not None or self.test_path is not None):
            raise ValueError(f"{key} is not set, but the other path is: public and generated problems are not mixed")
        if path is None:
            template = _environment().get_template(_TEMPLATES[self.prompt])
            return tuple(
                _Graded(
                    Example(
                        id=problem.id,
                        messages=(Message(role="user", content=template.render(_fields(problem.puzzle.statement))),),
                        answer=problem.cases,
                        family=problem.puzzle.family,
                    ),
                    problem.puzzle.difficulty,
                )
                for problem in generate(self.seed, split)
            )
        rows = load_rows(Path(path), key=f"{KEY}.{key}", dataset=f"manufactoria/has_{split}")
        return tuple(_Graded(Example(row.id, row.messages, row.cases, row.family), row.difficulty) for row in rows)


def _environment() -> SandboxedEnvironment:
    # No autoescape: the text goes to a model, and a statement is a value, which Jinja never parses as template.
    return SandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined, autoescape=False
    )


def _fields(statement: str) -> dict[str, str | int]:
    return {"statement": statement, "node_limit": NODE_LIMIT}


def _check_sizes(**sizes: int | None) -> None:
    for key, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{key} must be at least 1, got {size}")


def _check_choice(key: str, chosen: tuple[str, ...] | None, known: tuple[str, ...] | None) -> None:
    if chosen is None:
        return
    if not chosen:
        raise ValueError(f"{key} must name at least one, or be null to keep all")
    unknown = [name for name in chosen if known is not None and name not in known]
    if unknown:
        raise ValueError(f"{key} must be among {', '.join(known or ())}, got {unknown[0]!r}")
