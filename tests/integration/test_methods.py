"""The baselines on groups of four scripted responses: masks, advantages, losses and gradients, by hand in float64."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import ALGORITHM_1, Lines, Run, Toy, merged_logits

from resd_lightning.callbacks import RecordMetrics, SwitchObjective, SyncTeacher, WatchLoss, WriteTranscripts
from resd_lightning.config import ContextConfig, DistillationConfig, GrpoConfig, TeacherConfig, TeacherPromptConfig
from resd_lightning.records import DistillBatch, GrpoBatch
from resd_lightning.run_folder import RunFolder, read_lines

ANSWERS = {"a1": 2, "a2": 3, "a3": 4, "b1": 5, "b2": 6, "b3": 7}
GROUPS: Lines = {
    # Two successes; one failure about which nothing is known
    ("rollout", 0, "a1"): ("1", "<think>one and one</think>2", "2", "?"),
    ("rollout", 0, "a2"): ("11", "3", "1", "1"),  # one success
    ("rollout", 0, "a3"): ("1", "?", "1", "1"),  # none
    ("rollout", 1, "a1"): ("1", "2", "222", "222"),
    ("rollout", 1, "a2"): ("3", "3", "3", "3"),
    ("rollout", 1, "a3"): ("1", "?", "4", "22"),
}
LENGTHS = [[2, 28, 2, 2, 3, 2, 2, 2, 2, 2, 2, 2], [2, 2, 4, 4, 2, 2, 2, 2, 2, 2, 2, 3]]
"""Response tokens: a byte each, and the end of the turn."""
TOP_K, CLIP_MIN = 5, 0.2

SDPO = TeacherPromptConfig(playbook=False, reflection=False, trial=False, self_success="none")


def sdpo(base: Path, **changes: str | bool) -> Run:
    return Toy(
        base,
        ANSWERS,
        GROUPS,
        3,
        callbacks=(SyncTeacher,),
        distillation=DistillationConfig(top_k=TOP_K, clip_min=CLIP_MIN),
        teacher_prompt=replace(SDPO, **changes),
        rollouts_per_prompt=4,
        max_batches=1,
    ).run()


def grpo(base: Path, observers: Sequence[RecordMetrics] = (), **changes: object) -> Run:
    return Toy(
        base,
        ANSWERS,
        GROUPS,
        3,
        callbacks=(),
        observers=observers,
        teacher=TeacherConfig(kind="live"),
        rollouts_per_prompt=4,
        max_batches=1,
        options={"objective": "grpo", "grpo": GrpoConfig(**changes)},
    ).run()


def log_probs(run: Run, weights: Mapping[str, Tensor], prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """Return the log-probabilities (time, vocab) at a response's tokens, from a model put together by hand."""
    return merged_logits(run.toy, weights, (*prompt, *response))[len(prompt) - 1 : -1].log_softmax(dim=-1)


def distillation_loss(run: Run, update: int, student: Mapping[str, Tensor], coefficients: Sequence[float]) -> Tensor:
    """Return reverse KL over the student's top tokens and a tail, token by token."""
    moment = run.moments[update]
    loss = torch.zeros((), dtype=torch.float64)
    for rollout, prompt, c in zip(moment.record.rollouts, moment.record.teacher_prompts, coefficients, strict=True):
        response = rollout.completion.token_ids
        mine = log_probs(run, student, rollout.completion.prompt_ids, response).exp()
        teachers = log_probs(run, moment.teacher_before, prompt.token_ids, response).exp()
        top = mine.topk(TOP_K).indices
        p, q = (probs.gather(-1, top) for probs in (mine, teachers))
        p, q = (torch.cat([probs, 1 - probs.sum(-1, keepdim=True)], -1) for probs in (p, q))
        loss = loss + c * (p * torch.log(p / torch.maximum(q, CLIP_MIN * p.detach()))).sum()
    return loss


def policy_loss(run: Run, update: int, student: Mapping[str, Tensor], factors: Sequence[float]) -> Tensor:
    """Return -advantage x ratio, token by token, at the ratio of one that fresh samples have."""
    loss = torch.zeros((), dtype=torch.float64)
    for rollout, factor in zip(run.moments[update].record.rollouts, factors, strict=True):
        response = torch.tensor(rollout.completion.token_ids)
        chosen = log_probs(run, student, rollout.completion.prompt_ids, rollout.completion.token_ids).gather(
            -1, response[:, None]
        )
        loss = loss - factor * (chosen - chosen.detach()).exp().sum()
    return loss


def assert_step(run: Run, update: int, loss: Tensor, student: Mapping[str, Tensor]) -> None:
    moment = run.moments[update]
    assert moment.loss == pytest.approx(loss.item(), rel=1e-4, abs=1e-6)
    gradient = torch.autograd.grad(loss, list(student.values()))
    norm = torch.cat([part.flatten() for part in gradient]).norm().item()
    assert norm > 0.01
    assert moment.gradient_norm == pytest.approx(norm, rel=1e-3)


def trained(run: Run, update: int) -> dict[str, Tensor]:
    return {name: weight.clone().requires_grad_() for name, weight in run.moments[update].student_before.items()}


# SDPO

FAILURES_OF_A3 = ["f", "", "f", "f"]
READINGS = {
    # RESD's authors: a success is shown nothing, so nothing is learned from it
    "none": [["s", "", "", "s", "s", "", "s", "s", *FAILURES_OF_A3], ["s", "", "s", "s", *[""] * 4, "s", "s", "", "s"]],
    # SDPO's authors: it is shown another success, if there is one
    "peer": [["s", "s", "s", "s", "s", "", "s", "s", *FAILURES_OF_A3], ["s", "", "s", "s", *"ssss", "s", "s", "", "s"]],
    # SDPO+ss: itself
    "own": [["s"] * 8 + FAILURES_OF_A3, ["s"] * 12],
}  # fmt: skip


@pytest.mark.parametrize("self_success", READINGS)
def test_what_a_success_is_shown_and_the_mask_follow_the_reading(tiny_base: Path, self_success: str) -> None:
    run = sdpo(tiny_base, self_success=self_success)
    assert {purpose for purpose, *_ in run.asked} == {"rollout"}
    assert [moment.sections for moment in run.moments] == READINGS[self_success]
    for update, (moment, sections) in enumerate(zip(run.moments, READINGS[self_success], strict=True)):
        # sequence_mean: a masked rollout has no loss but is one of the twelve
        coefficients = [bool(held) / (12 * n) for held, n in zip(sections, LENGTHS[update], strict=True)]
        assert moment.coefficients == pytest.approx([c for c in coefficients if c > 0])
        student = trained(run, update)
        assert_step(run, update, distillation_loss(run, update, student, coefficients), student)
    shown = [prompt.messages[-1]["content"] for prompt in run.moments[0].record.teacher_prompts]
    assert shown[0] == (
        "What is 1 + 1?\n\nFor reference, a correct response to this question:\n\n2\n\n"
        "Now answer the question above correctly."
    )
    assert shown[8] == (
        "What is 1 + 3?\n\nWhat the environment said about an earlier, wrong response:\n\n1 is wrong.\n\n"
        "Now answer the question above correctly."
    )


def test_feedback_stands_beside_a_solution_where_asked_for_and_never_on_a_success(tiny_base: Path) -> None:
    run = sdpo(tiny_base, self_success="peer", feedback_with_solution=True)
    assert run.moments[0].sections == ["fs", "s", "s", "s", "fs", "", "fs", "fs", *FAILURES_OF_A3]


# GRPO: a1 has rewards 0 1 1 0, a2 0 1 0 0, a3 none; then 0 1 0 0, all, 0 0 1 0

HALF = 0.5 / ((4 * 0.25 / 3) ** 0.5 + 1e-6)
ONE, REST = 0.75 / (0.5 + 1e-6), -0.25 / (0.5 + 1e-6)
ADVANTAGES = [
    [-HALF, HALF, HALF, -HALF, REST, ONE, REST, REST, 0, 0, 0, 0],
    [REST, ONE, REST, REST, 0, 0, 0, 0, REST, REST, ONE, REST],
]


@pytest.mark.parametrize("reduction", ["sequence_mean", "sequence_sum", "token_mean"])
def test_grpo_is_the_plain_formula_on_logits_run_again(tiny_base: Path, reduction: str) -> None:
    run = grpo(tiny_base, reduction=reduction)
    assert {purpose for purpose, *_ in run.asked} == {"rollout"}
    for update, moment in enumerate(run.moments):
        share = {
            "sequence_mean": [1 / (12 * n) for n in LENGTHS[update]],
            "sequence_sum": [1 / 12] * 12,
            "token_mean": [1 / sum(LENGTHS[update])] * 12,
        }[reduction]
        assert moment.coefficients == pytest.approx(
            [c for c, a in zip(share, ADVANTAGES[update], strict=True) if a != 0]
        )
        student = trained(run, update)
        factors = [c * a for c, a in zip(share, ADVANTAGES[update], strict=True)]
        assert_step(run, update, policy_loss(run, update, student, factors), student)
        # Twelve rollouts, two at a time; the four of the group without signal are not run.
        assert [batch.is_filler for batch in moment.batches] == [False] * 4 + [True] * 2
        assert all(isinstance(batch, GrpoBatch) for batch in moment.batches)


def test_grpo_reads_no_context_and_writes_down_what_it_went_by(tiny_base: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    run = grpo(tiny_base, (RecordMetrics(folder), WriteTranscripts(folder)), normalize_by_std=False)
    assert all(moment.playbooks[""].entries == () for moment in run.moments)
    lines = [line for line in read_lines(folder.metrics) if line["phase"] == "train"]
    assert [line["grpo/groups"] for line in lines] == [3, 3]
    assert [line["grpo/groups_without_signal"] for line in lines] == [1, 1]
    assert [line["grpo/without_rollout_log_probs"] for line in lines] == [12, 12]  # a script knows none
    assert [line["grpo/clipped_share"] for line in lines] == [line["grpo/log_ratio"] for line in lines] == [0, 0]
    transcripts = list(read_lines(folder.transcripts))
    assert [line["advantage"] for line in transcripts[:8]] == [-0.5, 0.5, 0.5, -0.5, -0.25, 0.75, -0.25, -0.25]
    assert not any(line["teacher_prompt"] or line["teacher_sections"] for line in transcripts)
    assert json.loads(folder.summary.read_text())["spent"]["requests/rollout"] == 24


# RESD and GRPO, after one another and together

REFLECTION = json.dumps({"key_insight": "add them up", "tags": []})
STORY: Lines = {
    (purpose, update, f"{'aabb'[update]}{number}"): answer
    for update in range(4)
    for number in (1, 2, 3)
    for purpose, answer in (
        ("rollout", ("0", str(ANSWERS[f"{'aabb'[update]}{number}"]), "0", "0") if number < 3 else ("0",) * 4),
        ("reflect", (REFLECTION,) * 4),
        ("curate", json.dumps({"operations": []})),
    )
}


def together(base: Path, **changes: object) -> Toy:
    toy = Toy(
        base,
        ANSWERS,
        STORY,
        3,
        distillation=DistillationConfig(top_k=TOP_K, clip_min=CLIP_MIN),
        context=ContextConfig(),
        callbacks=ALGORITHM_1,
    )
    return replace(toy, **changes)


def test_a_mixture_is_the_weighted_sum_and_asks_for_no_context_once_the_weight_is_gone(tiny_base: Path) -> None:
    options = {"objective": "mixture", "mixture_updates": 2}
    run = together(tiny_base, rollouts_per_prompt=4, options=options, observers=(WatchLoss(),)).run()
    assert [moment.record.metrics["mixture/distillation_weight"] for moment in run.moments] == [1.0, 0.5, 0.0, 0.0]
    assert ["loss/divergence" in moment.record.metrics for moment in run.moments] == [True, True, False, False]
    assert [len(run.asked_for("reflect", update)) for update in range(4)] == [10, 10, 0, 0]
    for update, (moment, weight) in enumerate(zip(run.moments, (1.0, 0.5, 0.0, 0.0), strict=True)):
        advantages = [REST, ONE, REST, REST] * 2 + [0.0] * 4
        student = trained(run, update)
        coefficients = [weight * bool(prompt.sections) / (12 * 2) for prompt in moment.record.teacher_prompts]
        factors = [(1 - weight) * advantage / (12 * 2) for advantage in advantages]
        loss = distillation_loss(run, update, student, coefficients) + policy_loss(run, update, student, factors)
        assert_step(run, update, loss, student)
        assert [isinstance(batch, DistillBatch) for batch in moment.batches] == [True] * 6 + [False] * 6


def test_after_the_switch_only_rollouts_cost_tokens_and_there_are_more_of_them(tiny_base: Path) -> None:
    switch = SwitchObjective(rollouts_per_prompt=4, success_rate=None, at_update=2)
    run = together(tiny_base, observers=(switch, WatchLoss())).run()
    assert [len(run.asked_for("rollout", update)) for update in range(4)] == [3, 3, 12, 12]
    assert [len(run.asked_for("reflect", update)) for update in range(4)] == [3, 3, 0, 0]
    assert [moment.record.metrics["switch/is_on"] for moment in run.moments] == [0, 0, 1, 1]
    assert ["loss/divergence" in moment.record.metrics for moment in run.moments] == [True, True, False, False]
    # Slots for twelve rollouts, two at a time, from the first update on
    assert [len(moment.batches) for moment in run.moments] == [6] * 4
    assert [isinstance(moment.batches[0], GrpoBatch) for moment in run.moments] == [False, False, True, True]
    for update in (2, 3):
        student = trained(run, update)
        factors = [advantage / (12 * 2) for advantage in [REST, ONE, REST, REST] * 2 + [0.0] * 4]
        assert_step(run, update, policy_loss(run, update, student, factors), student)
    # Until then it is RESD alone.
    alone = together(tiny_base).run()
    for one, other in zip(run.moments[:2], alone.moments[:2], strict=True):
        assert one.loss == other.loss
        assert all(torch.equal(weight, other.student_after[name]) for name, weight in one.student_after.items())
