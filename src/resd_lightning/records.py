"""The frozen records that cross module boundaries, in the order one update creates them.

Example -> Completion -> Feedback -> Rollout -> Reflection -> TeacherPrompt -> DistillBatch or GrpoBatch.
All but the last three, which Lightning carries or callbacks fill, are frozen. Nothing in here imports another module
of the package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal, TypedDict, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SUCCESS_REWARD = 1.0
"""A rollout succeeds when its reward reaches this value; the only success test in the package."""

Split = Literal["train", "val", "test"]
TagKind = Literal["helpful", "harmful", "neutral"]
Span = tuple[str, int, int]
"""A section's name, and where it begins and ends in a text."""


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
    RESCORE = "rescore"
    DIAGNOSE = "diagnose"


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
        """The last message's text: what the teacher's prompt enriches."""
        return self.messages[-1]["content"]

    @property
    def whole_question(self) -> str:
        """The whole chat as one text, roles named where it has several messages: what reflectors and curators read."""
        if len(self.messages) == 1:
            return self.question
        return "\n\n".join(f"[{message['role']}]\n{message['content']}" for message in self.messages)


@dataclass(frozen=True)
class Completion:
    """One sampled response, with the tokens that the loss is computed on.

    Attributes:
        text: The decoded response, without special tokens.
        prompt_ids: The tokens the response was sampled after, chat template applied.
        token_ids: The response's tokens, the end-of-turn token included if the model wrote it.
        is_truncated: The response ran into its token limit.
        is_skipped: The prompt was longer than its limit, so nothing was generated.
        log_probs: Of each token, in nats, under the model that wrote it at the sampling temperature, before top-p
            took tokens away (the field's old log-probs; so TRL and veRL). None where the engine doesn't know them. Left
            out of comparisons: their last bits depend on who shared the batch, the sample doesn't.
    """

    text: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    is_truncated: bool = False
    is_skipped: bool = False
    log_probs: tuple[float, ...] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.log_probs is not None and len(self.log_probs) != len(self.token_ids):
            raise ValueError(f"Completion.log_probs must be {len(self.token_ids)} numbers, got {len(self.log_probs)}")


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
        # A task's arithmetic may bring numpy's or torch's scalars, which neither JSON nor a checkpoint takes.
        object.__setattr__(self, "reward", float(self.reward))
        object.__setattr__(self, "tests_passed", tuple(bool(passed) for passed in self.tests_passed))
        if not isinstance(self.text, str):
            raise TypeError(f"Feedback.text must be a str, got {type(self.text).__name__}")
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


@dataclass(frozen=True)
class Answer:
    """What a model wrote when it was asked about a rollout, kept for transcripts and counts.

    Attributes:
        purpose: Reflect, tag or curate.
        rollout: Index in the update's rollouts.
        messages: The prompt; empty where it did not fit its limit and nothing was asked.
        text: The raw answer.
        problems: What was malformed in it.
    """

    purpose: Purpose
    rollout: int
    messages: tuple[Message, ...]
    text: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class TeacherPrompt:
    """What the teacher reads before it scores one response (RESD Alg. 1 lines 14 and 15).

    Prompt, loss mask and metrics all read this record, so they cannot disagree.

    Attributes:
        messages: The chat; the student's own where nothing enriches it.
        token_ids: Its tokens, up to where the response begins.
        sections: Sections it holds, of playbook, reflection, trial, feedback and solution; empty if it is plain.
        is_skipped: The enriched prompt did not fit its limit.
        spans: Where each section stands in the last message, for people to look at; see `context.marks`.
    """

    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    sections: frozenset[str]
    is_skipped: bool = False
    spans: tuple[Span, ...] = field(default=(), compare=False, repr=False)

    @property
    def is_enriched(self) -> bool:
        """Whether the teacher knows more than the student; if not, the sample is masked out of the loss."""
        return bool(self.sections)


class UpdateRecord:
    """Everything one update makes, filled in step by step by the loop and its callbacks.

    Args:
        update: Number of the update, counted from 0.
        rollouts: The update's rollouts, in prompt order then sample order; the same on every rank.
        metrics: Scalars of the update by name.

    Attributes:
        observations: What observers saw beyond scalars, each a plain object with its `kind`; for diagnostics.jsonl.
    """

    def __init__(self, update: int, rollouts: list[Rollout], metrics: dict[str, float]) -> None:
        self.update = update
        self.rollouts = rollouts
        self.metrics = metrics
        self.answers: list[Answer] = []
        self.operations: list[Mapping[str, object]] = []
        self.teacher_prompts: list[TeacherPrompt] = []
        self.observations: list[Mapping[str, object]] = []

    def count(self, name: str, amount: float = 1) -> None:
        """Add to a metric that starts at zero."""
        self.metrics[name] = self.metrics.get(name, 0.0) + amount

    def log_operations(self, operations: Iterable[Mapping[str, object]]) -> None:
        """Keep what happened to playbook entries, for transcripts."""
        self.operations.extend(operations)

    def playbook_keys(self, key: Callable[[str], str]) -> list[str]:
        """Return the keys of the playbooks that serve this update, each once, in prompt order."""
        return list(dict.fromkeys(key(rollout.example.id) for rollout in self.rollouts))

    def with_example(self, example_id: str) -> list[Rollout]:
        """Return the rollouts of one prompt."""
        return [rollout for rollout in self.rollouts if rollout.example.id == example_id]


class ExampleBatch:
    """Examples on their way through a Lightning loop; a plain class, because Lightning rebuilds dataclasses."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = tuple(examples)


class RolloutBatch:
    """Rollouts on their way out of a Lightning loop; a plain class for the same reason."""

    def __init__(self, rollouts: Sequence[Rollout]) -> None:
        self.rollouts = tuple(rollouts)


class DistillBatch:
    """One micro-batch of the loss: the same responses behind the student's and behind the teacher's prompts.

    Prompts are padded on the left and responses on the right, so that response token t stands in the same column of
    every row. A plain class: Lightning refuses frozen dataclasses, and would cast the fp32 coefficients of others.

    Args:
        student_ids: (batch, student_prompt + time) tokens.
        student_mask: True at the student's real tokens.
        teacher_ids: (batch, teacher_prompt + time) tokens, what all teacher prompts begin with left out.
        teacher_mask: True at the teacher's real tokens.
        response_mask: (batch, time), True at real response tokens.
        coefficients: (batch,) fp32; a sequence's share of the update's loss per unit of token loss.
        rollouts: Each row's index among the update's rollouts; empty for a batch that only fills a slot.
        is_filler: It weighs nothing and is there to fill a slot.
        teacher_prefix: (prefix,) tokens that stand before every row of `teacher_ids`; None for none.
        engine_log_probs: (batch, time) fp32, of the program that sampled the responses, zero at padding; None where it
            is this one.
    """

    def __init__(
        self,
        student_ids: Int[Tensor, "batch student_time"],
        student_mask: Bool[Tensor, "batch student_time"],
        teacher_ids: Int[Tensor, "batch teacher_time"],
        teacher_mask: Bool[Tensor, "batch teacher_time"],
        response_mask: Bool[Tensor, "batch time"],
        coefficients: Float[Tensor, " batch"],
        rollouts: Sequence[int] = (),
        is_filler: bool = False,
        teacher_prefix: Int[Tensor, " prefix"] | None = None,
        engine_log_probs: Float[Tensor, "batch time"] | None = None,
    ) -> None:
        self.student_ids = student_ids
        self.student_mask = student_mask
        self.teacher_ids = teacher_ids
        self.teacher_mask = teacher_mask
        self.response_mask = response_mask
        self.coefficients = coefficients
        self.rollouts = tuple(rollouts)
        self.is_filler = is_filler
        self.teacher_prefix = teacher_prefix if teacher_prefix is not None else student_ids.new_zeros(0)
        self.engine_log_probs = engine_log_probs

    def to(self, device: torch.device, non_blocking: bool = False) -> DistillBatch:
        """Return the batch on `device`, precision unchanged."""
        return _on_device(self, device, non_blocking)


class GrpoBatch:
    """One micro-batch of the policy gradient: responses behind the student's prompts, and how good they were.

    Laid out like `DistillBatch`, and a plain class for the same reasons: old log-probs and coefficients stay in fp32.

    Args:
        student_ids: (batch, student_prompt + time) tokens.
        student_mask: True at real tokens.
        response_mask: (batch, time), True at real response tokens.
        old_log_probs: (batch, time) fp32, of the rollout's policy on the response's tokens, zero at padding; None where
            the engine didn't record them.
        advantages: (batch,) fp32.
        coefficients: (batch,) fp32; a sequence's share of the update's loss per unit of token loss.
        num_update_tokens: Response tokens in all micro-batches of the update, over all ranks; for means in metrics.
        is_filler: It weighs nothing and is there to fill a slot.
    """

    def __init__(
        self,
        student_ids: Int[Tensor, "batch student_time"],
        student_mask: Bool[Tensor, "batch student_time"],
        response_mask: Bool[Tensor, "batch time"],
        old_log_probs: Float[Tensor, "batch time"] | None,
        advantages: Float[Tensor, " batch"],
        coefficients: Float[Tensor, " batch"],
        num_update_tokens: int,
        is_filler: bool = False,
    ) -> None:
        self.student_ids = student_ids
        self.student_mask = student_mask
        self.response_mask = response_mask
        self.old_log_probs = old_log_probs
        self.advantages = advantages
        self.coefficients = coefficients
        self.num_update_tokens = num_update_tokens
        self.is_filler = is_filler

    def to(self, device: torch.device, non_blocking: bool = False) -> GrpoBatch:
        """Return the batch on `device`, precision unchanged."""
        return _on_device(self, device, non_blocking)


MicroBatch = DistillBatch | GrpoBatch
BatchT = TypeVar("BatchT", bound=MicroBatch)


def _on_device(batch: BatchT, device: torch.device, non_blocking: bool) -> BatchT:
    moved = copy(batch)
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, Tensor)}
    vars(moved).update({name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()})
    return moved
