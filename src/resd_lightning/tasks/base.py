"""What a task is: examples, and a judge of responses. Users write one of these."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

from resd_lightning.records import Example, Feedback, Split


class Task(ABC):
    """A source of prompts and the environment that judges responses to them.

    A base class and not a protocol, because the command line then says of a class that isn't a task just that.

    Constructing a task reads no file and loads nothing heavy, so that a config is checked before expensive work.
    """

    @abstractmethod
    def examples(self, split: Split) -> Sequence[Example]:
        """Return the split's examples in their training order, the same on every call.

        A task without a validation split returns its test split for "val", as the paper evaluates.
        """

    @abstractmethod
    def verify(self, example: Example, response: str) -> Feedback:
        """Judge one response; called in worker threads or processes, so it must not share state between calls."""


@runtime_checkable
class JudgesLessons(Protocol):
    """A task that can tell whether a lesson is true; a run on one logs `playbook/true_share`."""

    def is_true(self, lesson: str) -> bool | None:
        """Whether a playbook entry's text is true; None where the task can't tell. Only metrics read it."""
        ...


def reward_for(passed: Sequence[bool], reward: Literal["all", "share"]) -> float:
    """Return the reward of a response that passed some of its tests: their share, or 1 only if it passed them all."""
    if reward == "all":
        return float(all(passed))
    return sum(passed) / len(passed)
