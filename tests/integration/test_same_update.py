"""What saves time or memory changes no number: whole runs on the same script end with the same weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import Moment, Toy
from trace_script import ANSWERS, LINES


@pytest.fixture(scope="module")
def toy(tiny_base: Path) -> Toy:
    return Toy(tiny_base, ANSWERS, LINES, 3, max_batches=2)


@pytest.fixture(scope="module")
def plain(toy: Toy) -> list[Moment]:
    distillation = replace(toy.distillation, teacher_prefix="repeated", loss="plain")
    return replace(toy, distillation=distillation).run().moments


def assert_same_end(moments: list[Moment], plain: list[Moment], atol: float) -> None:
    for part in ("student_after", "teacher_after"):
        for name, weight in getattr(plain[-1], part).items():
            torch.testing.assert_close(getattr(moments[-1], part)[name], weight, rtol=0, atol=atol)
    moved = [(plain[-1].student_after[n] - w).abs().max() for n, w in plain[0].student_after.items()]
    assert max(moved) > 100 * atol  # in four updates


@pytest.mark.parametrize(
    "change",
    [
        {"policy": {"packing": "on"}},
        {"policy": {"gradient_checkpointing": True}},
        {"policy": {"attention": "eager"}},
        {"micro_batch_tokens": 300},
        {"micro_batch_tokens": 5000, "policy": {"packing": "on", "gradient_checkpointing": True}},
        {"distillation": {"teacher_prefix": "shared"}},
        {"distillation": {"loss": "fused", "chunk_tokens": 3}},
        {"distillation": {"loss": "fused", "teacher_prefix": "shared"}, "policy": {"packing": "on"}},
    ],
    ids=str,
)
def test_a_run_ends_with_the_same_weights(toy: Toy, plain: list[Moment], change: dict[str, object]) -> None:
    asked = {"teacher_prefix": "repeated", "loss": "plain", **change.get("distillation", {})}
    changed = replace(toy, **{**change, "distillation": replace(toy.distillation, **asked)})
    assert_same_end(
        changed.run().moments, plain, atol=2e-4
    )  # Adam makes a step of a rounding where a gradient is all but zero


def test_activations_off_the_device_change_nothing(toy: Toy, plain: list[Moment]) -> None:
    distillation = replace(toy.distillation, teacher_prefix="repeated", loss="plain")
    moments = replace(toy, policy={"offload_activations": True}, distillation=distillation).run().moments
    assert_same_end(moments, plain, atol=1e-7)
