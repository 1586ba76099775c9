from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from conftest import make_policy, move
from resd_lightning.config import TeacherConfig
from resd_lightning.diagnostics.tokens import compare, mean_kl, read_tokens
from resd_lightning.policy.views import Policy
from resd_lightning.records import Completion

PROMPTS = {"nothing": (5, 6, 7), "full": (40, 41, 42, 43, 44), "without_trial": (40, 41, 43), "without_feedback": (9,)}
RESPONSE = (90, 91, 92, 93, 94)


def probabilities(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_entropies_sharpening_corrections_and_the_end_by_hand() -> None:
    student = probabilities([0.5, 0.5, 0.0], [0.25, 0.5, 0.25]).log()
    teacher = probabilities([1.0, 0.0, 0.0], [0.5, 0.0, 0.5]).log()
    numbers = compare(student, teacher, last=2)
    assert numbers == pytest.approx(
        {
            "student_entropy": (math.log(2) + 1.5 * math.log(2)) / 2,
            "teacher_entropy": math.log(2) / 2,
            "sharpening": 0.75 * math.log(2),
            "corrected_share": 0.5,  # at the first token both like the first item best
            "eos_advantage": math.log(0.5 / 0.25),
        }
    )
    assert "eos_advantage" not in compare(student, teacher, last=None)


def test_kl_of_two_tokens_by_hand() -> None:
    one, other = probabilities([0.75, 0.25], [1.0, 0.0]).log(), probabilities([0.5, 0.5], [0.25, 0.75]).log()
    expected = (0.75 * math.log(1.5) + 0.25 * math.log(0.5) + math.log(4)) / 2
    assert mean_kl(one, other).item() == pytest.approx(expected)
    assert mean_kl(one, one).item() == 0.0


def log_probs(policy: Policy, prompt: tuple[int, ...], places: list[int]) -> torch.Tensor:
    """From one forward pass of the whole sequence, with whatever weights are in force."""
    with torch.no_grad():
        logits = policy.model(input_ids=torch.tensor([[*prompt, *RESPONSE]])).logits[0]
    return logits[len(prompt) - 1 : -1][places].double().log_softmax(-1)


@pytest.mark.parametrize("rows_at_once", [1, 2, 8])
@pytest.mark.parametrize(("max_tokens", "places"), [(9, [0, 1, 2, 3, 4]), (3, [0, 2, 4]), (1, [4])])
def test_a_response_is_read_as_in_forward_passes_of_its_own(
    tiny_base: Path, max_tokens: int, places: list[int], rows_at_once: int
) -> None:
    policy = make_policy(tiny_base)
    move(policy.student_weights().values())
    move(policy.teacher_weights().values(), seed=2)
    completion = Completion("", (5, 6), RESPONSE)
    facts = read_tokens(policy, completion, PROMPTS, max_tokens=max_tokens, rows_at_once=rows_at_once)
    policy.model.eval()
    student = log_probs(policy, (5, 6), places)
    with policy.view("teacher"):
        teacher = {name: log_probs(policy, prompt, places) for name, prompt in PROMPTS.items()}
    assert facts.numbers == pytest.approx(compare(student, teacher["full"], RESPONSE[-1]), rel=1e-4, abs=1e-5)
    expected = {name: mean_kl(teacher["full"], row).item() for name, row in teacher.items() if name != "full"}
    assert facts.attribution == pytest.approx(expected, rel=1e-4)
    assert min(expected.values()) > 0.01
    truncated = read_tokens(
        policy, Completion("", (5, 6), RESPONSE, is_truncated=True), PROMPTS, max_tokens=9, rows_at_once=1
    )
    assert "eos_advantage" not in truncated.numbers


def test_a_trust_region_teacher_is_read_as_its_mixture(tiny_base: Path) -> None:
    policy = make_policy(tiny_base, TeacherConfig("trust_region", trust_region_rate=0.25))
    move(policy.student_weights().values())
    facts = read_tokens(policy, Completion("", (5, 6), RESPONSE), PROMPTS, max_tokens=9, rows_at_once=2)
    policy.model.eval()
    ids = torch.tensor([[*PROMPTS["full"], *RESPONSE]])
    with torch.no_grad():
        student = policy.model(input_ids=ids).logits
        with policy.view("base") as model:
            mixed = 0.75 * model(input_ids=ids).logits + 0.25 * student
    teacher = mixed[0, len(PROMPTS["full"]) - 1 : -1].log_softmax(-1)
    entropy = -(teacher.exp() * teacher).sum(-1).mean().item()
    assert facts.numbers["teacher_entropy"] == pytest.approx(entropy, rel=1e-4)
