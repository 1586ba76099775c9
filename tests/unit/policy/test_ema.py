from __future__ import annotations

import pytest
import torch
from torch import Tensor

from resd_lightning.policy.ema import ExponentialMovingAverage


def weights(*values: float, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {f"w{i}": torch.full((3,), value, dtype=dtype) for i, value in enumerate(values)}


def test_rate_1_copies_the_student() -> None:
    student, teacher = weights(1.0, -7.0), weights(0.5, 2.0)
    ExponentialMovingAverage(student, teacher, 1.0).step()
    assert all(torch.equal(teacher[name], student[name]) for name in student)


def test_rate_0_never_moves() -> None:
    student, teacher = weights(1.0, -7.0), weights(0.5, 2.0)
    ema = ExponentialMovingAverage(student, teacher, 0.0)
    for _ in range(3):
        ema.step()
    assert all(torch.equal(teacher[name], other) for name, other in weights(0.5, 2.0).items())


def test_each_step_moves_the_average_by_its_rate() -> None:
    student, teacher = weights(4.0), weights(0.0)
    ema = ExponentialMovingAverage(student, teacher, 0.25)
    seen = []
    for _ in range(3):
        ema.step()
        seen.append(float(teacher["w0"][0]))
    assert seen == [1.0, 1.75, 2.3125]  # 4 (1 - 0.75^n)


def test_the_papers_rate_moves_an_fp32_average_of_bf16_weights_where_a_bf16_average_stands_still() -> None:
    student, teacher = weights(2.0, dtype=torch.bfloat16), weights(1.0, dtype=torch.bfloat16)
    naive = teacher["w0"].clone()
    ema = ExponentialMovingAverage(student, teacher, 1e-4)
    for _ in range(100):
        ema.step()
        naive.lerp_(student["w0"], 1e-4)
    average = ema.state_dict()["w0"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, torch.full((3,), 2 - (1 - 1e-4) ** 100), rtol=0, atol=1e-5)
    assert torch.equal(naive, torch.ones(3, dtype=torch.bfloat16))
    assert teacher["w0"].dtype == torch.bfloat16
    assert torch.equal(teacher["w0"], average.bfloat16())


def test_the_average_survives_a_round_trip_through_its_state() -> None:
    student, teacher = weights(2.0, dtype=torch.bfloat16), weights(1.0, dtype=torch.bfloat16)
    ema = ExponentialMovingAverage(student, teacher, 1e-4)
    ema.step()
    other_teacher = weights(9.0, dtype=torch.bfloat16)
    other = ExponentialMovingAverage(student, other_teacher, 1e-4)
    other.load_state_dict(ema.state_dict())
    for one in (ema, other):
        one.step()
    assert torch.equal(ema.state_dict()["w0"], other.state_dict()["w0"])
    assert torch.equal(teacher["w0"], other_teacher["w0"])


def test_a_state_without_a_weight_is_refused() -> None:
    with pytest.raises(KeyError, match="w1"):
        ExponentialMovingAverage(weights(1.0, 2.0), weights(1.0, 2.0), 0.5).load_state_dict(weights(1.0))


def test_different_names_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="w1"):
        ExponentialMovingAverage(weights(1.0, 2.0), weights(1.0), 0.5)


def test_the_distance_is_relative_to_the_students_norm() -> None:
    student = {"w": torch.tensor([3.0, 4.0])}
    ema = ExponentialMovingAverage(student, {"w": torch.tensor([3.0, 1.5])}, 0.5)
    assert ema.distance() == pytest.approx(0.5)  # |(0, 2.5)| / |(3, 4)|
    ema.step()
    assert ema.distance() == pytest.approx(0.25)


def test_a_student_that_trains_gets_no_gradient_from_the_average() -> None:
    student = {"w": torch.ones(2, requires_grad=True)}
    teacher = {"w": torch.zeros(2)}
    ExponentialMovingAverage(student, teacher, 0.5).step()
    assert not teacher["w"].requires_grad
    assert student["w"].grad is None
