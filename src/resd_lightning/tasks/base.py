"""What a task is: examples, and a judge of responses. Users write one of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from resd_lightning.records import Example, Feedback, Split


@runtime_checkable
class Task(Protocol):
    """A source of prompts and the environment that judges responses to them.

    Constructing a task reads no file and loads nothing heavy, so that a config is checked before expensive work.
    """

    def examples(self, split: Split) -> Sequence[Example]:
        """Return the split's examples in their training order, the same on every call.

        A task without a validation split returns its test split for "val", as the paper evaluates.
        """
        ...

    def verify(self, example: Example, response: str) -> Feedback:
        """Judge one response; called in worker threads or processes, so it must not share state between calls."""
        ...
