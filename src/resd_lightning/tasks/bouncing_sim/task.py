"""The BouncingSim task: its config, its examples, its judge."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from resd_lightning.config import ConfigError, require
from resd_lightning.records import Example, Feedback, Split
from resd_lightning.sandbox import Limits, Sandbox
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.bouncing_sim.asserts import read_asserts
from resd_lightning.tasks.bouncing_sim.generator import generate
from resd_lightning.tasks.bouncing_sim.rows import how_to_get, load_examples
from resd_lightning.tasks.bouncing_sim.scenes import DIFFICULTIES, Difficulty
from resd_lightning.tasks.bouncing_sim.verdict import judge

logger = logging.getLogger(__name__)

_Source = Literal["train", "test"]


class BouncingSimTask(Task):
    """Write `predict_position(t)` for polygons that bounce in a polygon (RESD, Tasks: BouncingSim-Easy and -Medium).

    Problems are read from the public rows, or generated with Box2D (extra `bouncing`) where no path is given. Programs
    run in the sandbox. Constructing reads no file. The test split is also "val", as in the paper.

    Args:
        train_path: File with the public training rows as JSON lines or a JSON list; None generates problems.
        test_path: File with the public test rows; None generates problems.
        difficulty: Of generated problems: basic, easy, medium, hard or extreme.
        seed: Decides which problems are generated.
        train_size: Keep only so many training problems; None keeps all.
        test_size: Keep only so many test problems; None keeps all.
        timeout_s: Seconds that one program may take for all its times together.
        memory_mib: Memory that one program may use.
        require_isolation: Refuse to run programs unless network, files and other processes are out of their reach.
        max_shown_times: How many failing times of each kind a feedback text describes, earliest first.
    """

    def __init__(
        self,
        train_path: str | None = None,
        test_path: str | None = None,
        difficulty: Difficulty = "easy",
        seed: int = 0,
        train_size: int | None = None,
        test_size: int | None = None,
        timeout_s: float = 10.0,
        memory_mib: int = 512,
        require_isolation: bool = False,
        max_shown_times: int = 3,
    ) -> None:
        for key, number in {
            "train_size": train_size,
            "test_size": test_size,
            "max_shown_times": max_shown_times,
        }.items():
            require(number is None or number >= 1, key, "at least 1", number)
        require(difficulty in DIFFICULTIES, "difficulty", f"one of {', '.join(DIFFICULTIES)}", difficulty)
        require(timeout_s > 0, "timeout_s", "above 0", timeout_s)
        require(memory_mib >= 64, "memory_mib", "at least 64", memory_mib)
        self.train_path = train_path
        self.test_path = test_path
        self.difficulty: Difficulty = difficulty
        self.seed = seed
        self.train_size = train_size
        self.test_size = test_size
        self.timeout_s = timeout_s
        self.max_shown_times = max_shown_times
        limits = Limits(wall_s=timeout_s, cpu_s=int(timeout_s) + 1, memory_mib=memory_mib)
        self.sandbox = Sandbox(limits, require_isolation=require_isolation)
        self._cache: dict[_Source, tuple[Example, ...]] = {}

    @property
    def name(self) -> str:
        """The task's name in run folders and reports."""
        return "bouncing_sim"

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Return the split's examples in their training order, the same on every call.

        Raises:
            ConfigError: This split has no path while the other one does, or Box2D is missing where problems are
                generated, or isolation is required and the machine has none.
            FileNotFoundError: The path is no file.
            ValueError: A row is broken.
        """
        source: _Source = "train" if split == "train" else "test"
        if source not in self._cache:
            self._cache[source] = self._load(source)
            self.sandbox.isolation()  # says what is in force, or refuses, before the first rollout
        return self._cache[source]

    def verify(self, example: Example, response: str) -> Feedback:
        """Run the response's program apart, compare its positions here; whatever it does, the result is a feedback.

        Raises:
            ValueError: The example's answer is not a tuple of asserts, so it is not one of this task's.
            ConfigError: Isolation is required and the machine has none.
            SandboxError: The sandbox failed, not the program.
        """
        return judge(read_asserts(example.answer), response, self.sandbox, self.max_shown_times)

    def _load(self, split: _Source) -> tuple[Example, ...]:
        is_train = split == "train"
        path, key = (self.train_path, "train_path") if is_train else (self.test_path, "test_path")
        size = self.train_size if is_train else self.test_size
        if path is not None:
            return load_examples(Path(path), key=key)[:size]
        if self.train_path is not None or self.test_path is not None:
            raise ConfigError(
                f"data.task.init_args.{key} is not set, but the other path is: public and generated problems are not "
                f"mixed. {how_to_get('bouncing_sim.jsonl')}"
            )
        logger.info("bouncing_sim: generating %s problems (%s); this takes a moment", split, self.difficulty)
        try:
            return tuple(generate(self.seed, split, self.difficulty, size, self.timeout_s))
        except ConfigError as error:
            raise ConfigError(
                f"data.task.init_args.{key} is not set, and {error}. For the public problems instead: "
                f"{how_to_get('bouncing_sim.jsonl')} Then name the file in {key}"
            ) from error

    def __getstate__(self) -> dict[str, object]:
        # Verification may run in worker processes: they get the config, not a copy of all examples with each call.
        return {**self.__dict__, "_cache": {}}
