"""What each kind of teacher scores with, seen through the objective, as a training step sees it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from conftest import SMALL_LORA, make_policy, move
from resd_lightning.config import DistillationConfig, LoraSettings, PolicyConfig, TeacherConfig, TeacherKind
from resd_lightning.distill.align import make_batch
from resd_lightning.objectives.distillation import DistillationObjective
from resd_lightning.policy.load import load_base
from resd_lightning.policy.views import Policy

STUDENT_PROMPT, TEACHER_PROMPT, RESPONSE = [5, 6, 7], [40, 41, 42, 43, 44], [90, 91, 92, 93]
BATCH = make_batch([STUDENT_PROMPT], [TEACHER_PROMPT], [RESPONSE], [1.0], pad_id=0)
LORAS = pytest.mark.parametrize("lora", [SMALL_LORA, None], ids=["lora", "full"])


def scored_by(model: nn.Module) -> Tensor:
    """The logits that predict the response behind the teacher's prompt, from a forward of the whole sequence."""
    with torch.no_grad():
        output = model(input_ids=torch.tensor([[*TEACHER_PROMPT, *RESPONSE]]))
    return output.logits[:, len(TEACHER_PROMPT) - 1 : -1]


def started_and_moved(base: Path, teacher: TeacherConfig, lora: LoraSettings | None) -> tuple[Policy, Tensor, Tensor]:
    """Return a policy whose student has moved, with the initial model's logits and the moved student's."""
    policy = make_policy(base, teacher, lora=lora)
    policy.model.eval()
    initial = scored_by(policy.model)
    move(policy.student_weights().values())
    policy.sync_teacher()
    student = scored_by(policy.model)
    assert (student - initial).abs().max() > 1e-2
    return policy, initial, student


@LORAS
@pytest.mark.parametrize(
    ("kind", "expected"), [("live", "student"), ("initial", "initial"), ("ema", "student"), ("trust_region", "mix")]
)
def test_each_teacher_scores_with_the_weights_of_its_name(
    kind: TeacherKind, expected: str, lora: LoraSettings | None, tiny_base: Path
) -> None:
    config = TeacherConfig(kind, ema_rate=1.0, trust_region_rate=0.25)
    policy, initial, student = started_and_moved(tiny_base, config, lora)
    teacher = DistillationObjective(DistillationConfig()).teacher_logits(policy, BATCH)
    right = {"student": student, "initial": initial, "mix": 0.75 * initial + 0.25 * student}[expected]
    torch.testing.assert_close(teacher, right, rtol=1e-5, atol=1e-5)
    assert not teacher.requires_grad


@LORAS
def test_an_ema_teacher_scores_with_the_weighted_mean_of_the_weights(
    lora: LoraSettings | None, tiny_base: Path
) -> None:
    policy = make_policy(tiny_base, TeacherConfig("ema", ema_rate=0.25), lora=lora)
    start = {name: weight.detach().clone() for name, weight in policy.student_weights().items()}
    move(policy.student_weights().values())
    end = {name: weight.detach().clone() for name, weight in policy.student_weights().items()}
    policy.sync_teacher()
    with torch.no_grad():
        for name, weight in policy.student_weights().items():
            weight.copy_(0.75 * start[name] + 0.25 * end[name])  # the mean, put where a plain forward sees it
    policy.model.eval()
    mean = scored_by(policy.model)
    teacher = DistillationObjective(DistillationConfig()).teacher_logits(policy, BATCH)
    torch.testing.assert_close(teacher, mean, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("rate", "whose"), [(0.0, "initial"), (1.0, "student")])
def test_a_trust_region_teacher_ends_at_the_initial_model_and_at_the_student(
    rate: float, whose: str, tiny_base: Path
) -> None:
    config = TeacherConfig("trust_region", trust_region_rate=rate)
    policy, initial, student = started_and_moved(tiny_base, config, SMALL_LORA)
    teacher = DistillationObjective(DistillationConfig()).teacher_logits(policy, BATCH)
    torch.testing.assert_close(teacher, initial if whose == "initial" else student, rtol=1e-5, atol=1e-5)


def test_a_trust_region_teacher_mixes_logits_and_not_probabilities(tiny_base: Path) -> None:
    config = TeacherConfig("trust_region", trust_region_rate=0.5)
    policy, initial, student = started_and_moved(tiny_base, config, SMALL_LORA)
    teacher = DistillationObjective(DistillationConfig()).teacher_logits(policy, BATCH).softmax(dim=-1)
    geometric = (initial.softmax(dim=-1) * student.softmax(dim=-1)).sqrt()
    torch.testing.assert_close(teacher, geometric / geometric.sum(dim=-1, keepdim=True), rtol=1e-4, atol=1e-6)
    assert (teacher - (initial.softmax(dim=-1) + student.softmax(dim=-1)) / 2).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["live", "initial", "trust_region"])
def test_syncing_moves_no_teacher_but_the_average(kind: TeacherKind, tiny_base: Path) -> None:
    policy = make_policy(tiny_base, TeacherConfig(kind, ema_rate=1.0))
    move(policy.student_weights().values())
    before = {name: weight.detach().clone() for name, weight in policy.teacher_weights().items()}
    policy.sync_teacher()
    for name, weight in policy.teacher_weights().items():
        assert torch.equal(weight, before[name]), name
    with pytest.raises(ValueError, match=f"model.teacher.kind is {kind}"):
        _ = policy.ema


def test_a_step_of_the_loss_leaves_no_gradient_on_the_teacher_or_the_base(tiny_base: Path) -> None:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values())
    loss = DistillationObjective(DistillationConfig(top_k=20)).loss(policy, BATCH)
    loss.backward()
    student = {id(weight) for weight in policy.student_weights().values()}
    assert {id(weight) for weight in policy.parameters() if weight.grad is not None} == student
    assert sum(float(weight.grad.abs().sum()) for weight in policy.student_weights().values()) > 0


def test_gradient_checkpointing_gives_the_same_gradients(tiny_base: Path) -> None:
    gradients = []
    for gradient_checkpointing in (False, True):
        policy = make_policy(tiny_base, gradient_checkpointing=gradient_checkpointing)
        policy.model.train()
        move(policy.student_weights().values())
        DistillationObjective(DistillationConfig(top_k=20)).loss(policy, BATCH).backward()
        gradients.append([weight.grad for weight in policy.student_weights().values()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)


def test_the_initial_teacher_with_adapters_is_the_plain_base(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, TeacherConfig("initial"))
    move(policy.student_weights().values())
    plain = load_base(PolicyConfig(str(tiny_base), dtype="float32")).eval()
    torch.testing.assert_close(
        DistillationObjective(DistillationConfig()).teacher_logits(policy, BATCH), scored_by(plain)
    )
