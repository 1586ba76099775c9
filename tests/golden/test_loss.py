"""Both losses against frozen reference numbers: value, per-token losses and gradient, in float64."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from resd_lightning.distill.divergence import distillation_loss
from resd_lightning.distill.fused import fused_distillation_loss

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "loss_open.json"
CASES = json.loads(GOLDEN.read_text()) if GOLDEN.is_file() else []


def describe(case):
    """Name a case by its settings."""
    return "-".join(f"{key}={case[key]}" for key in ("top_k", "alpha", "tail", "clip_min", "clip_max"))


def fused_loss(student, teacher, mask, **settings):
    """The fused loss of logits: hidden states under the identity for a head, with the tail as the reference has it."""
    head = torch.eye(student.shape[-1], dtype=student.dtype)
    return fused_distillation_loss(student, head, teacher, head, mask, **settings, chunk_tokens=3, exact_tail=False)


@pytest.mark.skipif(not CASES, reason="the reference numbers are not part of this checkout")
@pytest.mark.parametrize("loss", [distillation_loss, fused_loss], ids=["plain", "fused"])
@pytest.mark.parametrize("case", CASES, ids=describe)
def test_loss_matches_the_reference(case, loss):
    if loss is fused_loss and case["top_k"] is None:
        pytest.skip("the fused loss has no whole vocabulary")
    student = torch.tensor(case["student_logits"], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor(case["teacher_logits"], dtype=torch.float64, requires_grad=True)
    mask = torch.arange(case["time"]) < torch.tensor(case["lengths"]).unsqueeze(1)
    weights = None if case["weights"] is None else torch.tensor(case["weights"], dtype=torch.float64)
    result = loss(
        student,
        teacher,
        mask,
        alpha=case["alpha"],
        top_k=case["top_k"],
        tail=case["tail"],
        clip_min=case["clip_min"],
        clip_max=case["clip_max"],
        weights=weights,
    )
    result.loss.backward()
    close = {"rtol": 0, "atol": 1e-9}
    torch.testing.assert_close(result.loss.item(), case["loss"], **close)
    torch.testing.assert_close(result.per_token.detach(), torch.tensor(case["per_token"], dtype=torch.float64), **close)
    torch.testing.assert_close(student.grad, torch.tensor(case["grad_student_logits"], dtype=torch.float64), **close)
    assert teacher.grad is None
