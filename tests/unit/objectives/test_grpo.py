from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import make_policy, move
from resd_lightning.config import ConfigError, GrpoConfig, TeacherConfig
from resd_lightning.distill.align import response_logits
from resd_lightning.distill.log_probs import token_log_probs
from resd_lightning.objectives.grpo import (
    GrpoObjective,
    clipped_surrogate,
    group_advantages,
    k3,
    make_grpo_batch,
)
from resd_lightning.objectives.objective import Cut
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Example, Feedback, GrpoBatch, Message, Rollout

CONFIG = GrpoConfig()
MESSAGES = (Message(role="user", content="q"),)


def rollout(group: str, reward: float, length: int, log_probs: tuple[float, ...] | None = None) -> Rollout:
    completion = Completion("", (1, 2), tuple(range(3, 3 + length)), log_probs=log_probs)
    return Rollout(Example(group, MESSAGES, None), 0, completion, Feedback(reward, (), ""))


# a has signal, b failed altogether, c has partial rewards; six rollouts have 2 + 4 + 3 + 3 + 1 + 5 = 18 tokens
UPDATE = [
    rollout("a", 1.0, 2),
    rollout("a", 0.0, 4),
    rollout("b", 0.0, 3),
    rollout("b", 0.0, 3),
    rollout("c", 0.25, 1),
    rollout("c", 0.75, 5),
]


def float64(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# Advantages


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 0.5, 0.0, 0.5], dtype=torch.float64)
    groups = ["a", "b", "a", "b", "a", "b"]
    # a is 1, 0, 0: mean 1/3, sample variance (4/9 + 1/9 + 1/9) / 2 = 1/3; b is 0, 1/2, 1/2: mean 1/3, variance 1/12
    plain = [2 / 3, -1 / 3, -1 / 3, 1 / 6, -1 / 3, 1 / 6]
    assert group_advantages(rewards, groups, normalize_by_std=False).tolist() == pytest.approx(plain, rel=1e-14)
    stds = [math.sqrt(1 / 3) if group == "a" else math.sqrt(1 / 12) for group in groups]
    divided = [advantage / (std + 1e-6) for advantage, std in zip(plain, stds, strict=True)]
    assert group_advantages(rewards, groups, normalize_by_std=True).tolist() == pytest.approx(divided, rel=1e-14)


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 1.0])
def test_a_group_of_equal_rewards_has_no_advantage_at_all(reward: float, normalize_by_std: bool) -> None:
    # 0.1 seven times over has another mean than 0.1, and the rest divided by 1e-6 would be seen.
    rewards = torch.tensor([reward] * 7 + [1.0, 0.0])
    advantages = group_advantages(rewards, ["a"] * 7 + ["b"] * 2, normalize_by_std=normalize_by_std)
    assert advantages[:7].tolist() == [0.0] * 7
    assert advantages[7] > 0.49


def test_groups_are_counted_and_so_are_those_without_signal() -> None:
    expected = {"grpo/groups": 3, "grpo/groups_without_signal": 1, "grpo/without_rollout_log_probs": 6}
    assert GrpoObjective(CONFIG).measure(UPDATE) == expected
    recorded = [rollout("a", 1.0, 1, (-1.0,)), rollout("a", 1.0, 1, (-1.0,))]
    assert GrpoObjective(CONFIG).measure(recorded) == {
        "grpo/groups": 1,
        "grpo/groups_without_signal": 1,
        "grpo/without_rollout_log_probs": 0,
    }


def test_transcripts_are_told_the_advantage() -> None:
    described = GrpoObjective(replace(CONFIG, normalize_by_std=False)).describe(UPDATE, [])
    assert described == [{"advantage": a} for a in (0.5, -0.5, 0.0, 0.0, -0.25, 0.25)]


# The token loss


def test_the_clip_acts_above_for_good_and_below_for_bad_responses_only() -> None:
    ratios = [0.5, 0.8, 1.0, 1.28, 2.0]
    old = float64([-1.0] * 5, [-1.0] * 5)
    new = old + float64(ratios, ratios).log()
    losses, is_clipped = clipped_surrogate(new, old, torch.tensor([2.0, -2.0]).double(), clip_low=0.2, clip_high=0.28)
    # good: -2 min(r, 1.28); bad: 2 max(r, 0.8)
    assert losses[0].tolist() == pytest.approx([-1.0, -1.6, -2.0, -2.56, -2.56], rel=1e-12)
    assert losses[1].tolist() == pytest.approx([1.6, 1.6, 2.0, 2.56, 4.0], rel=1e-12)
    assert is_clipped[:, [0, 2, 4]].tolist() == [[False, False, True], [True, False, False]]


def test_a_clipped_token_has_no_gradient_and_any_other_advantage_times_ratio() -> None:
    old = float64([-1.0, -1.0, -1.0], [-1.0, -1.0, -1.0])
    new = (old + float64([0.5, 1.1, 2.0], [0.5, 1.1, 2.0]).log()).requires_grad_()
    clipped_surrogate(new, old, torch.tensor([3.0, -1.0]).double(), clip_low=0.2, clip_high=0.28)[0].sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == [
        pytest.approx([-1.5, -3.3, 0.0], rel=1e-12),
        pytest.approx([0.0, 1.1, 2.0], rel=1e-12),
    ]


def test_k3_by_hand() -> None:
    gap = k3(float64([-1.0, -2.0, -0.5]), float64([-1.0, -1.0, -2.5]))
    # reference - policy is 0, 1 and -2
    assert gap.tolist() == [pytest.approx([0.0, math.e - 2, math.exp(-2) + 1], rel=1e-12)]


def test_log_probs_are_those_of_the_tempered_softmax_and_padding_is_not_read() -> None:
    logits = float64([0.0, 1.0, 2.0], [math.nan, math.inf, 0.0]).unsqueeze(0)
    mask = torch.tensor([[True, False]])
    found = token_log_probs(logits, torch.tensor([[1, 2]]), mask, 0.5)
    assert found.tolist() == [[pytest.approx(2.0 - math.log(1 + math.exp(2) + math.exp(4)), rel=1e-14), 0.0]]


def test_log_probs_of_half_precision_logits_are_fp32() -> None:
    logits = torch.tensor([[[0.5, 1.0, 2.0]]], dtype=torch.bfloat16)
    found = token_log_probs(logits, torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool), 1.0)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(0.5 - math.log(math.exp(0.5) + math.e + math.exp(2)), rel=1e-6)


# Reductions and micro-batches


@pytest.mark.parametrize(
    ("reduction", "expected"),
    [
        ("sequence_mean", [1 / 12, 1 / 24, 1 / 18, 1 / 18, 1 / 6, 1 / 30]),  # 1 / (6 T)
        ("sequence_sum", [1 / 6] * 6),
        ("token_mean", [1 / 18] * 6),
    ],
)
def test_coefficients_by_hand(reduction: str, expected: list[float]) -> None:
    coefficients = GrpoObjective(replace(CONFIG, reduction=reduction)).coefficients(UPDATE)
    assert coefficients.dtype == torch.float32
    assert coefficients.tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("kl_coefficient", "lengths"), [(0.0, [1, 2, 4, 5]), (0.1, [1, 2, 3, 3, 4, 5])])
@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("micro_batch_size", [1, 4])
def test_rollouts_without_signal_are_left_out_unless_a_kl_term_counts_them(
    kl_coefficient: float, lengths: list[int], world_size: int, micro_batch_size: int
) -> None:
    objective = GrpoObjective(replace(CONFIG, kl_coefficient=kl_coefficient))
    rows = []
    for rank in range(world_size):
        batches = objective.micro_batches(
            UPDATE, [], Cut(micro_batch_size=micro_batch_size, num_slots=6, pad_id=0, rank=rank, world_size=world_size)
        )
        assert len(batches) == 6
        for batch in batches:
            assert batch.is_filler == (not batch.coefficients.any())
            assert batch.advantages.dtype == batch.coefficients.dtype == torch.float32
            rows += [] if batch.is_filler else batch.response_mask.sum(dim=1).tolist()
    assert sorted(rows) == lengths


def test_an_update_without_rollouts_is_all_fillers() -> None:
    batches = GrpoObjective(CONFIG).micro_batches([], [], Cut(micro_batch_size=2, num_slots=3, pad_id=0))
    assert [batch.is_filler for batch in batches] == [True] * 3
    assert GrpoObjective(CONFIG).measure([])["grpo/groups"] == 0


def test_recorded_log_probs_stand_beside_their_tokens_in_fp32_and_one_missing_leaves_out_all() -> None:
    recorded = [rollout("a", 1.0, 2, (-0.1, -0.2)), rollout("a", 0.0, 1, (-0.3,))]
    (batch,) = GrpoObjective(CONFIG).micro_batches(recorded, [], Cut(micro_batch_size=2, num_slots=1, pad_id=0))
    assert batch.old_log_probs is not None
    assert batch.old_log_probs.dtype == torch.float32
    torch.testing.assert_close(batch.old_log_probs, torch.tensor([[-0.1, -0.2], [-0.3, 0.0]]))
    mixed = [recorded[0], rollout("a", 0.0, 1)]
    for size in (1, 2):
        batches = GrpoObjective(CONFIG).micro_batches(mixed, [], Cut(micro_batch_size=size, num_slots=2, pad_id=0))
        assert [batch.old_log_probs for batch in batches] == [None, None]


def test_a_batch_moves_with_its_precision() -> None:
    batch = make_grpo_batch([[1]], [[2, 3]], [[-0.5, -1.5]], [1.0], [0.5], 2, 0)
    moved = batch.to(torch.device("meta"))
    assert {name for name, value in vars(moved).items() if isinstance(value, torch.Tensor) and value.is_meta} == {
        name for name, value in vars(batch).items() if isinstance(value, torch.Tensor)
    }
    assert moved.old_log_probs is not None
    assert moved.old_log_probs.dtype == torch.float32
    assert batch.advantages.device.type == "cpu"
    assert (moved.num_update_tokens, moved.is_filler) == (2, False)


# On a model that has moved from where it started


@pytest.fixture
def policy(tiny_base: Path) -> Policy:
    policy = make_policy(tiny_base, TeacherConfig(kind="live"))
    move(policy.student_weights().values())
    return policy


def plain_loss(policy: Policy, batch: GrpoBatch, config: GrpoConfig, temperature: float) -> torch.Tensor:
    """The formula, one token after another, in float64 from the logits on."""
    time = batch.response_mask.shape[1]
    logits = response_logits(policy.model, batch.student_ids, batch.student_mask, time).double()
    with policy.frozen("base") as model:
        initial = response_logits(model, batch.student_ids, batch.student_mask, time).double()
    total = logits.new_zeros(())
    for row in range(len(batch.coefficients)):
        for t in range(time):
            if not batch.response_mask[row, t]:
                continue
            token = batch.student_ids[row, -time + t]
            log_prob = (logits[row, t] / temperature).log_softmax(-1)[token]
            old = log_prob.detach() if batch.old_log_probs is None else batch.old_log_probs[row, t].double()
            ratio, advantage = (log_prob - old).exp(), batch.advantages[row].double()
            clipped = ratio.clamp(1 - config.clip_low, 1 + config.clip_high)
            gap = (initial[row, t] / temperature).log_softmax(-1)[token] - log_prob
            token_loss = -torch.min(ratio * advantage, clipped * advantage)
            token_loss = token_loss + config.kl_coefficient * (gap.exp() - gap - 1)
            total = total + batch.coefficients[row].double() * token_loss
    return total


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.3])
@pytest.mark.parametrize("old", [None, [[-5.0, -5.5], [-6.0]]])
def test_loss_and_gradient_are_autograds_of_the_plain_formula(
    policy: Policy, kl_coefficient: float, old: list[list[float]] | None
) -> None:
    config = replace(CONFIG, kl_coefficient=kl_coefficient)
    batch = make_grpo_batch([[1, 2], [1]], [[7, 8], [9]], old, [1.5, -0.5], [0.5, 0.125], 3, 0)
    objective = GrpoObjective(config, temperature=0.7)
    weights = list(policy.student_weights().values())
    loss = objective.loss(policy, batch)
    expected = plain_loss(policy, batch, config, 0.7)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    gradients = torch.autograd.grad(loss, weights)
    for found, by_formula in zip(gradients, torch.autograd.grad(expected, weights), strict=True):
        torch.testing.assert_close(found, by_formula, rtol=1e-3, atol=1e-6)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3


def test_without_recorded_log_probs_the_gradient_is_that_of_reinforce(policy: Policy) -> None:
    batch = make_grpo_batch([[1, 2]], [[7, 8]], None, [2.0], [0.5], 2, 0)
    weights = list(policy.student_weights().values())
    gradients = torch.autograd.grad(GrpoObjective(CONFIG).loss(policy, batch), weights)
    reinforce = -0.5 * 2.0 * GrpoObjective(CONFIG).log_probs(policy, policy.model, batch).sum()
    for found, expected in zip(gradients, torch.autograd.grad(reinforce, weights), strict=True):
        torch.testing.assert_close(found, expected)


def test_micro_batches_add_up_to_the_update_whatever_their_size(policy: Policy) -> None:
    # Not the policy's own log-probs, so that the ratios are far from one and some are clipped.
    update = [replace(r, completion=replace(r.completion, log_probs=(-5.0,) * len(r.completion.token_ids)))
              for r in UPDATE]  # fmt: skip
    objective = GrpoObjective(replace(CONFIG, kl_coefficient=0.1, reduction="token_mean"))
    totals, gradients, sums = [], [], []
    for size in (1, 2, 6):
        policy.zero_grad()
        objective.begin_update()
        total = 0.0
        for batch in objective.micro_batches(update, [], Cut(micro_batch_size=size, num_slots=7, pad_id=0)):
            loss = objective.loss(policy, batch)
            loss.backward()
            total += loss.item()
        totals.append(total)
        gradients.append(torch.cat([w.grad.flatten() for w in policy.student_weights().values()]))
        sums.append({name: part.item() for name, part in objective.sums().items()})
    assert abs(totals[0]) > 0.001
    assert totals[1:] == pytest.approx([totals[0]] * 2, rel=1e-4)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-3, atol=1e-6)
    assert sums[1:] == [pytest.approx(sums[0], rel=1e-4)] * 2
    assert set(sums[0]) == {"grpo/clipped_share", "grpo/log_ratio", "grpo/kl"}
    assert 0 < sums[0]["grpo/clipped_share"] < 1
    assert sums[0]["grpo/kl"] > 0


def test_a_filler_gives_a_zero_that_hangs_on_the_graph_and_counts_in_no_metric(policy: Policy) -> None:
    objective = GrpoObjective(CONFIG)
    (filler,) = objective.micro_batches(UPDATE[2:4], [], Cut(micro_batch_size=2, num_slots=1, pad_id=0))
    loss = objective.loss(policy, filler)
    loss.backward()
    assert loss.item() == 0.0
    assert all(weight.grad is not None and not weight.grad.any() for weight in policy.student_weights().values())
    assert [part.item() for part in objective.sums().values()] == [0.0, 0.0]


def test_a_loss_of_nothing_gives_every_trained_weight_the_gradient_of_a_filler(policy: Policy) -> None:
    policy.zero().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in policy.student_weights().values())


def test_the_initial_model_has_no_divergence_from_itself(tiny_base: Path) -> None:
    objective = GrpoObjective(replace(CONFIG, kl_coefficient=1.0))
    batch = make_grpo_batch([[1, 2]], [[7, 8]], None, [0.0], [1.0], 2, 0)
    assert objective.loss(make_policy(tiny_base), batch).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "key"),
    [({"clip_low": 1.5}, "clip_low"), ({"clip_high": -0.1}, "clip_high"), ({"kl_coefficient": -1.0}, "kl_coefficient")],
)
def test_settings_out_of_range_are_refused_by_key(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"model\.grpo\.{key} must be"):
        GrpoConfig(**settings)
