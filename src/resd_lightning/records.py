"""The frozen records that cross module boundaries, in the order one update creates them.

Example -> Completion -> Feedback -> Rollout -> Reflection -> TeacherPrompt -> DistillBatch.
Nothing in here imports another module of the package.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

SUCCESS_REWARD = 1.0
"""A rollout succeeds when its reward reaches this value; the only success test in the package."""

Split = Literal["train", "val", "test"]
TagKind = Literal["helpful", "harmful", "neutral"]


class Message(TypedDict):
    """One chat message, in the format every chat template reads."""

    role: str
    content: str


class Purpose(StrEnum):
    """Why tokens are generated; part of every sample's seed and of the token accounting."""

    ROLLOUT = "rollout"
    REFLECT = "reflect"
    TAG = "tag"
    CURATE = "curate"
    VALIDATE = "validate"
    PREDICT = "predict"


@dataclass(frozen=True)
class Example:
    """One prompt of a task, with what its task needs to judge a response.

    Attributes:
        id: Unique within its split; names the example in seeds, playbook provenance and transcripts.
        messages: The chat up to and including the user's question.
        answer: What the task verifies against; only the task reads it.
        family: The kind of problem, for grouped metrics; empty where the task has one kind.
    """

    id: str
    messages: tuple[Message, ...]
    answer: object
    family: str = ""

    @property
    def question(self) -> str:
        """The last message's text: what teacher, reflector and curator prompts quote."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Completion:
    """One sampled response, with the tokens that the loss is computed on.

    Attributes:
        text: The decoded response, without special tokens.
        prompt_ids: The tokens the response was sampled after, chat template applied.
        token_ids: The response's tokens, the end-of-turn token included if the model wrote it.
        is_truncated: The response ran into its token limit.
        is_skipped: The prompt was longer than its limit, so nothing was generated.
    """

    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    is_truncated: bool = False
    is_skipped: bool = False


@dataclass(frozen=True)
class Feedback:
    """What the environment says about one response (RESD Alg. 1 line 4).

    Attributes:
        reward: In [0, 1].
        tests_passed: One claim per test case, in the order of the example's tests.
        text: The environment's words about this response; empty when it has nothing to say.
        error: Why verification itself failed ("raised", "timeout"); empty when it did not.
    """

    reward: float
    tests_passed: tuple[bool, ...]
    text: str
    error: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.reward <= 1.0:
            raise ValueError(f"Feedback.reward must be in [0, 1], got {self.reward}")

    @property
    def is_success(self) -> bool:
        """Whether the response solved the task: the reward reached `SUCCESS_REWARD`."""
        return self.reward >= SUCCESS_REWARD

    @property
    def share_passed(self) -> float:
        """The fraction of test cases passed; the reward where the task reports no test cases."""
        if not self.tests_passed:
            return self.reward
        return sum(self.tests_passed) / len(self.tests_passed)


@dataclass(frozen=True)
class Tag:
    """The reflector's verdict on one playbook entry."""

    id: str
    tag: TagKind


@dataclass(frozen=True)
class Reflection:
    """What the reflector made of one rollout (RESD Alg. 1 line 8).

    Only the insight is required of the model; the other texts may be empty.
    """

    key_insight: str
    analysis: str = ""
    error: str = ""
    root_cause: str = ""
    right_approach: str = ""
    tags: tuple[Tag, ...] = ()


@dataclass(frozen=True)
class Problem:
    """Malformed model output, as data: which kind, and a sentence for the transcript.

    Attributes:
        kind: A short snake_case name that metrics count by, for example "no_json" or "unknown_id".
        detail: What was wrong, for people.
    """

    kind: str
    detail: str


@dataclass(frozen=True)
class Rollout:
    """One response to one example, and everything the context made of it.

    Attributes:
        example: The prompt.
        sample: The response's number among those of its prompt.
        completion: What the student wrote.
        feedback: What the environment said.
        reflection: What the reflector made of it; None before reflection, or where it failed.
    """

    example: Example
    sample: int
    completion: Completion
    feedback: Feedback
    reflection: Reflection | None = None

    @property
    def is_success(self) -> bool:
        """Whether the environment gave full reward."""
        return self.feedback.is_success
