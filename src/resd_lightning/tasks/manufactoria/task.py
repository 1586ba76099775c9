"""The Manufactoria-Has task: its config, its examples, its judge."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, cast

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from resd_lightning.config import ConfigError, require
from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.tasks.files import KEY, FileTask
from resd_lightning.tasks.manufactoria.cases import read_cases
from resd_lightning.tasks.manufactoria.generator import generate
from resd_lightning.tasks.manufactoria.machine import NODE_LIMIT
from resd_lightning.tasks.manufactoria.puzzles import DIFFICULTIES, FAMILIES
from resd_lightning.tasks.manufactoria.rows import GradedExample, read_public_row
from resd_lightning.tasks.manufactoria.verdict import judge
from resd_lightning.tasks.rows import Fields

_TEMPLATES: Final = {"full": "problem.jinja", "short": "problem_short.jinja"}


class ManufactoriaTask(FileTask):
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

    Raises:
        ConfigError: An argument is out of range, or contradicts another one.
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
        super().__init__(train_path, test_path, val_share, seed, train_size, test_size)
        require(max_shown_tapes >= 1, f"{KEY}.max_shown_tapes", "at least 1", max_shown_tapes)
        require(prompt in _TEMPLATES, f"{KEY}.prompt", f"one of {', '.join(_TEMPLATES)}", prompt)
        is_public = train_path is not None or test_path is not None
        if is_public and prompt != "full":
            raise ConfigError(f"{KEY}.prompt {prompt} is only for generated problems: public rows bring their own")
        _check_choice("families", families, None if is_public else FAMILIES)
        _check_choice("difficulties", difficulties, None if is_public else DIFFICULTIES)
        self.families = families
        self.difficulties = difficulties
        self.max_shown_tapes = max_shown_tapes
        self.prompt = prompt

    @property
    def name(self) -> str:
        """The task's name in run folders and reports."""
        return "manufactoria"

    def read_row(self, fields: Fields, place: str) -> GradedExample:
        """Return a public row as an example."""
        return read_public_row(fields)

    def how_to_get(self, split: Split) -> str:
        """Return what to download, and how to save it."""
        dataset = f"manufactoria/has_{split}"
        path = (self.train_path if split == "train" else self.test_path) or f"{split}.jsonl"
        return (
            f"Download the dataset {dataset} and save it there as JSON lines, for example "
            f'with `datasets.load_dataset("{dataset}", split="train").to_json("{path}")`. '
            "Without train_path and test_path, problems are generated."
        )

    def without_file(self, split: Split, size: int | None) -> tuple[GradedExample, ...]:
        """Return generated problems, if the other path is not set either.

        Raises:
            ConfigError: It is set.
        """
        self.refuse_mixture(split)
        template = _environment().get_template(_TEMPLATES[self.prompt])
        return tuple(
            GradedExample(
                id=problem.id,
                messages=(Message(role="user", content=template.render(_fields(problem.puzzle.statement))),),
                answer=problem.cases,
                family=problem.puzzle.family,
                difficulty=problem.puzzle.difficulty,
            )
            for problem in generate(self.seed, "train" if split == "train" else "test")
        )[:size]

    def load(self, split: Split, path: str | None, size: int | None) -> tuple[GradedExample, ...]:
        """Return the first problems of "train" or "test" that pass the filters, in their order.

        Raises:
            ConfigError: As `FileTask.load`, or no problem passes.
        """
        kept = tuple(
            example
            for example in cast("tuple[GradedExample, ...]", super().load(split, path, None))
            if (self.families is None or example.family in self.families)
            and (self.difficulties is None or example.difficulty in self.difficulties)
        )
        if not kept:
            raise ConfigError(
                f"{KEY}: no {split} problem passes the filters families={self.families}, "
                f"difficulties={self.difficulties}"
            )
        return kept[:size]

    def verify(self, example: Example, response: str) -> Feedback:
        """Judge one response; whatever a model writes, the result is a feedback of bounded length.

        Raises:
            ValueError: The example's answer is not a tuple of test cases, so it is not one of this task's.
        """
        return judge(read_cases(example.answer), response, self.max_shown_tapes)


def _environment() -> SandboxedEnvironment:
    # No autoescape: the text goes to a model, and a statement is a value, which Jinja never parses as template.
    return SandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined, autoescape=False
    )


def _fields(statement: str) -> dict[str, str | int]:
    return {"statement": statement, "node_limit": NODE_LIMIT}


def _check_choice(key: str, chosen: tuple[str, ...] | None, known: tuple[str, ...] | None) -> None:
    if chosen is None:
        return
    require(bool(chosen), f"{KEY}.{key}", "null to keep all, or name at least one", chosen)
    unknown = [name for name in chosen if known is not None and name not in known]
    require(not unknown, f"{KEY}.{key}", f"among {', '.join(known or ())}", ", ".join(unknown))
