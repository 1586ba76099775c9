"""Weights of tokens that another program sampled, by its log-probs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import make_policy, move
from resd_lightning.config import ConfigError, DistillationConfig
from resd_lightning.distill.align import make_batch, response_logits
from resd_lightning.distill.weights import importance_weights
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.objectives.objective import Cut
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Example, Feedback, Message, Rollout, TeacherPrompt

PROMPTS, TEACHERS, RESPONSES = [[1, 2], [1]], [[3, 4, 5], [6]], [[7, 8, 20], [9]]
CONFIG = DistillationConfig(top_k=7)


@pytest.fixture
def policy(tiny_base: Path) -> Policy:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), seed=1)
    return policy


def own_log_probs(policy: Policy, temperature: float) -> list[list[float]]:
    """The student's, by hand: one response at a time, from all logits."""
    rows = []
    for prompt, response in zip(PROMPTS, RESPONSES, strict=True):
        ids = torch.tensor([[*prompt, *response]])
        with policy.frozen("student") as model:
            logits = response_logits(model, ids, torch.ones_like(ids).bool(), len(response))[0] / temperature
        rows.append(logits.log_softmax(dim=-1).gather(-1, torch.tensor(response)[:, None])[:, 0].tolist())
    return rows


def loss(
    policy: Policy, how: str, engine: list[list[float]] | None, temperature: float = 1.0
) -> tuple[Tensor, dict[str, float]]:
    objective = DistillationObjective(replace(CONFIG, loss=how))
    objective.weighs_by_engine(engine is not None, temperature)
    objective._num_counted_tokens = 4
    batch = make_batch(PROMPTS, TEACHERS, RESPONSES, [0.5, 0.25], 0, engine_log_probs=engine)
    policy.model.zero_grad()
    value = objective.loss(policy, batch)
    value.backward()
    return value.detach(), {name: float(part) for name, part in objective.sums().items()}


def test_weights_by_hand() -> None:
    own = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    engine = torch.tensor([[-1.0, -2.0 - math.log(1.5), -3.0 - math.log(9)]])
    weights = importance_weights(own, engine, 2.0)
    assert weights.tolist() == [pytest.approx([1.0, 1.5, 2.0])]
    assert not weights.requires_grad


@pytest.mark.parametrize("how", ["plain", "fused"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("log_ratio", "weight", "clipped"), [(0.0, 1.0, 0.0), (math.log(1.5), 1.5, 0.0), (3, 2, 1.0)])
def test_each_tokens_loss_is_multiplied_by_the_ratio_up_to_the_clip(
    policy: Policy, how: str, temperature: float, log_ratio: float, weight: float, clipped: float
) -> None:
    plain, none = loss(policy, how, None)
    engine = [[value - log_ratio for value in row] for row in own_log_probs(policy, temperature)]
    weighed, sums = loss(policy, how, engine, temperature)
    assert none == {}
    assert float(weighed) == pytest.approx(weight * float(plain), rel=1e-4)
    assert sums == {
        "distillation/importance_weight": pytest.approx(weight, rel=1e-4),
        "distillation/importance_clipped_share": clipped,
    }


def test_the_gradient_is_that_of_the_weighed_loss(policy: Policy) -> None:
    loss(policy, "plain", None)
    plain = [weight.grad.clone() for weight in policy.student_weights().values()]
    loss(policy, "plain", [[value - math.log(1.5) for value in row] for row in own_log_probs(policy, 1.0)])
    for before, weight in zip(plain, policy.student_weights().values(), strict=True):
        torch.testing.assert_close(weight.grad, 1.5 * before, rtol=1e-3, atol=1e-7)


def rollouts(log_probs: tuple[float, ...] | None) -> tuple[list[Rollout], list[TeacherPrompt]]:
    example = Example("x", (Message(role="user", content="q"),), None)
    completion = Completion("", (1, 2), (3, 4), log_probs=log_probs)
    prompt = TeacherPrompt(example.messages, (1, 5, 2), frozenset({"feedback"}))
    return [Rollout(example, 0, completion, Feedback(0.0, (), ""))], [prompt]


@pytest.mark.parametrize(
    ("is_apart", "clip", "is_carried"), [(True, 2.0, True), (False, 2.0, False), (True, None, False)]
)
def test_log_probs_go_along_only_where_another_program_sampled(
    is_apart: bool, clip: float | None, is_carried: bool
) -> None:
    objective = DistillationObjective(replace(CONFIG, importance_clip=clip))
    objective.weighs_by_engine(is_apart, 1.0)
    (batch,) = objective.micro_batches(*rollouts((-1.0, -2.0)), Cut(micro_batch_size=2, num_slots=1, pad_id=0))
    assert (batch.engine_log_probs is not None) == is_carried
    if is_carried:
        assert batch.engine_log_probs.tolist() == [[-1.0, -2.0]]
        assert batch.engine_log_probs.dtype == torch.float32


def test_an_engine_without_log_probs_is_told_so() -> None:
    objective = DistillationObjective(CONFIG)
    objective.weighs_by_engine(True, 1.0)
    with pytest.raises(RuntimeError, match=r"importance_clip needs log-probs, which data\.engine hasn't given"):
        objective.micro_batches(*rollouts(None), Cut(micro_batch_size=2, num_slots=1, pad_id=0))


def test_a_clip_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.distillation\.importance_clip must be at least 1"):
        DistillationConfig(importance_clip=0.5)
