"""What student and teacher say at some of a response's tokens, in full distributions; without gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from resd_lightning.diagnostics.sections import FULL, spaced
from resd_lightning.distill.align import logits_at
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion


@dataclass(frozen=True)
class TokenFacts:
    """One response as student and teacher read it; means over the tokens looked at, in nats.

    Attributes:
        numbers: By name: `student_entropy`, `teacher_entropy`, `sharpening` (the first minus the second),
            `corrected_share` (tokens at which the teacher's likeliest token isn't the student's) and, where the
            response wasn't cut off, `eos_advantage` (the teacher's minus the student's log-probability of its last
            token).
        attribution: KL(behind the teacher's whole prompt || behind another of its prompts), by the other's name.
    """

    numbers: Mapping[str, float]
    attribution: Mapping[str, float]


def read_tokens(
    policy: Policy,
    completion: Completion,
    prompts: Mapping[str, Sequence[int]],
    *,
    max_tokens: int,
    rows_at_once: int,
) -> TokenFacts:
    """Return what the student makes of its response, and the teacher behind each of some prompts.

    Args:
        policy: Student and teacher; both in eval mode and without gradient.
        completion: The student's response, of at least one token.
        prompts: The teacher's, by name; `full` among them.
        max_tokens: Tokens looked at, evenly spaced, the last among them: this bounds the logits that are held.
        rows_at_once: Prompts per forward pass.
    """
    response = completion.token_ids
    places = spaced(range(len(response)), max_tokens)
    pad_id, device = policy.tokenizer.pad_token_id, policy.device
    with policy.frozen("student") as model:
        student = _log_probs(logits_at(model, [completion.prompt_ids], response, places, pad_id, device)[0])
    names = [FULL, *(name for name in prompts if name != FULL)]
    full: Tensor | None = None
    attribution: dict[str, float] = {}
    for start in range(0, len(names), rows_at_once):
        chunk = names[start : start + rows_at_once]
        ids = [prompts[name] for name in chunk]
        logits = policy.teacher_logits(
            lambda model, ids=ids: logits_at(model, ids, response, places, pad_id, device)  # type: ignore[misc]
        )
        for name, row in zip(chunk, logits, strict=True):
            if full is None:
                full = _log_probs(row)
            else:
                attribution[name] = float(mean_kl(full, _log_probs(row)))
    assert full is not None
    last = None if completion.is_truncated else response[-1]
    return TokenFacts(compare(student, full, last), attribution)


def compare(
    student: Float[Tensor, "token vocab"], teacher: Float[Tensor, "token vocab"], last: int | None
) -> dict[str, float]:
    """Return the numbers of `TokenFacts` from log-probabilities; `last` is the response's last token if it ended."""
    student_entropy, teacher_entropy = (float(torch.special.entr(p.exp()).sum(-1).mean()) for p in (student, teacher))
    numbers = {
        "student_entropy": student_entropy,
        "teacher_entropy": teacher_entropy,
        "sharpening": student_entropy - teacher_entropy,
        "corrected_share": float((student.argmax(-1) != teacher.argmax(-1)).float().mean()),
    }
    if last is not None:
        numbers["eos_advantage"] = float(teacher[-1, last] - student[-1, last])
    return numbers


def mean_kl(one: Float[Tensor, "token vocab"], other: Float[Tensor, "token vocab"]) -> Float[Tensor, ""]:
    """Return KL(one || other) of log-probabilities, averaged over tokens; items that `one` rules out count nothing."""
    terms = one.exp() * (one - other)
    return terms.masked_fill(one == -torch.inf, 0).sum(dim=-1).mean()  # (token, vocab) -> ()


def _log_probs(logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    return logits.float().log_softmax(dim=-1)
