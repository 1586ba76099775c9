"""The BouncingSim task: its config, its examples, its judge."""

from __future__ import annotations

import logging
from typing import Literal

from resd_lightning.config import ConfigError, require
from resd_lightning.records import Example, Feedback, Split
from resd_lightning.tasks.bouncing_sim.asserts import read_asserts
from resd_lightning.tasks.bouncing_sim.generator import generate
from resd_lightning.tasks.bouncing_sim.rows import how_to_get, read_public_row
from resd_lightning.tasks.bouncing_sim.scenes import DIFFICULTIES, Difficulty
from resd_lightning.tasks.bouncing_sim.verdict import judge
from resd_lightning.tasks.files import KEY, FileTask
from resd_lightning.tasks.python_answer import sandbox_for_answers
from resd_lightning.tasks.rows import Fields

logger = logging.getLogger(__name__)


class BouncingSimTask(FileTask):
    """Write `predict_position(t)` for polygons that bounce in a polygon (RESD, Tasks: BouncingSim-Easy and -Medium).

    Problems are read from the public rows, or generated with Box2D (extra `bouncing`) where no path is given. Programs
    run in the sandbox. Constructing reads no file.

    Args:
        train_path: File with the public training rows as JSON lines or a JSON list; None generates problems.
        test_path: File with the public test rows; None generates problems.
        difficulty: Of generated problems: basic, easy, medium, hard or extreme.
        seed: Decides which problems are generated, and which val_share holds out.
        val_share: Share of the training problems held out as "val"; 0 validates on the test split, as the paper does.
        train_size: Keep only so many training problems, counted before val_share is held out; None keeps all.
        test_size: Keep only so many test problems; None keeps all.
        timeout_s: Seconds that one program may take for all its times together.
        memory_mib: Memory that one program may use.
        require_isolation: Refuse to run programs unless network, files and other processes are out of their reach.
        max_shown_times: How many failing times of each kind a feedback text describes, earliest first.

    Raises:
        ConfigError: An argument is out of range.
    """

    def __init__(
        self,
        train_path: str | None = None,
        test_path: str | None = None,
        difficulty: Difficulty = "easy",
        seed: int = 0,
        val_share: float = 0.0,
        train_size: int | None = None,
        test_size: int | None = None,
        timeout_s: float = 10.0,
        memory_mib: int = 512,
        require_isolation: bool = False,
        max_shown_times: int = 3,
    ) -> None:
        super().__init__(train_path, test_path, val_share, seed, train_size, test_size)
        require(difficulty in DIFFICULTIES, f"{KEY}.difficulty", f"one of {', '.join(DIFFICULTIES)}", difficulty)
        require(max_shown_times >= 1, f"{KEY}.max_shown_times", "at least 1", max_shown_times)
        self.difficulty: Difficulty = difficulty
        self.timeout_s = timeout_s
        self.max_shown_times = max_shown_times
        self.sandbox = sandbox_for_answers(timeout_s, memory_mib, require_isolation)

    @property
    def name(self) -> str:
        """The task's name in run folders and reports."""
        return "bouncing_sim"

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Return the split's examples in their training order, the same on every call.

        Raises:
            ConfigError: The path is no file, a row is broken, or val_share leaves nothing; this split has no path while
                the other one does; Box2D is missing where problems are generated; isolation is required and the machine
                has none.
        """
        found = super().examples(split)
        self.sandbox.isolation()  # says what is in force, or refuses, before the first rollout
        return found

    def read_row(self, fields: Fields, place: str) -> Example:
        """Return a public row as an example."""
        return read_public_row(fields)

    def how_to_get(self, split: Split) -> str:
        """Return what to download, and how to save it."""
        path = self.train_path if split == "train" else self.test_path
        return how_to_get(path or f"{split}.jsonl")

    def without_file(self, split: Split, size: int | None) -> tuple[Example, ...]:
        """Return generated problems, if the other path is not set either.

        Raises:
            ConfigError: It is set, or Box2D is missing.
        """
        self.refuse_mixture(split)
        key = f"{KEY}.{split}_path"
        logger.info("bouncing_sim: generating %s problems (%s); this takes a moment", split, self.difficulty)
        source: Literal["train", "test"] = "train" if split == "train" else "test"
        try:
            return tuple(generate(self.seed, source, self.difficulty, size, self.timeout_s))
        except ConfigError as error:
            raise ConfigError(
                f"{key} is not set, and {error}. For the public problems instead: {self.how_to_get(split)} Then name "
                f"the file in {key}"
            ) from error

    def verify(self, example: Example, response: str) -> Feedback:
        """Run the response's program apart, compare its positions here; whatever it does, the result is a feedback.

        Raises:
            ValueError: The example's answer is not a tuple of asserts, so it is not one of this task's.
            ConfigError: Isolation is required and the machine has none.
            SandboxError: The sandbox failed, not the program.
        """
        return judge(read_asserts(example.answer), response, self.sandbox, self.max_shown_times)
