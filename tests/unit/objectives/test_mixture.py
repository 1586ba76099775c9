from __future__ import annotations

from pathlib import Path

import pytest
import torch

from conftest import make_policy, move
from resd_lightning.config import DistillationConfig, GrpoConfig, TeacherConfig
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.objectives.grpo import GrpoObjective
from resd_lightning.objectives.mixture import MixtureObjective
from resd_lightning.objectives.objective import Cut, Objective
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, DistillBatch, Example, Feedback, Message, Rollout, TeacherPrompt

MESSAGES = (Message(role="user", content="q"),)
ROLLOUTS = [
    Rollout(Example("a", MESSAGES, None), i, Completion("", (1, 2), tuple(range(3, 6 + i))), Feedback(reward, (), ""))
    for i, reward in enumerate((1.0, 0.0, 0.0))
]
PROMPTS = [TeacherPrompt(MESSAGES, (1, 5, 2), frozenset(sections)) for sections in ((), ("feedback",), ("feedback",))]
DISTILLATION = DistillationObjective(DistillationConfig(top_k=7))
GRPO = GrpoObjective(GrpoConfig())


@pytest.fixture
def policy(tiny_base: Path) -> Policy:
    policy = make_policy(tiny_base, TeacherConfig())
    move(policy.student_weights().values())
    return policy


def gradient(policy: Policy, objective: Objective, num_slots: int) -> torch.Tensor:
    policy.zero_grad()
    objective.begin_update()
    for batch in objective.micro_batches(ROLLOUTS, PROMPTS, Cut(micro_batch_size=2, num_slots=num_slots, pad_id=0)):
        objective.loss(policy, batch).backward()
    return torch.cat([weight.grad.flatten() for weight in policy.student_weights().values()])


@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_gradient_is_the_weighted_sum_of_both(policy: Policy, weight: float) -> None:
    one, other = gradient(policy, DISTILLATION, 2), gradient(policy, GRPO, 2)
    assert one.abs().max() > 1e-4
    assert other.abs().max() > 1e-4
    mixed = gradient(policy, MixtureObjective(DISTILLATION, GRPO, weight), 4)
    torch.testing.assert_close(mixed, weight * one + (1 - weight) * other, rtol=1e-4, atol=1e-7)


def test_each_loss_has_half_the_slots_and_they_stand_in_one_order_on_every_rank() -> None:
    mixture = MixtureObjective(DISTILLATION, GRPO, 0.5)
    for rank in range(2):
        batches = mixture.micro_batches(
            ROLLOUTS, PROMPTS, Cut(micro_batch_size=1, num_slots=6, pad_id=0, rank=rank, world_size=2)
        )
        assert [isinstance(batch, DistillBatch) for batch in batches] == [True] * 3 + [False] * 3


@pytest.mark.parametrize(("weight", "is_filler"), [(1.0, [False, True]), (0.0, [True, False])])
def test_a_loss_without_weight_is_not_run(weight: float, is_filler: list[bool]) -> None:
    mixture = MixtureObjective(DISTILLATION, GRPO, weight)
    batches = mixture.micro_batches(ROLLOUTS, PROMPTS, Cut(micro_batch_size=3, num_slots=2, pad_id=0))
    assert [batch.is_filler for batch in batches] == is_filler


def test_it_uses_the_teacher_until_its_weight_is_gone() -> None:
    assert MixtureObjective(DISTILLATION, GRPO, 0.1).uses_teacher
    assert not MixtureObjective(DISTILLATION, GRPO, 0.0).uses_teacher


def test_metrics_and_transcripts_have_both_parts(policy: Policy) -> None:
    mixture = MixtureObjective(DISTILLATION, GRPO, 0.25)
    measured = mixture.measure(ROLLOUTS)
    assert (measured["mixture/distillation_weight"], measured["grpo/groups"]) == (0.25, 1)
    assert [set(described) for described in mixture.describe(ROLLOUTS, PROMPTS)] == [
        {"loss_coefficient", "advantage"}
    ] * 3
    gradient(policy, mixture, 4)
    assert set(mixture.sums()) == {"grpo/clipped_share", "grpo/log_ratio"}
    mixture.begin_update()
    assert mixture.sums() == {}


def test_only_a_turn_of_the_distillation_has_token_facts_and_they_are_taken_once(policy: Policy) -> None:
    mixture = MixtureObjective(DISTILLATION, GRPO, 0.5)
    taken = []
    for batch in mixture.micro_batches(ROLLOUTS, PROMPTS, Cut(micro_batch_size=3, num_slots=2, pad_id=0)):
        mixture.loss(policy, batch)
        taken.append(mixture.take_token_facts())
        assert mixture.take_token_facts() == {}
    assert [set(facts) for facts in taken] == [{"divergence", "clipped_share", "clipped_mass"}, set()]
    assert all(facts.shape == (2, 5) and not facts.requires_grad for facts in taken[0].values())
