"""Micro-batches under a limit of tokens, and the ways to run them: all come to the same loss and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import pytest
import torch
from torch import Tensor

from conftest import make_policy, move
from resd_lightning.config import ConfigError, DistillationConfig, GrpoConfig, TeacherConfig
from resd_lightning.objectives import fused_or_plain
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.objectives.grpo import GrpoObjective
from resd_lightning.objectives.objective import Cut, Objective
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion, Example, Feedback, Message, Rollout, TeacherPrompt

EXAMPLE = Example("x", (Message(role="user", content="q"),), None)
PREFIX = tuple(range(40, 60))
LENGTHS = (3, 1, 9, 4, 2)
ROLLOUTS = [
    Rollout(
        EXAMPLE, i, Completion("", (1, 2), tuple(range(70, 70 + n)), log_probs=(-5.0,) * n), Feedback(i % 2, (), "")
    )
    for i, n in enumerate(LENGTHS)
]
PROMPTS = [TeacherPrompt((), (*PREFIX, *range(100, 101 + i)), frozenset({"feedback"})) for i in range(len(LENGTHS))]
WHOLE = Cut(micro_batch_size=9, num_slots=5, pad_id=0)


def cut(tokens: int | None, *, size: int = 9, is_packed: bool = False) -> Cut:
    return Cut(size, 5, 0, micro_batch_tokens=tokens, is_packed=is_packed)


def alike(lengths: Mapping[int, int]) -> dict[int, tuple[int, int]]:
    """Return rollouts of these lengths whose prompts have one token."""
    return {i: (1, length - 1) for i, length in lengths.items()}


def test_without_a_limit_of_tokens_rollouts_come_in_order() -> None:
    assert cut(None, size=2).chunks(alike({3: 5, 1: 9, 7: 2})) == [[3, 1], [7]]
    assert cut(None).chunks({}) == []


def test_a_limit_puts_similar_lengths_together_the_longest_first() -> None:
    lengths = alike({0: 10, 1: 100, 2: 11, 3: 40, 4: 90})
    assert cut(200).chunks(lengths) == [[1, 4], [3, 2, 0]]
    assert cut(200, size=2).chunks(lengths) == [[1, 4], [3, 2], [0]]
    assert cut(60).chunks(lengths) == [[1], [4], [3], [2, 0]]  # longer ones stand alone: none is left out
    assert cut(205, is_packed=True).chunks(lengths) == [[1, 4], [3, 2, 0]]
    assert cut(251, is_packed=True).chunks(lengths) == [[1, 4, 3, 2, 0]]


def test_a_long_prompt_and_a_long_response_are_padded_to_both() -> None:
    lengths = {0: (90, 10), 1: (10, 90)}
    assert cut(200).chunks(lengths) == [[0], [1]]  # together they would be 2 x (90 + 90)
    assert cut(360).chunks(lengths) == [[0, 1]]
    assert cut(200, is_packed=True).chunks(lengths) == [[0, 1]]


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("tokens", [30, 60, 100])
def test_no_pass_of_more_than_one_rollout_has_more_tokens_than_the_limit(tokens: int, is_packed: bool) -> None:
    objective = DistillationObjective(DistillationConfig())
    batches = objective.micro_batches(ROLLOUTS, PROMPTS, cut(tokens, is_packed=is_packed))
    real = [batch for batch in batches if not batch.is_filler]
    assert sorted(index for batch in real for index in batch.rollouts) == list(range(5))
    for batch in real:
        for ids, mask in ((batch.student_ids, batch.student_mask), (batch.teacher_ids, batch.teacher_mask)):
            assert len(ids) == 1 or (int(mask.sum()) if is_packed else ids.numel()) <= tokens


def test_ranks_share_long_and_short_ones_alike() -> None:
    lengths = alike({i: 10 * (i + 1) for i in range(6)})
    shares = [Cut(2, 3, 0, rank, 2, micro_batch_tokens=120).chunks(lengths) for rank in (0, 1)]
    assert shares == [[[5, 3], [1]], [[4, 2], [0]]]
    assert sorted(chain.from_iterable(chain.from_iterable(shares))) == list(range(6))


def apart(base: Path, **config: object) -> Policy:
    policy = make_policy(base, TeacherConfig(), **config)
    move(policy.student_weights().values(), by=0.05, seed=1)
    move(policy.teacher_weights().values(), by=0.05, seed=2)
    policy.model.train()
    return policy


def step(objective: Objective, policy: Policy, how: Cut) -> tuple[float, dict[str, Tensor]]:
    """Return the update's loss and gradients."""
    policy.zero_grad()
    objective.begin_update()
    if isinstance(objective, DistillationObjective):
        objective.prepare(policy)
    total = 0.0
    for batch in objective.micro_batches(ROLLOUTS, PROMPTS, how):
        loss = objective.loss(policy, batch)
        loss.backward()
        total += loss.item()
    objective.end_update()
    return total, {name: weight.grad.clone() for name, weight in policy.student_weights().items()}


def assert_same(one: tuple[float, Mapping[str, Tensor]], other: tuple[float, Mapping[str, Tensor]]) -> None:
    assert abs(other[0]) > 1e-3
    assert one[0] == pytest.approx(other[0], rel=1e-4)
    for name, gradient in other[1].items():
        torch.testing.assert_close(one[1][name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("loss", ["plain", "fused"])
@pytest.mark.parametrize("prefix", ["shared", "repeated"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_a_distillation_update_is_the_same_however_it_is_cut_packed_and_read(
    tiny_base: Path, loss: str, prefix: str, is_packed: bool
) -> None:
    def objective(teacher_prefix: str) -> DistillationObjective:
        return DistillationObjective(DistillationConfig(top_k=20, loss=loss, teacher_prefix=teacher_prefix))

    expected = step(objective("repeated"), apart(tiny_base), WHOLE)
    policy = apart(tiny_base, packing="on" if is_packed else "off")
    assert_same(step(objective(prefix), policy, cut(70, is_packed=is_packed)), expected)


def test_without_adapters_it_is_the_teacher_that_reads_the_prefix(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, TeacherConfig(), lora=None)
    move(policy.student_weights().values(), by=0.05, seed=1)
    move(policy.teacher_weights().values(), by=0.05, seed=2)
    repeated, shared = (
        DistillationObjective(DistillationConfig(top_k=20, teacher_prefix=h)) for h in ("repeated", "shared")
    )
    assert_same(step(shared, policy, WHOLE), step(repeated, policy, WHOLE))


def tokens_read(policy: Policy, objective: DistillationObjective) -> int:
    """Return how many tokens, padding left out by hand, the backbone saw in an update of whole rows."""
    seen: list[int] = []
    embedding = policy.model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    step(objective, policy, Cut(micro_batch_size=1, num_slots=5, pad_id=0))
    handle.remove()
    return sum(seen)


def test_auto_reads_a_long_prefix_once_and_says_how_long_it_was(tiny_base: Path) -> None:
    policy = apart(tiny_base)
    auto, repeated = (
        DistillationObjective(DistillationConfig(top_k=20, teacher_prefix=h)) for h in ("auto", "repeated")
    )
    assert tokens_read(policy, repeated) - tokens_read(policy, auto) == 4 * len(PREFIX)
    assert auto.cut_metrics() == {"teacher/shared_prefix_tokens": 20.0}
    assert repeated.cut_metrics() == {"teacher/shared_prefix_tokens": 0.0}


def test_auto_leaves_a_prefix_that_saves_next_to_nothing(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = DistillationObjective(DistillationConfig(top_k=20))
    objective.prepare(apart(tiny_base))
    own = sum(len(prompt.token_ids) for prompt in PROMPTS) + sum(LENGTHS)
    for share, expected in ((4 * 20 / own - 1e-9, 20.0), (4 * 20 / own + 1e-9, 0.0)):
        monkeypatch.setattr("resd_lightning.objectives.distillation.LEAST_SAVING", share)
        objective.micro_batches(ROLLOUTS, PROMPTS, WHOLE)
        assert objective.cut_metrics() == {"teacher/shared_prefix_tokens": expected}


def test_a_rank_with_nothing_but_fillers_reads_the_prefix_too(tiny_base: Path) -> None:
    policy = apart(tiny_base)
    objective = DistillationObjective(DistillationConfig(top_k=20, teacher_prefix="shared"))
    objective.prepare(policy)
    batches = [objective.micro_batches(ROLLOUTS, PROMPTS, Cut(1, 1, 0, rank, 6)) for rank in range(6)]
    assert [batch.is_filler for (batch,) in batches] == [False] * 5 + [True]
    for (batch,) in batches:
        assert tuple(batch.teacher_prefix.tolist()) == PREFIX
    assert objective.loss(policy, batches[-1][0]).item() == 0.0


def test_the_next_update_reads_its_own_prefix(tiny_base: Path) -> None:
    policy = apart(tiny_base)
    objective = DistillationObjective(DistillationConfig(top_k=20, teacher_prefix="shared"))
    before = step(objective, policy, WHOLE)
    move(policy.teacher_weights().values(), by=0.1, seed=3)
    after = step(objective, policy, WHOLE)
    assert after[0] != before[0]
    assert_same(after, step(DistillationObjective(DistillationConfig(top_k=20)), policy, WHOLE))


def test_a_prefix_that_cannot_be_shared_is_refused_where_asked_for(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, TeacherConfig(kind="trust_region"))
    with pytest.raises(ConfigError, match=r"model\.distillation\.teacher_prefix shared can't be: .*trust_region"):
        DistillationObjective(DistillationConfig(top_k=20, teacher_prefix="shared")).prepare(policy)
    DistillationObjective(DistillationConfig(top_k=20)).prepare(policy)


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("is_fused", [True, False])
def test_a_grpo_update_is_the_same_however_it_is_cut_and_computed(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, is_packed: bool, is_fused: bool
) -> None:
    config = GrpoConfig(kl_coefficient=0.1)
    expected = step(GrpoObjective(config, 0.7), apart(tiny_base), WHOLE)
    monkeypatch.setattr(fused_or_plain, "FUSED_FROM_VOCAB", 1 if is_fused else 4096)
    policy = apart(tiny_base, packing="on" if is_packed else "off")
    if is_fused:
        policy.model.get_base_model().lm_head.register_forward_pre_hook(
            lambda _, inputs: None if inputs[0].shape[1] <= 8 else pytest.fail("all logits were made")
        )
    assert_same(step(GrpoObjective(config, 0.7), policy, cut(20, is_packed=is_packed)), expected)
