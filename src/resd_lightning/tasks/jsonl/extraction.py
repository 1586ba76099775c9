"""Where in a response its answer stands."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from resd_lightning.config import ConfigError, require
from resd_lightning.tasks.files import KEY

AnswerFrom = Literal["response", "last_line", "after_marker", "pattern"]


@dataclass(frozen=True)
class Extraction:
    """Takes the answer out of a response whose thinking is off already.

    Attributes:
        source: The whole response, its last line, what follows the last marker, or what a pattern's group matches.
        marker: For after_marker, the text in front of the answer.
        pattern: For pattern, a regular expression with one group; its last match in the response counts.

    Raises:
        ConfigError: Marker or pattern is missing, wrong, or set without being used.
    """

    source: AnswerFrom = "response"
    marker: str | None = None
    pattern: str | None = None

    def __post_init__(self) -> None:
        require(self.source in get_args(AnswerFrom), f"{KEY}.answer_from", _one_of(AnswerFrom), self.source)
        for name, value, user in (
            ("answer_marker", self.marker, "after_marker"),
            ("answer_pattern", self.pattern, "pattern"),
        ):
            if (value is not None) != (self.source == user):
                raise ConfigError(
                    f"{KEY}.{name} is for {KEY}.answer_from {user} and has to be set there, got {value!r} and "
                    f"{KEY}.answer_from {self.source}"
                )
            require(value is None or bool(value.strip()), f"{KEY}.{name}", "more than whitespace", value)
        if self.pattern is not None:
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ConfigError(f"{KEY}.answer_pattern {self.pattern!r} is no regular expression: {error}") from error
            require(groups == 1, f"{KEY}.answer_pattern", "a pattern with one group", self.pattern)

    def find(self, text: str) -> str | None:
        """Return the answer, without whitespace at its ends; None if the text holds none, or a blank one."""
        if self.pattern is not None:
            matches = list(re.finditer(self.pattern, text))
            found = matches[-1][1] if matches else None
        elif self.marker is not None:
            found = _first_line(text.rpartition(self.marker)[2]) if self.marker in text else None
        elif self.source == "last_line":
            found = text.rstrip().rpartition("\n")[2]
        else:
            found = text
        return (found.strip() or None) if found is not None else None

    @property
    def place(self) -> str:
        """Words for where an answer has to stand, for feedback."""
        if self.source == "pattern":
            return f"where the pattern {self.pattern} finds it"
        if self.source == "after_marker":
            return f'after "{self.marker}"'
        return "on the last line of the response" if self.source == "last_line" else "after the thinking"


def _first_line(text: str) -> str:
    return text.lstrip().partition("\n")[0]


def _one_of(literal: object) -> str:
    return f"one of {', '.join(get_args(literal))}"
