"""Removing a line of Algorithm 1 removes its effect and nothing else: the same story as in the scripted trace."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from toy import ALGORITHM_1, Moment, Run, Toy
from trace_script import ANSWERS, LINES, adds, reflection, tagged

from resd_lightning.algorithm import AlgorithmCallback
from resd_lightning.callbacks import (
    CacheSolutions,
    ConcisePlaybook,
    CuratePlaybook,
    RecordMetrics,
    ReflectOnFailures,
    SyncTeacher,
    TagSuccesses,
    WriteTranscripts,
)
from resd_lightning.config import ConfigError, ContextConfig, TeacherConfig, TeacherPromptConfig
from resd_lightning.run_folder import RunFolder

FULL_SECTIONS = [
    ["fprt", "fpt", "fprt"],
    ["ps", "fprt", ""],
    ["ps", "ps", "fprt"],
    ["prst", "pst", "ps"],
    ["ps", "prt", "fprt"],
    ["ps", "ps", "ps"],
    ["", "", ""],
    ["fprt", "prt", "fprt"],
]
FULL_SOLUTIONS = [[], ["a1"], ["b1", "b2"], ["b1", "b2", "b3"], ["c1"], ["c1", "c2", "c3"], [], []]


@pytest.fixture(scope="module")
def toy(tiny_base: Path) -> Toy:
    return Toy(tiny_base, ANSWERS, LINES, 3)


@pytest.fixture(scope="module")
def full(toy: Toy) -> Run:
    run = toy.run()
    assert [moment.sections for moment in run.moments] == FULL_SECTIONS
    assert [list(moment.solutions) for moment in run.moments] == FULL_SOLUTIONS
    return run


def has_same_weights(one: Moment, other: Moment) -> bool:
    return all(
        torch.equal(weight, getattr(other, part)[name])
        for part in ("student_after", "teacher_after")
        for name, weight in getattr(one, part).items()
    )


def is_same_context(one: Moment, other: Moment) -> bool:
    return (one.playbooks, one.solutions) == (other.playbooks, other.solutions)


def operations(moments: Sequence[Moment], name: str) -> int:
    return sum(operation["type"] == name for moment in moments for operation in moment.record.operations)


# One line removed


def test_without_concise_nothing_is_pruned_not_even_after_curation(toy: Toy, full: Run) -> None:
    moments = toy.without(ConcisePlaybook).run().moments
    for update in range(3):  # until the first pruning the runs are one
        assert is_same_context(moments[update], full.moments[update])
        assert has_same_weights(moments[update], full.moments[update])
    assert operations(full.moments, "PRUNE") == 6
    assert operations(moments, "PRUNE") == 0
    assert [len(moment.playbook) for moment in moments] == [3, 3, 4, 7, 8, 8, 8, 9]  # the budget is four
    # e3 is there in update 3 to be tagged, and e1 in update 5.
    assert moments[-1].entries == [
        ("e00001", 4, 0, 6),
        ("e00002", 0, 1, 2),
        ("e00003", 2, 1, 4),
        ("e00004", 2, 1, 8),
        ("e00005", 2, 0, 6),
        ("e00006", 0, 1, 5),
        ("e00007", 0, 0, 4),
        ("e00008", 0, 0, 5),
        ("e00009", 0, 0, 8),
    ]
    assert [moment.sections for moment in moments] == FULL_SECTIONS
    assert [list(moment.solutions) for moment in moments] == FULL_SOLUTIONS


def test_without_tag_successes_only_failures_tag(toy: Toy, full: Run) -> None:
    run = toy.without(TagSuccesses).run()
    assert run.asked_for("tag") == []
    assert len(full.asked_for("tag")) == 8
    for purpose in ("rollout", "reflect", "curate"):
        assert run.asked_for(purpose) == full.asked_for(purpose)
    assert is_same_context(run.moments[0], full.moments[0])
    assert [moment.entries for moment in run.moments[1:]] == [
        [("e00001", 1, 0, 2), ("e00002", 0, 1, 2), ("e00003", 0, 0, 1)],
        [("e00001", 1, 0, 2), ("e00002", 0, 1, 2), ("e00003", 1, 0, 3), ("e00004", 0, 0, 3)],
        # e2 was harmful. Of e1, e3, e4 and three new ones two must go: e1 of step 2, and of the rest, all of step 4,
        # the one that stands first.
        [("e00004", 1, 0, 4), ("e00005", 0, 0, 4), ("e00006", 0, 0, 4), ("e00007", 0, 0, 4)],
        # Five with e8. Nobody tagged e5 to e7, but they are one step old: e4 stands first of those of step 4.
        [("e00005", 0, 0, 4), ("e00006", 0, 0, 4), ("e00007", 0, 0, 4), ("e00008", 0, 0, 5)],
        [("e00005", 0, 0, 4), ("e00006", 0, 0, 4), ("e00007", 0, 0, 4), ("e00008", 0, 0, 5)],
        [("e00005", 0, 0, 4), ("e00006", 0, 0, 4), ("e00007", 0, 0, 4), ("e00008", 0, 0, 5)],
        # All four are unused for more than a step and go, so d1's lesson is no duplicate any more.
        [("e00009", 0, 0, 8), ("e00010", 0, 0, 8)],
    ]
    assert [moment.sections for moment in run.moments] == FULL_SECTIONS
    assert [list(moment.solutions) for moment in run.moments] == FULL_SOLUTIONS


def test_without_curate_the_playbook_stays_empty(toy: Toy, full: Run) -> None:
    run = toy.without(CuratePlaybook).run()
    assert run.asked_for("curate") == []
    assert run.asked_for("tag") == []  # with no entries there is nothing to tag
    assert run.asked_for("reflect") == full.asked_for("reflect")
    assert [moment.entries for moment in run.moments] == [[]] * 8
    assert [moment.sections for moment in run.moments] == [
        [held.replace("p", "") for held in update] for update in FULL_SECTIONS
    ]
    assert [list(moment.solutions) for moment in run.moments] == FULL_SOLUTIONS
    assert [moment.coefficients for moment in run.moments] == [moment.coefficients for moment in full.moments]


def test_without_cache_no_past_solution_is_shown(toy: Toy, full: Run) -> None:
    run = toy.without(CacheSolutions).run()
    assert [moment.solutions for moment in run.moments] == [{}] * 8
    expected = [list(update) for update in FULL_SECTIONS]
    expected[3] = ["fprt", "fpt", "ps"]  # feedback is back where B(x) had been; b3 still has itself
    assert [moment.sections for moment in run.moments] == expected
    assert run.asked == full.asked
    for update, (moment, reference) in enumerate(zip(run.moments, full.moments, strict=True)):
        assert moment.playbooks == reference.playbooks
        assert moment.coefficients == reference.coefficients
        assert has_same_weights(moment, reference) == (update < 3)


def test_a_curator_without_reflections_is_refused_by_name(toy: Toy) -> None:
    with pytest.raises(ConfigError, match="CuratePlaybook needs ReflectOnFailures"):
        toy.without(ReflectOnFailures).run()


def test_without_reflect_and_curate_failures_say_only_what_the_environment_says(toy: Toy) -> None:
    run = toy.without(ReflectOnFailures, CuratePlaybook).run()
    assert {purpose for purpose, *_ in run.asked} == {"rollout"}
    assert [moment.entries for moment in run.moments] == [[]] * 8
    assert [moment.sections for moment in run.moments] == [
        ["ft", "ft", "ft"],
        ["s", "ft", ""],
        ["s", "s", "ft"],
        ["st", "st", "s"],
        ["s", "", "ft"],  # c2's question mark had only its reflection
        ["s", "s", "s"],
        ["", "", ""],
        ["ft", "", "ft"],
    ]
    assert run.moments[4].coefficients == pytest.approx([1.5 / 6, 0.75 / 12], rel=1e-6)


def test_an_ema_teacher_without_sync_is_refused_by_name(toy: Toy) -> None:
    with pytest.raises(ConfigError, match=r"model\.teacher\.kind ema needs SyncTeacher"):
        toy.without(SyncTeacher).run()


@pytest.mark.parametrize("callbacks", [ALGORITHM_1, ALGORITHM_1[:-1]])
def test_an_initial_teacher_stays_where_it_was(
    toy: Toy, full: Run, callbacks: Sequence[type[AlgorithmCallback]]
) -> None:
    moments = replace(toy, callbacks=callbacks, teacher=TeacherConfig(kind="initial")).run().moments
    start = moments[0].student_before
    for moment, reference in zip(moments, full.moments, strict=True):
        assert is_same_context(moment, reference)
        assert moment.sections == reference.sections
        assert all(torch.equal(weight, start[name]) for name, weight in moment.teacher_after.items())
    assert moments[0].loss == full.moments[0].loss  # the average starts as the initial model
    assert moments[2].loss != full.moments[2].loss


def test_a_live_teacher_is_the_student_at_every_update(toy: Toy, full: Run) -> None:
    moments = replace(toy, teacher=TeacherConfig(kind="live")).without(SyncTeacher).run().moments
    for moment, reference in zip(moments, full.moments, strict=True):
        assert is_same_context(moment, reference)
        assert all(torch.equal(weight, moment.student_after[name]) for name, weight in moment.teacher_after.items())


def test_sdpo_is_sync_teacher_alone(toy: Toy) -> None:
    sdpo = TeacherPromptConfig(trial=False, self_success="none")
    run = replace(toy, callbacks=(SyncTeacher,), teacher_prompt=sdpo).run()
    assert {purpose for purpose, *_ in run.asked} == {"rollout"}
    assert [moment.sections for moment in run.moments] == [
        ["f", "f", "f"],
        ["", "f", ""],
        ["", "", "f"],
        ["f", "f", ""],
        ["", "", "f"],
        ["", "", ""],
        ["", "", ""],
        ["f", "", "f"],
    ]


def test_prioritized_pruning_keeps_helpful_entries_only(toy: Toy) -> None:
    context = ContextConfig(max_entries=4, concise="prioritized")
    moments = replace(toy, context=context, max_batches=2).run().moments
    # Step 4: e2 and e3 are harmful, e4 unused. b1's tag on e4 comes too late. Its three lessons fill the budget.
    assert moments[3].entries == [("e00001", 3, 0, 3), ("e00005", 0, 0, 4), ("e00006", 0, 0, 4), ("e00007", 0, 0, 4)]
    pruned = [op["id"] for op in moments[3].record.operations if op["type"] == "PRUNE"]
    assert pruned == ["e00002", "e00003", "e00004"]


def test_an_unused_entry_is_stale_after_two_steps_and_not_after_one(toy: Toy) -> None:
    moments = replace(toy, context=ContextConfig(max_entries=4, concise_every=3), max_batches=3).run().moments
    # Step 3: e2 is harmful, e3 unused since step 1.
    assert [op["id"] for op in moments[2].record.operations if op["type"] == "PRUNE"] == ["e00002", "e00003"]
    assert moments[2].entries == [("e00001", 3, 0, 3), ("e00004", 0, 0, 3)]
    # Step 5: five entries, of which e6 is harmful; e7 is unused since step 4 and stays.
    assert moments[4].entries == [("e00004", 1, 0, 4), ("e00005", 1, 0, 5), ("e00007", 0, 0, 4), ("e00008", 0, 0, 5)]


# Scope


def test_each_example_has_its_own_playbook_under_example_scope(toy: Toy) -> None:
    context = ContextConfig(scope="example", max_entries=2, concise_every=2)
    # An example meets its playbook twice; what stood in others' is unknown to it.
    moments = replace(toy, context=context, max_batches=2).run().moments

    def entries(update: int) -> dict[str, list[tuple[str, int, int, int]]]:
        return {
            key: [(entry.id, entry.helpful, entry.harmful, entry.last_step) for entry in playbook.entries]
            for key, playbook in moments[update].playbooks.items()
        }

    # a3's first lesson repeats a1's, but another playbook's.
    assert entries(0) == {
        "a1": [("e00001", 0, 0, 1), ("e00002", 0, 0, 1)],
        "a2": [],
        "a3": [("e00001", 0, 0, 1), ("e00002", 0, 0, 1)],
    }
    # a1's success tags its e1; e3 is unknown to it. a2's playbook is empty: both of its reflection's tags are unknown.
    # Step 2 is periodic for all three, but unused entries are one step old and stay.
    assert entries(1) == {
        "a1": [("e00001", 1, 0, 2), ("e00002", 0, 0, 1)],
        "a2": [],
        "a3": [("e00001", 0, 0, 1), ("e00002", 0, 0, 1)],
    }
    assert moments[1].problems()["reflect/problem/unknown_id"] == 2
    assert moments[1].sections == ["ps", "frt", ""]
    # a's playbooks stay as they were while b's are served.
    assert [playbook.step for playbook in moments[3].playbooks.values()] == [2, 2, 2, 2, 2, 2]
    # b1's three lessons are one too many for its budget of two: e1 stands first of equals.
    assert entries(3) == {
        **entries(1),
        "b1": [("e00002", 0, 0, 2), ("e00003", 0, 0, 2)],
        "b2": [],
        "b3": [("e00001", 0, 0, 1)],
    }
    # b1 and b2 have no entries, so their successes are not asked about; b3's reflection knows neither e3 nor e1.
    assert moments[2].problems() == {"reflect/problem/unknown_id": 2}
    pruned = [(op["playbook"], op["id"]) for op in moments[3].record.operations if op["type"] == "PRUNE"]
    assert pruned == [("b1", "e00001")]


# The sealed context


class TouchContextLate(AlgorithmCallback):
    """Changes the context between teacher prompts and loss, which no line of Algorithm 1 does."""

    line = 18

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        pl_module.context.put_solution("a1", "2")


def test_context_is_sealed_once_teacher_prompts_are_built(toy: Toy) -> None:
    with pytest.raises(RuntimeError, match="the context is sealed"):
        replace(toy, callbacks=(*ALGORITHM_1[:-1], TouchContextLate, SyncTeacher)).run()


# Several rollouts per prompt, and every operation of the curator

PAIRS = {
    ("rollout", 0, "a1"): ("1", "2"),  # the second succeeds: a peer for the first
    ("rollout", 0, "a2"): ("1", "1"),
    ("reflect", 0, "a1"): reflection("first of a1"),
    ("reflect", 0, "a2"): ("no idea", reflection("second of a2")),
    ("curate", 0, "a1"): adds(("strategies", "Old wording."), ("formulas", "Half a lesson.")),
    ("curate", 0, "a2"): adds(("formulas", "The other half."), ("others", "To be deleted.")),
    ("rollout", 1, "a1"): ("2", "<think>x</think>2"),
    ("rollout", 1, "a2"): ("1", "?"),
    ("tag", 1, "a1"): (tagged(e00001="helpful"), tagged(e00001="helpful", e00002="harmful")),
    ("reflect", 1, "a2"): (reflection("one", e00003="helpful"), reflection("two", e00003="helpful")),
    ("curate", 1, "a2"): """{"operations": [
        {"type": "UPDATE", "id": "e00001", "content": "New wording."},
        {"type": "MERGE", "ids": ["e00002", "e00003"], "section": "formulas", "content": "A whole lesson."},
        {"type": "DELETE", "id": "e00004"},
        {"type": "DELETE", "id": "e00002"},
        {"type": "UPDATE", "id": "e00042", "content": "Nobody's."}
    ]}""",
}


@pytest.fixture(scope="module")
def pairs(tiny_base: Path) -> Run:
    context = ContextConfig(max_entries=4, operations=("ADD", "UPDATE", "MERGE", "DELETE"))
    answers = {"a1": 2, "a2": 3}
    return Toy(tiny_base, answers, PAIRS, 2, rollouts_per_prompt=2, context=context).run()


def test_a_successful_peer_is_the_solution_of_a_failure(pairs: Run) -> None:
    first, second = pairs.moments
    assert first.sections == ["prst", "ps", "fpt", "fprt"]
    assert "response to this question:\n\n2\n" in first.record.teacher_prompts[0].messages[-1]["content"]
    assert second.sections == ["ps", "ps", "fprt", "prt"]
    assert second.solutions == {"a1": "<think>x</think>2"}  # the latest of the prompt


def test_one_curator_speaks_for_a_prompt(pairs: Run) -> None:
    assert pairs.asked_for("rollout", 0) == ["a1", "a1", "a2", "a2"]
    assert pairs.asked_for("reflect", 0) == ["a1", "a2", "a2"]
    assert pairs.asked_for("curate", 0) == ["a1", "a2"]
    assert pairs.asked_for("tag", 1) == ["a1", "a1"]
    # a2's first reflection can't be read, so its second speaks.
    curated = [answer for answer in pairs.moments[0].record.answers if answer.purpose == "curate"]
    assert [answer.rollout for answer in curated] == [0, 3]
    assert "Key insight: second of a2" in curated[1].messages[-1]["content"]
    # In update 1 both can be read, and the first speaks.
    (curated_later,) = [answer for answer in pairs.moments[1].record.answers if answer.purpose == "curate"]
    assert curated_later.rollout == 2
    assert "Key insight: one" in curated_later.messages[-1]["content"]


def test_every_operation_changes_the_playbook_as_it_says(pairs: Run) -> None:
    first, second = pairs.moments
    assert [(e.id, e.text) for e in first.playbook.entries] == [
        ("e00001", "Old wording."),
        ("e00002", "Half a lesson."),
        ("e00003", "The other half."),
        ("e00004", "To be deleted."),
    ]
    # Tags first: e1 twice helpful, e2 once harmful, e3 twice helpful. The update keeps e1's record, the merge adds up.
    assert second.entries == [("e00001", 2, 0, 2), ("e00005", 2, 1, 2)]
    updated, merged = second.playbook.entries
    assert (updated.text, updated.section, updated.sources) == ("New wording.", "strategies", ("a1", "a2"))
    assert (merged.text, merged.merged_from) == ("A whole lesson.", ("e00002", "e00003"))
    assert second.problems() == {"curate/problem/conflict": 1, "curate/problem/unknown_id": 1}
    metrics = second.record.metrics
    assert {name: metrics[f"playbook/applied_{name}"] for name in ("update", "merge", "delete")} == {
        "update": 1,
        "merge": 1,
        "delete": 1,
    }


def test_operations_that_are_not_enabled_are_dropped_and_counted(tiny_base: Path) -> None:
    run = Toy(tiny_base, {"a1": 2, "a2": 3}, PAIRS, 2, rollouts_per_prompt=2).run()
    assert run.moments[1].entries == [
        ("e00001", 2, 0, 2),
        ("e00002", 0, 1, 2),
        ("e00003", 2, 0, 2),
        ("e00004", 0, 0, 1),
    ]
    assert run.moments[1].problems() == {"curate/problem/operation_not_allowed": 5}


def test_peer_success_shows_another_and_never_itself(tiny_base: Path) -> None:
    peer = TeacherPromptConfig(self_success="peer")
    run = Toy(tiny_base, {"a1": 2, "a2": 3}, PAIRS, 2, rollouts_per_prompt=2, teacher_prompt=peer).run()
    # Update 0: a1's lone success has no peer, and the buffer holds only itself. Update 1: each has the other.
    assert [moment.sections for moment in run.moments] == [["prst", "", "fpt", "fprt"], ["ps", "ps", "fprt", "prt"]]


# Nothing to learn from


# With no response to validate, torchmetrics says so, and rightly.
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_an_update_whose_every_question_is_too_long_is_survived_and_counted(toy: Toy, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    observers = (RecordMetrics(folder), WriteTranscripts(folder))
    run = replace(toy, observers=observers, max_prompt_tokens=3, max_batches=1).run()
    assert run.asked == []
    for moment in run.moments:
        assert moment.record.metrics["rollout/skipped"] == 3
        assert moment.loss == 0.0
        assert moment.coefficients == []
        assert moment.playbook.step == moment.record.update + 1
    summary = json.loads(folder.summary.read_text())
    assert summary["metrics"]["val/skipped"]["last"] == 2
    assert summary["best_update"] is None
