from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from resd_lightning.config import DistillationConfig, LoraSettings, PolicyConfig, TeacherConfig
from resd_lightning.distill.align import make_batch, response_logits
from resd_lightning.distill.divergence import distillation_loss
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.objectives.objective import Cut
from resd_lightning.policy.load import load_policy, load_tokenizer
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Example, Feedback, Message, Rollout, TeacherPrompt

CONFIG = DistillationConfig(top_k=7, success_weights=False)
FULL, PLAIN = frozenset({"feedback"}), frozenset()


def update(*facts: tuple[int, bool, frozenset[str]]) -> tuple[list[Rollout], list[TeacherPrompt]]:
    """Return rollouts and prompts of (response tokens, success, sections)."""
    example = Example("x", (Message(role="user", content="q"),), None)
    rollouts = [
        Rollout(example, i, Completion("", (1, 2), tuple(range(3, 3 + length))), Feedback(float(success), (), ""))
        for i, (length, success, _) in enumerate(facts)
    ]
    prompts = [TeacherPrompt(example.messages, (1, 5, 2), sections) for _, _, sections in facts]
    return rollouts, prompts


# Three failures and one success; the third is masked, so its ten tokens count nowhere.
UPDATE = update((2, True, FULL), (4, False, FULL), (10, False, PLAIN), (5, False, FULL))


@pytest.mark.parametrize(
    ("reduction", "success_weights", "expected"),
    [
        ("sequence_mean", False, [1 / 8, 1 / 16, 0, 1 / 20]),  # 1 / (4 T)
        ("sequence_sum", False, [1 / 4, 1 / 4, 0, 1 / 4]),
        ("token_mean", False, [1 / 11, 1 / 11, 0, 1 / 11]),  # 2 + 4 + 5 tokens
        # s = 1/4 over all four: 3/4 and 1/4, divided by their mean 3/8.
        ("sequence_mean", True, [2 / 8, 2 / 48, 0, 2 / 60]),
        ("sequence_sum", True, [2 / 4, 2 / 12, 0, 2 / 12]),
        ("token_mean", True, [2 / 11, 2 / 33, 0, 2 / 33]),
    ],
)
def test_coefficients_by_hand(reduction: str, success_weights: bool, expected: list[float]) -> None:
    objective = DistillationObjective(replace(CONFIG, reduction=reduction, success_weights=success_weights))
    coefficients = objective.coefficients(*UPDATE)
    assert coefficients.dtype == torch.float32
    assert coefficients.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("reduction", ["sequence_mean", "sequence_sum", "token_mean"])
def test_coefficient_is_zero_iff_the_prompt_is_plain_or_the_response_empty(reduction: str) -> None:
    objective = DistillationObjective(replace(CONFIG, reduction=reduction))
    coefficients = objective.coefficients(*update((3, False, FULL), (3, False, PLAIN), (0, False, FULL)))
    assert (coefficients > 0).tolist() == [True, False, False]
    assert objective.coefficients(*update((3, True, PLAIN), (0, False, FULL))).tolist() == [0, 0]


@pytest.mark.parametrize("reduction", ["sequence_mean", "sequence_sum", "token_mean"])
@pytest.mark.parametrize("success_weights", [False, True])
def test_an_update_without_rollouts_is_all_fillers(reduction: str, success_weights: bool) -> None:
    objective = DistillationObjective(replace(CONFIG, reduction=reduction, success_weights=success_weights))
    assert objective.coefficients([], []).shape == (0,)
    batches = objective.micro_batches([], [], Cut(micro_batch_size=2, num_slots=3, pad_id=0))
    assert [batch.coefficients.tolist() for batch in batches] == [[0.0]] * 3


def test_exponents_of_the_success_weights_are_the_configs() -> None:
    config = replace(CONFIG, success_weights=True, success_alpha=2.0, success_beta=0.0)
    # s = 1/4: (3/4)^2 = 9/16 for the success, 1 for failures, mean 57/64.
    assert DistillationObjective(config).weights(UPDATE[0]).tolist() == pytest.approx([36 / 57, *[64 / 57] * 3])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch_size", [1, 2, 5])
def test_ranks_and_micro_batches_share_out_each_counted_rollout_once(world_size: int, micro_batch_size: int) -> None:
    objective = DistillationObjective(CONFIG)
    num_slots = math.ceil(math.ceil(4 / world_size) / micro_batch_size)
    rows: list[tuple[int, float]] = []
    for rank in range(world_size):
        batches = objective.micro_batches(
            *UPDATE,
            Cut(micro_batch_size=micro_batch_size, num_slots=num_slots, pad_id=0, rank=rank, world_size=world_size),
        )
        assert len(batches) == num_slots
        for batch in batches:
            assert len(batch.coefficients) <= micro_batch_size
            rows += zip(batch.response_mask.sum(dim=1).tolist(), batch.coefficients.tolist(), strict=True)
    counted = sorted(row for row in rows if row[1] > 0)
    assert [length for length, _ in counted] == [2, 4, 5]
    assert [c for _, c in counted] == pytest.approx([1 / 8, 1 / 16, 1 / 20])
    assert {row for row in rows if row[1] == 0} <= {(1, 0.0)}  # fillers


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"alpha": 1.5}, "distillation.alpha"),
        ({"top_k": 0}, "distillation.top_k"),
        ({"clip_min": 0.0}, "distillation.clip_min"),
        ({"clip_min": 3.0, "clip_max": 2.0}, "distillation.clip_min"),
    ],
)
def test_settings_out_of_range_are_refused_by_key(settings: dict[str, float], key: str) -> None:
    with pytest.raises(ValueError, match=key):
        DistillationObjective(replace(CONFIG, **settings))


def test_a_top_k_above_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match=r"top_k must be at most the vocabulary's 6 tokens, got 7"):
        DistillationObjective(CONFIG).check_vocabulary(6)


# The loss, on a model whose student and teacher have parted


def apart(base: Path, teacher: TeacherConfig) -> Policy:
    torch.manual_seed(0)
    config = PolicyConfig(str(base), dtype="float32", lora=LoraSettings(rank=2, alpha=4))
    policy = load_policy(config, teacher, load_tokenizer(config))
    with torch.no_grad():
        for weight in policy.student_weights().values():
            weight.add_(0.1 * torch.randn_like(weight))
    return policy


def test_micro_batches_add_up_to_the_update_whatever_their_size(tiny_base: Path) -> None:
    policy = apart(tiny_base, TeacherConfig())
    objective = DistillationObjective(CONFIG)
    totals, gradients = [], []
    for size in (1, 2, 4):
        policy.zero_grad()
        total = 0.0
        for batch in objective.micro_batches(*UPDATE, Cut(micro_batch_size=size, num_slots=4, pad_id=0)):
            loss = objective.loss(policy, batch)
            loss.backward()
            total += loss.item()
        totals.append(total)
        gradients.append(torch.cat([w.grad.flatten() for w in policy.student_weights().values()]))
        assert all(weight.grad is None for weight in policy.teacher_weights().values())
    assert totals[0] > 0.001
    assert totals[1:] == pytest.approx([totals[0]] * 2, rel=1e-5)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-7)


def test_loss_is_the_coefficients_times_the_token_losses(tiny_base: Path) -> None:
    policy = apart(tiny_base, TeacherConfig())
    objective = DistillationObjective(replace(CONFIG, alpha=0.5, clip_max=3.0))
    batch = make_batch([[1, 2], [1]], [[3, 4, 5], [6]], [[7, 8], [9]], [0.5, 0.125], 0)
    with torch.no_grad():
        student = response_logits(policy.model, batch.student_ids, batch.student_mask, 2)
        with policy.as_teacher() as model:
            teacher = response_logits(model, batch.teacher_ids, batch.teacher_mask, 2)
        per_token = distillation_loss(
            student, teacher, batch.response_mask, alpha=0.5, top_k=7, clip_min=0.2, clip_max=3.0
        ).per_token
        expected = 0.5 * (per_token[0, 0] + per_token[0, 1]) + 0.125 * per_token[1, 0]
        assert objective.loss(policy, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_filler_gives_a_zero_that_hangs_on_the_graph(tiny_base: Path) -> None:
    policy = apart(tiny_base, TeacherConfig())
    objective = DistillationObjective(CONFIG)
    (filler,) = objective.micro_batches(*update((3, False, PLAIN)), Cut(micro_batch_size=1, num_slots=1, pad_id=0))
    loss = objective.loss(policy, filler)
    loss.backward()
    assert loss.item() == 0.0
    assert all(weight.grad is not None and not weight.grad.any() for weight in policy.student_weights().values())


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_trust_region_teacher_mixes_logits_before_the_softmax(tiny_base: Path, rate: float) -> None:
    policy = apart(tiny_base, TeacherConfig(kind="trust_region", trust_region_rate=rate))
    batch = make_batch([[1, 2]], [[3, 4, 5]], [[7, 8]], [1.0], 0)
    with torch.no_grad():
        student = response_logits(policy.model, batch.teacher_ids, batch.teacher_mask, 2)  # behind the enriched prompt
        with policy.view("base") as model:
            initial = response_logits(model, batch.teacher_ids, batch.teacher_mask, 2)
        mixed = DistillationObjective(DistillationConfig()).teacher_logits(policy, batch)
    assert (student - initial).abs().max() > 0.01
    torch.testing.assert_close(mixed, (1 - rate) * initial + rate * student)


def test_a_teacher_that_sees_what_the_student_sees_and_weighs_the_same_has_no_loss(tiny_base: Path) -> None:
    policy = apart(tiny_base, TeacherConfig(kind="live"))
    batch = make_batch([[1, 2]], [[1, 2]], [[7, 8]], [1.0], 0)
    assert DistillationObjective(CONFIG).loss(policy, batch).item() == pytest.approx(0.0, abs=1e-6)
    enriched = make_batch([[1, 2]], [[3, 2]], [[7, 8]], [1.0], 0)
    assert DistillationObjective(CONFIG).loss(policy, enriched).item() > 0.001
