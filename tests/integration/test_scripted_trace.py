"""Eight updates of Algorithm 1, every number of which was worked out by hand from the paper's rules.

Four batches of three prompts, K = 2, one rollout per prompt. A budget of four entries, staleness pruning every four
context updates, success-rate weights, reverse KL over the top 5 and the tail, clip_min 0.2, an EMA of rate 1/4.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy import ALGORITHM_1, Run, Toy, merged_logits
from trace_script import ANSWERS, LINES

from resd_lightning.callbacks import RecordMetrics, WriteTranscripts
from resd_lightning.records import Purpose
from resd_lightning.run_folder import RunFolder

EMA_RATE = 0.25
CLIP_MIN = 0.2
TOP_K = 5


@dataclass(frozen=True)
class Expected:
    """What one update must leave behind.

    Entries stand as (id, helpful, harmful, last step); sections by their initials: feedback, playbook, reflection,
    solution, trial. Tokens are bytes and one end of turn. Operations stand as (type, example or reason, entry). Counts
    are all there is to count of the playbook and the buffer; metrics are some of the rest.
    """

    entries: list[tuple[str, int, int, int]]
    sections: list[str]
    coefficients: list[float]
    tokens: list[int]
    reflector_sees: str = ""
    curator_sees: str = ""
    solutions: dict[str, str] = field(default_factory=dict)
    problems: dict[str, int] = field(default_factory=dict)
    operations: list[tuple[str, str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


EXPECTED = (
    # Update 0, step 1. All fail. a2's reflection can't be read, so only a1 and a3 have curators; a3's first lesson is
    # a1's in other punctuation. No success: s = 0, clamped to 1/3, and every weight is one.
    Expected(
        entries=[("e00001", 0, 0, 1), ("e00002", 0, 0, 1), ("e00003", 0, 0, 1)],
        sections=["fprt", "fpt", "fprt"],
        tokens=[4, 2, 22],
        coefficients=[1 / 12, 1 / 6, 1 / 66],
        problems={"reflect/problem/unknown_id": 1, "reflect/problem/no_json": 1, "curate/problem/duplicate": 1},
        operations=[
            ("ADD", "a1", "e00001"),
            ("ADD", "a1", "e00002"),
            ("ADD duplicate", "a3", "e00001"),
            ("ADD", "a3", "e00003"),
        ],
        # The verdict on e00009 tags nothing.
        counts={"playbook/applied_add": 3},
        metrics={"reflect/answers": 3, "reflect/usable": 2, "curate/answers": 2},
    ),
    # Update 1, step 2. a1 succeeds and is shown to itself. a2's reflection tags e1 helpful and e2 harmful, a1's
    # success e1 helpful once more, both before a2's curator looks. a3: no feedback, no reflection, so a plain prompt.
    # s = 1/3: a success weighs 2/3, a failure 1/3, the mean is 4/9, which makes 3/2 and 3/4.
    Expected(
        entries=[("e00001", 2, 0, 2), ("e00002", 0, 1, 2), ("e00003", 0, 0, 1)],
        sections=["ps", "fprt", ""],
        tokens=[28, 3, 2],
        coefficients=[1.5 / 84, 0.75 / 9, 0],
        reflector_sees="e00001 e00002 e00003",
        curator_sees="e00001+2-0 e00002+0-1 e00003+0-0",
        solutions={"a1": "<think>one and one</think>2"},
        problems={"reflect/problem/missing_field": 1, "curate/problem/no_json": 1},
        counts={
            "playbook/tagged_helpful": 2,
            "playbook/tagged_harmful": 1,
            "playbook/tagged_neutral": 1,
            "solutions/cached": 1,
        },
        metrics={"reflect/answers": 2, "reflect/usable": 1, "tag/answers": 1, "curate/answers": 1},
    ),
    # Update 2, step 3. New prompts, so a1's solution is evicted. Reflections first: e3 helpful (e1 neutral). Then the
    # success: e3 harmful, e1 helpful. b2's tags can't be read. s = 2/3: weights 3/4 and 3/2.
    Expected(
        entries=[("e00001", 3, 0, 3), ("e00002", 0, 1, 2), ("e00003", 1, 1, 3), ("e00004", 0, 0, 3)],
        sections=["ps", "ps", "fprt"],
        tokens=[2, 19, 3],
        coefficients=[0.75 / 6, 0.75 / 57, 1.5 / 9],
        reflector_sees="e00001 e00002 e00003",
        curator_sees="e00001+3-0 e00002+0-1 e00003+1-1",
        solutions={"b1": "5", "b2": "<think>ok</think>6"},
        problems={"tag/problem/no_json": 1},
        operations=[("ADD", "b3", "e00004")],
        counts={
            "playbook/tagged_helpful": 2,
            "playbook/tagged_harmful": 1,
            "playbook/tagged_neutral": 1,
            "playbook/applied_add": 1,
            "solutions/cached": 2,
        },
        metrics={"tag/answers": 2, "tag/truncated": 0},
    ),
    # Update 3, step 4: periodic. e2 (0 to 1) and e3 (1 to 1) are harmful and go; e4 is unused but one step old and
    # stays. b1's tag on e3 comes too late. Its curator's three lessons make five entries: none is harmful or stale, so
    # the longest-untagged goes, e1 of step 3, most helpful as it was. b1 and b2 fail at what they solved before: the
    # buffer speaks and their feedback is held back; b2 has no reflection, but a trial and a solution. s = 1/3.
    Expected(
        entries=[("e00004", 1, 0, 4), ("e00005", 0, 0, 4), ("e00006", 0, 0, 4), ("e00007", 0, 0, 4)],
        sections=["prst", "pst", "ps"],
        tokens=[3, 4, 2],
        coefficients=[0.75 / 9, 0.75 / 12, 1.5 / 6],
        reflector_sees="e00001 e00004",
        curator_sees="e00001+3-0 e00004+1-0",
        solutions={"b1": "5", "b2": "<think>ok</think>6", "b3": "7"},
        problems={"reflect/problem/unknown_id": 1, "reflect/problem/not_an_object": 1},
        operations=[
            ("PRUNE", "periodic", "e00002"),
            ("PRUNE", "periodic", "e00003"),
            ("ADD", "b1", "e00005"),
            ("ADD", "b1", "e00006"),
            ("ADD", "b1", "e00007"),
            ("PRUNE", "over_budget", "e00001"),
        ],
        counts={
            "playbook/pruned": 3,
            "playbook/tagged_helpful": 1,
            "playbook/applied_add": 3,
            "solutions/cached": 1,
        },
    ),
    # Update 4, step 5. c1's success tags e5 helpful and e6 harmful; c2's neutral tag leaves e7's age. Of c2's lessons
    # one says what e5 says, the other names no known section and goes to the last. Five entries: e6 is harmful and
    # goes, and that is enough. c2 was told nothing by the environment, but has a reflection. s = 1/3.
    Expected(
        entries=[("e00004", 1, 0, 4), ("e00005", 1, 0, 5), ("e00007", 0, 0, 4), ("e00008", 0, 0, 5)],
        sections=["ps", "prt", "fprt"],
        tokens=[2, 2, 4],
        coefficients=[1.5 / 6, 0.75 / 6, 0.75 / 12],
        reflector_sees="e00004 e00005 e00006 e00007",
        curator_sees="e00004+1-0 e00005+1-0 e00006+0-1 e00007+0-0",
        solutions={"c1": "8"},
        problems={
            "curate/problem/duplicate": 1,
            "curate/problem/unknown_section": 1,
            "curate/problem/wrong_type": 1,
        },
        operations=[
            ("ADD duplicate", "c2", "e00005"),
            ("ADD", "c2", "e00008"),
            ("PRUNE", "over_budget", "e00006"),
        ],
        counts={
            "playbook/pruned": 1,
            "playbook/tagged_helpful": 1,
            "playbook/tagged_harmful": 1,
            "playbook/tagged_neutral": 1,
            "playbook/applied_add": 1,
            "solutions/cached": 1,
        },
        metrics={"reflect/usable": 2, "curate/answers": 2},
    ),
    # Update 5, step 6. All succeed: nobody reflects or curates. c1 helped e4; e1 is long gone; of c3's two verdicts on
    # e5 the first counts. s = 1, clamped to 2/3: every weight is one.
    Expected(
        entries=[("e00004", 2, 0, 6), ("e00005", 2, 0, 6), ("e00007", 0, 0, 4), ("e00008", 0, 0, 5)],
        sections=["ps", "ps", "ps"],
        tokens=[22, 2, 3],
        coefficients=[1 / 66, 1 / 6, 1 / 9],
        solutions={"c1": "<think>again</think>8", "c2": "9", "c3": "10"},
        problems={"tag/problem/unknown_id": 1, "tag/problem/duplicate": 1},
        counts={"playbook/tagged_helpful": 2, "solutions/cached": 3},
        metrics={"tag/answers": 3, "reflect/usable": 0},
    ),
    # Update 6, step 7. Silence: no feedback, no reflection, no solution. A playbook alone doesn't count: all is masked.
    Expected(
        entries=[("e00004", 2, 0, 6), ("e00005", 2, 0, 6), ("e00007", 0, 0, 4), ("e00008", 0, 0, 5)],
        sections=["", "", ""],
        tokens=[2, 2, 2],
        coefficients=[0, 0, 0],
        reflector_sees="e00004 e00005 e00007 e00008",
        problems={
            "reflect/problem/missing_field": 2,  # d1 has neither tags nor insight
            "reflect/problem/empty": 1,
            "reflect/problem/not_an_object": 1,
        },
        metrics={"reflect/answers": 3, "reflect/usable": 0},
    ),
    # Update 7, step 8: periodic. e7 and e8 are unused for four and three steps. e4 is harmed, but stays helpful. d1's
    # lesson is e5's, d3's is d2's. The next id is e9: ids of pruned entries don't come back. d3 is cut at 40 tokens.
    Expected(
        entries=[("e00004", 2, 1, 8), ("e00005", 2, 0, 6), ("e00009", 0, 0, 8)],
        sections=["fprt", "prt", "fprt"],
        tokens=[5, 2, 40],
        coefficients=[1 / 15, 1 / 6, 1 / 120],
        reflector_sees="e00004 e00005",
        curator_sees="e00004+2-1 e00005+2-0",
        problems={"curate/problem/duplicate": 2},
        operations=[
            ("PRUNE", "periodic", "e00007"),
            ("PRUNE", "periodic", "e00008"),
            ("ADD duplicate", "d1", "e00005"),
            ("ADD", "d2", "e00009"),
            ("ADD duplicate", "d3", "e00009"),
        ],
        counts={"playbook/pruned": 2, "playbook/tagged_harmful": 1, "playbook/applied_add": 1},
        metrics={"rollout/truncated_share": 1 / 3, "reflect/usable": 3},
    ),
)

updates = pytest.mark.parametrize("update", range(8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(tmp_path_factory.mktemp("trace"))


@pytest.fixture(scope="module")
def trace(tiny_base: Path, folder: RunFolder) -> Run:
    return Toy(tiny_base, ANSWERS, LINES, 3, observers=(RecordMetrics(folder), WriteTranscripts(folder))).run()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def shown(text: str) -> str:
    return " ".join(f"{id_}+{h}-{d}" for id_, h, d in re.findall(r"\[(e\d+) \| helped (\d+), misled (\d+)\]", text))


# What is asked


def test_every_line_of_the_script_is_asked_for_exactly_once(trace: Run) -> None:
    assert Counter((purpose, update, example) for purpose, update, example, _ in trace.asked) == Counter(list(LINES))


@updates
def test_reflectors_see_what_pruning_left(trace: Run, update: int) -> None:
    answers = [a for a in trace.moments[update].record.answers if a.purpose == Purpose.REFLECT]
    seen = {" ".join(re.findall(r"\[(e\d+)\]", answer.messages[-1]["content"])) for answer in answers}
    assert seen <= {EXPECTED[update].reflector_sees}
    assert len(answers) == sum(purpose == "reflect" and u == update for purpose, u, _ in LINES)


@updates
def test_curators_see_all_tags_of_the_update_but_not_each_other(trace: Run, update: int) -> None:
    answers = [a for a in trace.moments[update].record.answers if a.purpose == Purpose.CURATE]
    assert {shown(answer.messages[-1]["content"]) for answer in answers} <= {EXPECTED[update].curator_sees}
    assert len(answers) == sum(purpose == "curate" and u == update for purpose, u, _ in LINES)


# What the context becomes


@updates
def test_playbook_tags_ages_and_pruning(trace: Run, update: int) -> None:
    moment = trace.moments[update]
    assert moment.entries == EXPECTED[update].entries
    assert moment.playbook.step == update + 1
    assert moment.playbook.next_number == (4, 4, 5, 8, 9, 9, 9, 10)[update]


def test_entries_keep_text_section_and_provenance(trace: Run) -> None:
    kept = [
        (entry.id, entry.section, entry.text, entry.created_update, entry.sources)
        for entry in (*trace.moments[0].playbook.entries, *trace.moments[4].playbook.entries)
    ]
    assert kept == [
        ("e00001", "strategies", "Count on your fingers before you answer.", 0, ("a1",)),
        ("e00002", "formulas", "A sum is larger than both parts.", 0, ("a1",)),
        ("e00003", "others", "Check the sign of each part.", 0, ("a3",)),
        ("e00004", "code_snippets", "Carry the ten when digits overflow.", 2, ("b3",)),
        ("e00005", "strategies", "Answer with one digit where the sum is below ten.", 3, ("b1",)),
        ("e00007", "context_clues", "The question names both parts.", 3, ("b1",)),
        ("e00008", "others", "A question wants a number.", 4, ("c2",)),
    ]


@updates
def test_curator_operations_and_pruning_are_logged(trace: Run, update: int) -> None:
    logged = []
    for operation in trace.moments[update].record.operations:
        if operation["type"] == "PRUNE":
            logged.append(("PRUNE", operation["reason"], operation["id"]))
        else:
            name = " ".join(filter(None, (operation["type"], operation["problem"])))
            logged.append((name, operation["example"], operation["entry"]))
    assert logged == EXPECTED[update].operations


@updates
def test_solution_buffer_serves_its_batch_and_is_evicted_with_it(trace: Run, update: int) -> None:
    assert trace.moments[update].solutions == EXPECTED[update].solutions


@updates
def test_what_was_malformed_is_counted_by_kind(trace: Run, update: int) -> None:
    assert trace.moments[update].problems() == EXPECTED[update].problems


# What the teacher reads


@updates
def test_teacher_prompts_hold_these_sections(trace: Run, update: int) -> None:
    assert trace.moments[update].sections == EXPECTED[update].sections


@updates
def test_teacher_reads_this_updates_playbook_or_the_plain_question(trace: Run, update: int) -> None:
    moment = trace.moments[update]
    playbook = " ".join(f"{id_}+{helpful}-{harmful}" for id_, helpful, harmful, _ in EXPECTED[update].entries)
    for rollout, prompt in zip(moment.record.rollouts, moment.record.teacher_prompts, strict=True):
        assert not prompt.is_skipped
        if prompt.is_enriched:
            assert shown(prompt.messages[-1]["content"]) == playbook
        else:
            assert prompt.messages == rollout.example.messages
            assert prompt.token_ids == rollout.completion.prompt_ids


def test_a_later_failure_reads_the_buffers_solution_instead_of_its_feedback(trace: Run) -> None:
    first, second, _ = trace.moments[3].record.teacher_prompts
    assert first.messages[-1]["content"] == (
        "Lessons learned from earlier attempts at tasks of this kind. Each shows in brackets how often it helped and "
        "how often it misled. Use those that apply.\n\n"
        "- [e00004 | helped 1, misled 0] (code_snippets) Carry the ten when digits overflow.\n"
        "- [e00005 | helped 0, misled 0] (strategies) Answer with one digit where the sum is below ten.\n"
        "- [e00006 | helped 0, misled 0] (common_mistakes) Do not repeat a digit.\n"
        "- [e00007 | helped 0, misled 0] (context_clues) The question names both parts.\n\n"
        "What is 1 + 4?\n\n"
        "For reference, a correct response to this question:\n\n5\n\n"
        "An earlier response to this question, which was wrong:\n\n55\n\n"
        "What went wrong, and what would have been right:\n\nKey insight: one digit is enough\n\n"
        "Now answer the question above correctly."
    )
    # b2's solution is shown without its thinking.
    assert "response to this question:\n\n6\n\nAn earlier response" in second.messages[-1]["content"]
    assert "600 is wrong." not in second.messages[-1]["content"]


def test_thinking_is_stripped_from_trials_and_own_solutions(trace: Run) -> None:
    trial = trace.moments[0].record.teacher_prompts[2].messages[-1]["content"]
    own = trace.moments[1].record.teacher_prompts[0].messages[-1]["content"]
    assert (
        "which was wrong:\n\n5\n\nWhat the environment said about an earlier, wrong response:\n\n5 is wrong." in trial
    )
    assert "response to this question:\n\n2\n\nNow answer" in own
    assert "think" not in trial + own
    assert "Right." not in own


# What the loss counts


@updates
def test_masks_lengths_weights_and_reduction(trace: Run, update: int) -> None:
    moment, expected = trace.moments[update], EXPECTED[update]
    assert [len(rollout.completion.token_ids) for rollout in moment.record.rollouts] == expected.tokens
    counted = [(c, tokens) for c, tokens in zip(expected.coefficients, expected.tokens, strict=True) if c > 0]
    assert moment.coefficients == pytest.approx([c for c, _ in counted], rel=1e-6)
    rows = [
        int(length)
        for batch in moment.batches
        for length, c in zip(batch.response_mask.sum(dim=1), batch.coefficients, strict=True)
        if c > 0
    ]
    assert rows == [tokens for _, tokens in counted]
    assert len(moment.batches) == 2  # three rollouts, two at a time: the same slots in every update


def plain_loss(trace: Run, update: int, student: Mapping[str, Tensor]) -> Tensor:
    """Return the update's loss, token by token and bucket by bucket as the paper writes it."""
    record, teacher = trace.moments[update].record, trace.moments[update].teacher_before
    loss = torch.zeros((), dtype=torch.float64)
    for rollout, prompt, c in zip(record.rollouts, record.teacher_prompts, EXPECTED[update].coefficients, strict=True):
        response = rollout.completion.token_ids
        student_probs, teacher_probs = (
            merged_logits(trace.toy, weights, (*before, *response))[len(before) - 1 : -1].softmax(dim=-1)
            for weights, before in ((student, rollout.completion.prompt_ids), (teacher, prompt.token_ids))
        )
        for p, q in zip(student_probs, teacher_probs, strict=True):
            top = p.topk(TOP_K).indices
            for a, b in zip([*p[top], 1 - p[top].sum()], [*q[top], 1 - q[top].sum()], strict=True):
                loss = loss + c * a * torch.log(a / torch.maximum(b, CLIP_MIN * a.detach()))
    return loss


@updates
def test_loss_and_gradient_equal_the_plain_formula_on_logits_run_again(trace: Run, update: int) -> None:
    moment = trace.moments[update]
    student = {name: weight.clone().requires_grad_() for name, weight in moment.student_before.items()}
    loss = plain_loss(trace, update, student)
    assert moment.loss == pytest.approx(loss.item(), rel=1e-4, abs=1e-7)
    gradient = torch.autograd.grad(loss, list(student.values()))
    norm = torch.cat([part.flatten() for part in gradient]).norm().item()
    # Neither Lightning's division by the number of micro-batches nor clipping is in it.
    assert moment.gradient_norm == pytest.approx(norm, rel=1e-3, abs=1e-7)
    assert (moment.loss > 0.01) == (norm > 0.001) == any(EXPECTED[update].coefficients)  # something was compared


@updates
def test_gradient_reaches_the_student_and_never_the_teacher(trace: Run, update: int) -> None:
    assert trace.moments[update].student_has_gradient
    assert not trace.moments[update].teacher_has_gradient


@updates
def test_one_optimizer_step_moves_the_student(trace: Run, update: int) -> None:
    moment = trace.moments[update]
    moved = [name for name, w in moment.student_after.items() if not torch.equal(w, moment.student_before[name])]
    # Update 6 has no loss, but AdamW goes on by its momentum and decays the weights.
    assert moved == list(moment.student_before)


def test_teacher_is_the_moving_average_of_both_factors(trace: Run) -> None:
    start = trace.moments[0].student_before
    assert {name.split(".")[-2] for name in start} == {"lora_A", "lora_B"}
    average = {name: weight.double() for name, weight in start.items()}  # the teacher starts as a copy
    for moment in trace.moments:
        for name in start:
            assert (moment.teacher_before[name] - average[name]).abs().max() <= 1e-7
            average[name] = (1 - EMA_RATE) * average[name] + EMA_RATE * moment.student_after[name].double()
            assert (moment.teacher_after[name] - average[name]).abs().max() <= 1e-7
            assert not torch.equal(moment.teacher_after[name], moment.teacher_before[name])


def test_nothing_moves_between_updates(trace: Run) -> None:
    for before, after in zip(trace.moments, trace.moments[1:], strict=False):
        for name in before.student_after:
            assert torch.equal(before.student_after[name], after.student_before[name])
            assert torch.equal(before.teacher_after[name], after.teacher_before[name])


# What observers write down


@updates
def test_metrics_file_has_the_updates_numbers(trace: Run, folder: RunFolder, update: int) -> None:
    moment, expected = trace.moments[update], EXPECTED[update]
    (line,) = [x for x in lines(folder.metrics) if x["phase"] == "train" and x["updates_done"] == update + 1]
    shares = {
        f"teacher/{name}_share": sum(name[0] in held for held in expected.sections) / 3
        for name in ("playbook", "reflection", "trial", "feedback", "solution")
    }
    wanted = {
        "train/loss": moment.loss,
        "train/per_task": (0, 1 / 3, 2 / 3, 1 / 3, 1 / 3, 1, 0, 0)[update],
        "train/learning_rate": 0.01 if update == 0 else 0.02,  # two updates of warm-up
        "playbook/size": len(expected.entries),
        "solutions/size": len(expected.solutions),
        "teacher/enriched_share": sum(c > 0 for c in expected.coefficients) / 3,
        "tokens/rollout_generated": sum(expected.tokens),
        "requests/rollout": 3,
        "prompts/drawn": 3 if update % 2 == 0 else 0,
        **shares,
        **expected.problems,
        **expected.metrics,
    }
    assert {name: line[name] for name in wanted} == pytest.approx(wanted)
    counted = ("playbook/pruned", "playbook/tagged", "playbook/applied", "solutions/cached")
    assert {name: count for name, count in line.items() if name.startswith(counted) and count} == expected.counts
    assert line["teacher/lag"] > 0
    assert line["train/grad_norm"] > 0 or update == 6


def test_validation_runs_once_per_batch_of_prompts(trace: Run, folder: RunFolder) -> None:
    validations = [line for line in lines(folder.metrics) if line["phase"] == "val"]
    assert [line["updates_done"] for line in validations] == [2, 4, 6, 8]
    for line in validations:  # v1 right twice, v2 once
        assert line["val/per_task/mean@2"] == 0.75
        assert line["val/per_task/best@2"] == 1.0
        assert line["requests/validate"] == 4


def test_transcripts_have_every_rollout_with_its_share_of_the_loss(trace: Run, folder: RunFolder) -> None:
    transcripts = lines(folder.transcripts)
    assert [(line["update"], line["example"]) for line in transcripts] == [
        (update, f"{'aabbccdd'[update]}{number}") for update in range(8) for number in (1, 2, 3)
    ]
    assert [line["loss_coefficient"] for line in transcripts] == pytest.approx(
        [c for expected in EXPECTED for c in expected.coefficients], rel=1e-6
    )
    assert json.loads(folder.playbook.read_text()) == trace.moments[-1].playbook.to_dict()


@updates
def test_transcripts_have_every_operation_once(trace: Run, folder: RunFolder, update: int) -> None:
    written = [op for line in lines(folder.transcripts) if line["update"] == update for op in line["operations"]]
    logged = json.loads(json.dumps(trace.moments[update].record.operations))
    assert sorted(map(json.dumps, written)) == sorted(map(json.dumps, logged))


def test_summary_counts_what_was_spent(trace: Run, folder: RunFolder) -> None:
    summary = json.loads(folder.summary.read_text())
    assert summary["updates"] == 8
    asked = Counter(purpose for purpose, _, _ in LINES)
    assert asked == {"rollout": 24, "reflect": 16, "tag": 8, "curate": 10}
    for purpose, count in asked.items():
        assert summary["spent"][f"requests/{purpose}"] == count
    assert summary["spent"]["tokens/rollout_generated"] == sum(sum(expected.tokens) for expected in EXPECTED)
    assert summary["metrics"]["val/per_task/mean@2"] == {"first": 0.75, "last": 0.75, "best": 0.75}
    assert summary["metrics"]["playbook/size"] == {"first": 3, "last": 3, "best": 4}
    assert summary["metrics"]["train/loss"]["best"] == 0.0


def test_observers_change_nothing(trace: Run, tiny_base: Path) -> None:
    alone = Toy(tiny_base, ANSWERS, LINES, 3).run()
    assert trace.toy.callbacks == alone.toy.callbacks == ALGORITHM_1
    for seen, unseen in zip(trace.moments, alone.moments, strict=True):
        assert seen.entries == unseen.entries
        assert seen.loss == unseen.loss
        for name, weight in seen.student_after.items():
            assert torch.equal(weight, unseen.student_after[name])


# The other reductions, over the first two updates


@pytest.mark.parametrize(
    ("reduction", "first", "second"),
    [
        # Weight / N times the token sum: all weights are one, then 3/2 and 3/4.
        ("sequence_sum", [1 / 3, 1 / 3, 1 / 3], [0.5, 0.25]),
        # All unmasked tokens alike: 4 + 2 + 22, then 28 + 3 without the masked a3's 2.
        ("token_mean", [1 / 28, 1 / 28, 1 / 28], [1.5 / 31, 0.75 / 31]),
    ],
)
def test_reductions_by_hand(
    trace: Run, tiny_base: Path, reduction: str, first: list[float], second: list[float]
) -> None:
    toy = Toy(tiny_base, ANSWERS, LINES, 3, max_batches=1)
    moments = replace(toy, distillation=replace(toy.distillation, reduction=reduction)).run().moments
    assert moments[0].coefficients == pytest.approx(first, rel=1e-6)
    assert moments[1].coefficients == pytest.approx(second, rel=1e-6)
    assert math.isfinite(moments[1].loss)
