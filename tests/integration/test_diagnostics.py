"""What observers say about the eight updates of trace_script.py, by hand; and that they leave no trace in them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from toy import LORA, Run, Toy, merged_logits
from trace_script import ANSWERS, LINES

from resd_lightning.callbacks import (
    CountSuccesses,
    ProbeTokens,
    RecordMetrics,
    SampleTeacher,
    WatchLoss,
    WatchPlaybook,
    WriteDiagnostics,
)
from resd_lightning.callbacks.sample_teacher import in_context_metrics
from resd_lightning.config import ConfigError
from resd_lightning.run_folder import RunFolder, append_lines

CLIP_MIN, TOP_K = 0.2, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(tmp_path_factory.mktemp("observed"))


@pytest.fixture(scope="module")
def plain(tiny_base: Path) -> Toy:
    return Toy(tiny_base, ANSWERS, LINES, 3, lora=replace(LORA, dropout=0.1))


@pytest.fixture(scope="module")
def observed(plain: Toy, folder: RunFolder) -> Run:
    """With dropout, whose noise comes from the global stream, and a teacher who draws from it, too."""
    observers = (
        SampleTeacher(every=3, max_examples=8),
        ProbeTokens(every=4, max_examples=2),
        WatchLoss(),
        WatchPlaybook(),
        CountSuccesses(folder),
        RecordMetrics(folder),
        WriteDiagnostics(folder),
    )
    return replace(plain, observers=observers).run()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def metrics(folder: RunFolder, update: int, prefix: str) -> dict[str, float]:
    (line,) = [x for x in lines(folder.metrics) if x["phase"] == "train" and x["updates_done"] == update + 1]
    return {name.removeprefix(prefix): value for name, value in line.items() if name.startswith(prefix)}


# No trace


def test_observers_leave_weights_context_and_losses_as_they_were(plain: Toy, observed: Run) -> None:
    alone = plain.run()
    for one, other in zip(alone.moments, observed.moments, strict=True):
        assert (one.loss, one.gradient_norm) == (other.loss, other.gradient_norm)
        for who in ("student_before", "teacher_before", "student_after", "teacher_after"):
            weights, others = getattr(one, who), getattr(other, who)
            assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
        assert one.playbooks == other.playbooks
        assert one.record.rollouts == other.record.rollouts
        assert one.record.teacher_prompts == other.record.teacher_prompts
        assert one.record.metrics.items() <= other.record.metrics.items()
    assert any(moment.loss for moment in alone.moments)
    assert alone.asked == [asked for asked in observed.asked if asked[0] != "diagnose"]


def test_what_diagnostics_spend_is_counted_apart(observed: Run, folder: RunFolder) -> None:
    # Update 0: two prompts of four sections and one of three, each also whole and plain; update 3: four, three and two.
    assert [metrics(folder, update, "requests/").get("diagnose") for update in range(8)] == [
        17,
        *[None] * 2,
        15,
        *[None] * 4,
    ]
    spent = metrics(folder, 0, "tokens/")
    assert spent["diagnose_generated"] == 17 * 2  # a digit and the end of the turn
    assert spent["rollout_generated"] == 28
    assert metrics(folder, 0, "time/").keys() >= {"diagnose_s", "verify_s", "rollout_s"}


# The teacher's answers


def test_accuracy_behind_the_whole_prompt_and_without_each_section_by_hand(observed: Run, folder: RunFolder) -> None:
    # The teacher needs a solution, or a reflection beside the playbook. Nobody has a solution, a2 no reflection.
    assert metrics(folder, 0, "in_context/") == pytest.approx(
        {
            "student": 0,
            "full": 2 / 3,
            "headroom": 2 / 3,
            "full_on_failures": 2 / 3,
            "nothing": 0,
            "without_playbook": 0,
            "drop_playbook": 2 / 3,
            "without_reflection": 0,  # of a1 and a3, which have one
            "drop_reflection": 1,
            "without_trial": 2 / 3,
            "drop_trial": 0,
            "without_feedback": 2 / 3,
            "drop_feedback": 0,
            "verify_errors": 0,
        }
    )
    # All have solutions; b1 could do without it. b3 succeeded.
    assert metrics(folder, 3, "in_context/") == pytest.approx(
        {
            "student": 1 / 3,
            "full": 1,
            "headroom": 2 / 3,
            "full_on_failures": 1,
            "nothing": 0,
            "without_playbook": 1,
            "drop_playbook": 0,
            "without_reflection": 1,
            "drop_reflection": 0,
            "without_trial": 1,
            "drop_trial": 0,
            "without_solution": 1 / 3,
            "drop_solution": 2 / 3,
            "verify_errors": 0,
        }
    )
    for update in (1, 2, 4, 5, 7):
        assert metrics(folder, update, "in_context/") == {}
    assert metrics(folder, 6, "in_context/") == {}  # due, but nothing is enriched


def test_sections_alone_are_asked_for_by_name(tiny_base: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    observers = (SampleTeacher(max_examples=1, alone=True), RecordMetrics(folder))
    Toy(tiny_base, ANSWERS, LINES, 3, observers=observers, max_batches=2).run()
    alone = {name: value for name, value in metrics(folder, 0, "in_context/").items() if name.startswith("only_")}
    # a3: reflection and playbook help each other only; update 3, which would tell of a solution, isn't due
    assert alone == {"only_playbook": 0, "only_reflection": 0, "only_trial": 0, "only_feedback": 0}
    answers = {"full": True, "without_trial": False, "only_trial": False, "nothing": False}
    both = in_context_metrics([False, True], [answers, {**answers, "only_trial": True}])
    assert both["in_context/only_trial"] == 0.5


def test_every_answer_is_written_down(observed: Run, folder: RunFolder) -> None:
    written = [line for line in lines(folder.diagnostics) if line["kind"] == "in_context"]
    assert [(line["updates_done"], line["example"], line["reward"]) for line in written] == [
        (1, "a1", 0), (1, "a2", 0), (1, "a3", 0), (4, "b1", 0), (4, "b2", 0), (4, "b3", 1),
    ]  # fmt: skip
    assert written[4]["answers"] == {
        "full": {"response": "6", "reward": 1},
        "without_playbook": {"response": "6", "reward": 1},
        "without_trial": {"response": "6", "reward": 1},
        "without_solution": {"response": "0", "reward": 0},
        "nothing": {"response": "0", "reward": 0},
    }


# The teacher's reading


def probabilities(
    observed: Run, adapter: dict[str, Tensor], prompt: tuple[int, ...], response: tuple[int, ...]
) -> Tensor:
    return merged_logits(observed.toy, adapter, (*prompt, *response))[len(prompt) - 1 : -1].softmax(-1)


def test_tokens_are_read_as_in_forward_passes_run_again(observed: Run, folder: RunFolder) -> None:
    moment = observed.moments[4]
    record = moment.record
    entropy: dict[str, list[float]] = {"student": [], "teacher": []}
    kl, end, corrected = [], [], []
    for index in (0, 2):  # two of three, the first and the last among them
        completion, prompt = record.rollouts[index].completion, record.teacher_prompts[index]
        p = probabilities(observed, moment.student_before, completion.prompt_ids, completion.token_ids)
        q = probabilities(observed, moment.teacher_before, prompt.token_ids, completion.token_ids)
        bare = probabilities(observed, moment.teacher_before, completion.prompt_ids, completion.token_ids)
        entropy["student"].append(float(-(p * p.log()).sum(-1).mean()))
        entropy["teacher"].append(float(-(q * q.log()).sum(-1).mean()))
        kl.append(float((q * (q / bare).log()).sum(-1).mean()))
        corrected.append(float((p.argmax(-1) != q.argmax(-1)).double().mean()))
        end.append(math.log(q[-1, completion.token_ids[-1]] / p[-1, completion.token_ids[-1]]))
    expected = {
        "student_entropy": sum(entropy["student"]) / 2,
        "teacher_entropy": sum(entropy["teacher"]) / 2,
        "sharpening": (sum(entropy["student"]) - sum(entropy["teacher"])) / 2,
        "corrected_share": sum(corrected) / 2,
        "eos_advantage": sum(end) / 2,
    }
    assert metrics(folder, 4, "probe/") == pytest.approx(expected, rel=1e-3, abs=1e-5)
    attribution = metrics(folder, 4, "attribution/")
    assert attribution["all"] == pytest.approx(sum(kl) / 2, rel=1e-3)
    # c1 has playbook and solution, c3 the other four: "ps" and "fprt" in test_scripted_trace.py.
    assert attribution.keys() == {"all", "playbook", "reflection", "trial", "feedback", "solution"}
    assert min(attribution.values()) > 0
    written = [line for line in lines(folder.diagnostics) if line["kind"] == "probe" and line["updates_done"] == 5]
    assert [line["example"] for line in written] == ["c1", "c3"]
    assert [line["attribution"]["all"] for line in written] == pytest.approx(kl, rel=1e-3)
    assert written[0]["attribution"].keys() == {"all", "playbook", "solution"}


# What the loss was made of


def test_loss_facts_are_means_over_the_updates_tokens(tiny_base: Path, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    toy = Toy(tiny_base, ANSWERS, LINES, 3, observers=(WatchLoss(), RecordMetrics(folder), WriteDiagnostics(folder)))
    run = toy.run()
    for update, moment in enumerate(run.moments):
        losses, shares, masses = [], [], []
        for rollout, prompt in zip(moment.record.rollouts, moment.record.teacher_prompts, strict=True):
            if not prompt.is_enriched:
                continue
            completion = rollout.completion
            student = probabilities(run, moment.student_before, completion.prompt_ids, completion.token_ids)
            teacher = probabilities(run, moment.teacher_before, prompt.token_ids, completion.token_ids)
            of_tokens = []
            for p, q in zip(student, teacher, strict=True):
                top = p.topk(TOP_K).indices
                buckets = list(zip([*p[top], 1 - p[top].sum()], [*q[top], 1 - q[top].sum()], strict=True))
                of_tokens.append(float(sum(a * torch.log(a / max(b, CLIP_MIN * a)) for a, b in buckets)))
                shares.append(sum(b < CLIP_MIN * a for a, b in buckets) / len(buckets))
                masses.append(float(sum(a for a, b in buckets if b < CLIP_MIN * a)))
            losses += of_tokens
            about = {"updates_done": update + 1, "example": rollout.example.id, "is_success": rollout.is_success}
            for line in lines(folder.diagnostics):
                if about.items() <= line.items():
                    assert line["losses"] == pytest.approx(of_tokens, rel=1e-3, abs=1e-5)
                    assert "".join(line["tokens"]).removesuffix("<|im_end|>") == completion.text
        facts = metrics(folder, update, "loss/")
        if not losses:
            assert facts == {}  # update 6, where all is masked
            continue
        assert facts["divergence"] == pytest.approx(sum(losses) / len(losses), rel=1e-3)
        assert facts["clipped_share"] == pytest.approx(float(sum(shares)) / len(shares), abs=1e-6)
        assert facts["clipped_mass"] == pytest.approx(sum(masses) / len(masses), rel=1e-3, abs=1e-6)
        assert update > 0 or facts["clipped_share"] > 0
    # The first failure and the first success of each batch's first update; update 6 has no loss.
    assert [(line["updates_done"], line["example"]) for line in lines(folder.diagnostics)] == [
        (1, "a1"), (3, "b1"), (3, "b3"), (5, "c1"), (5, "c2"),
    ]  # fmt: skip


# The playbook, the prompts


def test_playbook_flow_of_each_update_by_hand(observed: Run, folder: RunFolder) -> None:
    flows = [metrics(folder, update, "playbook/") for update in range(8)]
    assert [flow["births"] for flow in flows] == [3, 0, 1, 3, 1, 0, 0, 1]
    assert [flow["deaths"] for flow in flows] == [0, 0, 0, 3, 1, 0, 0, 2]
    assert [flow["turned_harmful"] for flow in flows] == [0, 1, 1, 0, 0, 0, 0, 0]
    assert [flow["turned_helpful"] for flow in flows] == [0, 1, 0, 1, 1, 0, 0, 0]
    # Entries of update 2, 3, 3 and 4; then of 2, 3 and 7.
    assert flows[4]["age"] == (2 + 1 + 1 + 0) / 4
    assert flows[7]["age"] == (5 + 4 + 0) / 3
    assert flows[7]["helpful_share"] == 2 / 3
    assert flows[2]["harmful_share"] == 2 / 4


def test_successes_per_prompt_at_each_validation(observed: Run, folder: RunFolder) -> None:
    validations = [line for line in lines(folder.metrics) if line["phase"] == "val"]
    assert [[line[f"val/solved_{n}_of_2"] for n in range(3)] for line in validations] == [[0, 0.5, 0.5]] * 4
    written = [line for line in lines(folder.diagnostics) if line["kind"] == "successes"]
    assert written == [
        {"kind": "successes", "updates_done": u, "samples": 2, "by_prompt": {"v1": 2, "v2": 1}} for u in (2, 4, 6, 8)
    ]


# Resuming, settings


def test_lines_past_the_update_that_is_resumed_from_are_dropped(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    append_lines(folder.diagnostics, [{"kind": "probe", "updates_done": updates} for updates in (0, 1, 2, 3)])

    class AtTwo(Trainer):
        global_step = 2
        is_global_zero = True

        def __init__(self) -> None: ...

    WriteDiagnostics(folder).on_train_start(AtTwo(), None)
    assert [line["updates_done"] for line in lines(folder.diagnostics)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SampleTeacher(every=0), "SampleTeacher.every must be at least 1, got 0"),
        (lambda: ProbeTokens(max_examples=0), "ProbeTokens.max_examples must be at least 1, got 0"),
        (lambda: ProbeTokens(max_tokens=0), "ProbeTokens.max_tokens must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make: object, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make()
