"""The task of a user's own rows: its config, how a row is read, what it says of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from resd_lightning.config import ConfigError, require
from resd_lightning.records import Example, Feedback, Message, Split
from resd_lightning.tasks.base import reward_for
from resd_lightning.tasks.files import KEY, FileTask
from resd_lightning.tasks.jsonl.extraction import AnswerFrom, Extraction
from resd_lightning.tasks.jsonl.rules import MATCHES, Match, Rule, Tolerance
from resd_lightning.tasks.rows import Fields, clip, read_messages, read_text_field, require_fields
from resd_lightning.thinking import strip_thinking

_MAX_SHOWN = 200
"""Characters of an answer that feedback repeats."""

_MAX_LISTED = 10
"""Failed tests that feedback describes."""


class JsonlTask(FileTask):
    r"""Rows of your own, each with a prompt and what is right: `{"prompt": "2 + 3 = ?", "answer": "5"}`.

    A row has `prompt` (a string) or `messages` (a chat); `answer`, or `tests`, or both; `id` if it is to have a name of
    its own; null is as good as absent. A test is a rule, `{"match": "regex", "answer": "(?i)why"}`, whose `match` is
    the task's if left out. The answer is the first test, and each gives one entry of `tests_passed`. Constructing reads
    no file.

    Args:
        train_path: File with the training rows, as JSON lines or a JSON list.
        test_path: File with the test rows.
        match: How an answer is compared. exact: character for character. normalised: apart from case, spaces and
            punctuation at the ends. numeric: its last number, within the tolerances. math_verify: mathematically (needs
            the extra `math`, and data.verify_workers above 0, as not all of it can be interrupted). regex: the row's
            answer is a pattern that is searched in the whole response.
        answer_from: What of the response, once its thinking is off, is its answer: the whole response, its last_line,
            the first line after_marker, or what a pattern matches.
        answer_marker: For answer_from after_marker, the text before the answer, for example "####"; its last place
            counts.
        answer_pattern: For answer_from pattern, a regular expression with one group, for example "Answer: (\d+)"; its
            last match counts.
        absolute_tolerance: How far a number may be off, in its own unit; the larger of both tolerances counts.
        relative_tolerance: How far a number may be off, as a share of the right one.
        leak_answers: Feedback on a wrong answer shows the right one.
        reward: all is 1 if every test is passed and else 0; share is the share of passed tests.
        val_share: Share of the training rows held out as "val"; 0 validates on the test rows.
        seed: Decides which rows val_share holds out.
        train_size: Keep only the first so many training rows, counted before val_share is held out; None keeps all.
        test_size: Keep only the first so many test rows; None keeps all.

    Raises:
        ConfigError: An argument is out of range, or contradicts another one.
    """

    def __init__(
        self,
        train_path: str | None = None,
        test_path: str | None = None,
        match: Match = "normalised",
        answer_from: AnswerFrom = "response",
        answer_marker: str | None = None,
        answer_pattern: str | None = None,
        absolute_tolerance: float = 0.0,
        relative_tolerance: float = 1e-6,
        leak_answers: bool = False,
        reward: Literal["all", "share"] = "all",
        val_share: float = 0.0,
        seed: int = 0,
        train_size: int | None = None,
        test_size: int | None = None,
    ) -> None:
        super().__init__(train_path, test_path, val_share, seed, train_size, test_size)
        require(match in MATCHES, f"{KEY}.match", f"one of {', '.join(MATCHES)}", match)
        require(reward in ("all", "share"), f"{KEY}.reward", "all or share", reward)
        require(absolute_tolerance >= 0, f"{KEY}.absolute_tolerance", "at least 0", absolute_tolerance)
        require(relative_tolerance >= 0, f"{KEY}.relative_tolerance", "at least 0", relative_tolerance)
        if match == "math_verify":
            try:
                Rule(match, "1")
            except ValueError as error:
                raise ConfigError(f"{KEY}.{error}") from error
        self.match = match
        self.extraction = Extraction(answer_from, answer_marker, answer_pattern)
        self.tolerance = Tolerance(absolute_tolerance, relative_tolerance)
        self.leak_answers = leak_answers
        self.reward = reward

    def read_row(self, fields: Fields, place: str) -> Example:
        """Return a row as an example whose answer is a tuple of rules.

        Raises:
            ValueError: A field is missing, or of the wrong type, or contradicts another one.
        """
        rules = []
        if _has(fields, "answer"):
            rules.append(_read_rule(fields, self.match))
        if _has(fields, "tests"):
            rules.extend(_read_tests(fields["tests"], self.match))
        if not rules:
            raise ValueError("the field answer is missing (or tests, for several rules)")
        name = read_text_field(fields, "id") if _has(fields, "id") else place
        return Example(name, _read_prompt(fields), tuple(rules))

    def how_to_get(self, split: Split) -> str:
        """Return what the file has to hold."""
        return (
            f"Set {KEY}.{split}_path to a file of JSON lines, each an object with `prompt` (or `messages`, a chat) and "
            "`answer`."
        )

    def verify(self, example: Example, response: str) -> Feedback:
        """Judge one response; the feedback has bounded length whatever a model writes.

        A pattern that takes for ever on some response is stopped by the verifier's time limit.

        Raises:
            ValueError: The example's answer is no tuple of rules, so it is not one of this task's.
        """
        rules = example.answer
        if not isinstance(rules, tuple) or not rules or not all(isinstance(rule, Rule) for rule in rules):
            raise ValueError(f"example {example.id}: answer must be a tuple of rules, got {rules!r:.60}")
        said = strip_thinking(response)
        found = self.extraction.find(said)
        passed = tuple(rule.holds(said, found, self.tolerance) for rule in rules)
        return Feedback(reward_for(passed, self.reward), passed, self._describe(rules, passed, found))

    def _describe(self, rules: Sequence[Rule], passed: Sequence[bool], found: str | None) -> str:
        failed = [(number, rule) for number, rule in enumerate(rules, start=1) if not passed[number - 1]]
        if not failed:
            return "The answer is right." if len(rules) == 1 else f"All {len(rules)} tests passed."
        lines = []
        if any(rule.match != "regex" for _, rule in failed):
            lines.append(
                f"No answer was found: it has to stand {self.extraction.place}."
                if found is None
                else f"The answer found is: {clip(found, _MAX_SHOWN)}"
            )
        if len(rules) > 1:
            lines.append(f"{len(failed)} of {len(rules)} tests failed.")
        for number, rule in failed[:_MAX_LISTED]:
            name = f"Test {number} failed: expected" if len(rules) > 1 else "That is wrong. Expected"
            shown = f", namely {clip(rule.answer, _MAX_SHOWN)}" if self.leak_answers else ""
            lines.append(f"{name} {rule.kind(self.tolerance)}{shown}.")
        return "\n".join(lines)


def _has(fields: Fields, name: str) -> bool:
    return fields.get(name) is not None  # exporters write null where a row lacks a column


def _read_prompt(fields: Fields) -> tuple[Message, ...]:
    if _has(fields, "prompt") == _has(fields, "messages"):
        number = "both" if _has(fields, "prompt") else "neither"
        raise ValueError(f"a row must have either prompt or messages, it has {number}")
    if _has(fields, "messages"):
        return read_messages(fields["messages"])
    return (Message(role="user", content=read_text_field(fields, "prompt")),)


def _read_rule(fields: Fields, match: Match) -> Rule:
    """Return the rule of a row, or of one of its tests; a number may stand as one where it is compared as one."""
    require_fields(fields, "answer")
    answer = fields["answer"]
    if match == "numeric" and isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = repr(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"answer must be a non-empty string for match {match}, got {clip(repr(answer))}")
    return Rule(match, answer)


def _read_tests(value: object, default: Match) -> list[Rule]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"tests must be a non-empty list, got {clip(repr(value))}")
    rules = []
    for number, test in enumerate(value, start=1):
        if not isinstance(test, dict):
            raise ValueError(f"test {number} must be an object, got {type(test).__name__}")
        try:
            rules.append(_read_rule(test, cast("Match", test["match"]) if _has(test, "match") else default))
        except ValueError as error:
            raise ValueError(f"test {number}: {error}") from error
    return rules
