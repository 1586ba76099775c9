"""The BouncingSim task: its config, its examples, its judge."""

from __future__ import annotations

from pathlib import Path

from resd_lightning.config import ConfigError, require
from resd_lightning.records import Example, Feedback, Split
from resd_lightning.sandbox import Limits, Sandbox
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.bouncing_sim.asserts import read_asserts
from resd_lightning.tasks.bouncing_sim.rows import how_to_get, load_examples
from resd_lightning.tasks.bouncing_sim.verdict import judge


class BouncingSimTask(Task):
    """Write `predict_position(t)` for polygons that bounce in a polygon (RESD, Tasks: BouncingSim-Easy and -Medium).

    Programs run in the sandbox. Constructing reads no file.

    Args:
        train_path: File with the training rows as JSON lines or a JSON list.
        test_path: File with the test rows; also what "val" is, as in the paper.
        train_size: Keep only so many training problems; None keeps all.
        test_size: Keep only so many test problems; None keeps all.
        timeout_s: Seconds that one program may take for all its times together.
        memory_mib: Memory that one program may use.
        require_isolation: Refuse to run programs unless network, files and other processes are out of their reach.
        max_shown_times: How many kinds of failure a feedback text describes, earliest first.
    """

    def __init__(
        self,
        train_path: str | None = None,
        test_path: str | None = None,
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
        require(timeout_s > 0, "timeout_s", "above 0", timeout_s)
        require(memory_mib >= 64, "memory_mib", "at least 64", memory_mib)
        self.train_path = train_path
        self.test_path = test_path
        self.train_size = train_size
        self.test_size = test_size
        self.max_shown_times = max_shown_times
        limits = Limits(wall_s=timeout_s, cpu_s=int(timeout_s) + 1, memory_mib=memory_mib)
        self.sandbox = Sandbox(limits, require_isolation=require_isolation)
        self._cache: dict[Split, tuple[Example, ...]] = {}

    @property
    def name(self) -> str:
        """The task's name in run folders and reports."""
        return "bouncing_sim"

    def examples(self, split: Split) -> tuple[Example, ...]:
        """Return the split's examples in their training order, the same on every call.

        Raises:
            ConfigError: The split has no path, or isolation is required and the machine has none.
            FileNotFoundError: The path is no file.
            ValueError: A row is broken.
        """
        if split not in self._cache:
            is_train = split == "train"
            path, key = (self.train_path, "train_path") if is_train else (self.test_path, "test_path")
            if path is None:
                raise ConfigError(
                    f"data.task.init_args.{key} is not set: this task's problems come from a file. "
                    f"{how_to_get('bouncing_sim.jsonl')} Then name the file in {key}"
                )
            loaded = load_examples(Path(path), key=key)
            self.sandbox.isolation()  # says what is in force, or refuses, before the first rollout
            self._cache[split] = loaded[: self.train_size if is_train else self.test_size]
        return self._cache[split]

    def verify(self, example: Example, response: str) -> Feedback:
        """Run the response's program apart, compare its positions here; whatever it does, the result is a feedback.

        Raises:
            ValueError: The example's answer is not a tuple of asserts, so it is not one of this task's.
            ConfigError: Isolation is required and the machine has none.
            SandboxError: The sandbox failed, not the program.
        """
        return judge(read_asserts(example.answer), response, self.sandbox, self.max_shown_times)

    def __getstate__(self) -> dict[str, object]:
        # Verification may run in worker processes: they get the config, not a copy of all examples with each call.
        return {**self.__dict__, "_cache": {}}
