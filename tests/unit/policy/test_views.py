from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from conftest import SMALL_LORA, make_policy, move
from resd_lightning.config import LoraSettings, PolicyConfig, TeacherConfig
from resd_lightning.policy.load import load_base
from resd_lightning.policy.views import Policy, View

IDS = torch.tensor([[5, 60, 7, 80, 9, 100]])
WHO: tuple[View, ...] = ("student", "teacher", "base")


class Stopped(Exception):
    pass


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def seen_as(policy: Policy, who: View) -> Tensor:
    with policy.view(who) as model:
        return logits(model)


def plain_base(base: Path) -> nn.Module:
    return load_base(PolicyConfig(str(base), dtype="float32")).eval()


def switches(policy: Policy) -> list[object]:
    """Everything a view could leave behind, in one list."""
    adapters = [
        (list(layer.active_adapters), layer.disable_adapters)
        for layer in policy.model.modules()
        if isinstance(layer, BaseTunerLayer)
    ]
    return [
        adapters,
        [(name, weight.requires_grad) for name, weight in policy.model.named_parameters()],
        [(name, module.training) for name, module in policy.model.named_modules()],
    ]


def context(policy: Policy, who: View, *, is_frozen: bool) -> AbstractContextManager[nn.Module]:
    return policy.frozen(who) if is_frozen else policy.view(who)


def test_student_and_teacher_start_equal_in_a_and_in_b(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    student, teacher = policy.student_weights(), policy.teacher_weights()
    assert student.keys() == teacher.keys()
    assert {name.rpartition(".lora_")[2] for name in student} == {"A.weight", "B.weight"}
    for name, weight in student.items():
        assert torch.equal(weight, teacher[name]), name
        assert weight.data_ptr() != teacher[name].data_ptr(), name
    assert all(weight.abs().sum() > 0 for name, weight in student.items() if "lora_A" in name)


def test_every_linear_layer_but_the_head_has_an_adapter(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    adapted = {name.partition(".lora_")[0].rpartition(".")[2] for name in policy.student_weights()}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert len(policy.student_weights()) == 2 * 7 * 2  # layers x projections x factors


def test_only_the_student_requires_gradients(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    trained = {id(weight) for weight in policy.parameters() if weight.requires_grad}
    assert trained == {id(weight) for weight in policy.student_weights().values()}


def test_a_backward_pass_after_the_views_reaches_the_student_alone(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values())
    for who in WHO:
        with policy.frozen(who) as model:
            model(input_ids=IDS)
    policy.model(input_ids=IDS).logits.square().mean().backward()
    with_gradient = {id(weight) for weight in policy.parameters() if weight.grad is not None}
    assert with_gradient == {id(weight) for weight in policy.student_weights().values()}
    assert all(weight.grad.abs().sum() > 0 for weight in policy.student_weights().values())


@pytest.mark.parametrize("lora", [SMALL_LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize("is_frozen", [False, True], ids=["view", "frozen"])
@pytest.mark.parametrize("is_training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("who", WHO)
def test_leaving_a_view_restores_everything_also_by_an_exception(
    who: View, is_training: bool, is_frozen: bool, lora: LoraSettings | None, tiny_base: Path
) -> None:
    policy = make_policy(tiny_base, lora=lora)
    policy.model.train(is_training)
    before = switches(policy)
    with context(policy, who, is_frozen=is_frozen) as model:
        logits(model)
    assert switches(policy) == before
    with suppress(Stopped), context(policy, who, is_frozen=is_frozen):
        raise Stopped
    assert switches(policy) == before
    assert torch.is_grad_enabled()


def test_no_view_touches_a_requires_grad_flag_while_it_is_in_force(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    flags = [weight.requires_grad for weight in policy.parameters()]
    for who in WHO:
        with policy.frozen(who):
            assert [weight.requires_grad for weight in policy.parameters()] == flags


def test_a_frozen_view_computes_in_eval_mode_without_gradient(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, lora=LoraSettings(rank=2, alpha=4, dropout=0.5))
    move(policy.student_weights().values())
    policy.model.train()
    with policy.frozen("student") as model:
        first, second = model(input_ids=IDS).logits, model(input_ids=IDS).logits
        assert not first.requires_grad
    assert torch.equal(first, second)
    assert not torch.equal(logits(policy.model), logits(policy.model))  # the dropout is back


def test_a_frozen_view_is_entered_under_the_trainers_precision(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    policy.precision_context = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    with policy.frozen("teacher") as model:
        assert model(input_ids=IDS).logits.dtype == torch.bfloat16
    assert logits(policy.model).dtype == torch.float32


def test_each_view_computes_with_its_own_weights(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), seed=1)
    move(policy.teacher_weights().values(), seed=2)
    policy.model.eval()
    student, teacher, base = (seen_as(policy, who) for who in WHO)
    assert torch.equal(base, logits(plain_base(tiny_base)))
    assert torch.equal(student, logits(policy.model))
    for one, other in ((student, teacher), (student, base), (teacher, base)):
        assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("outer", WHO)
@pytest.mark.parametrize("inner", WHO)
def test_a_view_inside_a_view_means_what_it_says(outer: View, inner: View, tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values(), seed=1)
    move(policy.teacher_weights().values(), seed=2)
    policy.model.eval()
    alone = {who: seen_as(policy, who) for who in WHO}
    with policy.view(outer) as model:
        assert torch.equal(seen_as(policy, inner), alone[inner])
        assert torch.equal(logits(model), alone[outer])
    assert torch.equal(logits(policy.model), alone["student"])


def test_without_adapters_the_teacher_is_a_copy_in_its_own_memory_that_no_optimizer_sees(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, lora=None)
    student, teacher = policy.student_weights(), policy.teacher_weights()
    assert student.keys() == teacher.keys()
    for name, weight in student.items():
        assert torch.equal(weight, teacher[name]), name
        assert weight.data_ptr() != teacher[name].data_ptr(), name
    seen = {id(weight) for weight in policy.parameters()}
    assert seen == {id(weight) for weight in student.values()}
    assert not seen & {id(weight) for weight in teacher.values()}
    assert not any(weight.requires_grad for weight in teacher.values())
    policy.model.eval()
    start = seen_as(policy, "teacher")
    assert torch.equal(start, logits(plain_base(tiny_base)))
    move(student.values())
    assert torch.equal(seen_as(policy, "teacher"), start)
    assert not torch.equal(seen_as(policy, "student"), start)


def test_a_live_teacher_without_adapters_keeps_no_copy(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, TeacherConfig(kind="live"), lora=None)
    with policy.as_teacher() as model:
        assert model is policy.model
