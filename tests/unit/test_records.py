from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest

from resd_lightning.records import (
    Completion,
    Example,
    Feedback,
    Message,
    Purpose,
    Rollout,
    TeacherPrompt,
    UpdateRecord,
)


def rollout(id_: str, sample: int = 0) -> Rollout:
    example = Example(id_, (Message(role="system", content="s"), Message(role="user", content="q")), None)
    return Rollout(example, sample, Completion("x", (1,), (2,)), Feedback(0.0, (), ""))


@pytest.mark.parametrize(("reward", "is_success"), [(0.0, False), (0.999, False), (1.0, True)])
def test_success_is_full_reward_and_nothing_less(reward: float, is_success: bool) -> None:
    feedback = Feedback(reward, (True, True), "")
    assert feedback.is_success == is_success  # passing all tests isn't asked
    assert Rollout(rollout("a").example, 0, rollout("a").completion, feedback).is_success == is_success


@pytest.mark.parametrize("reward", [-0.1, 1.1, float("nan")])
def test_a_reward_outside_zero_to_one_is_refused(reward: float) -> None:
    with pytest.raises(ValueError, match=r"reward must be in \[0, 1\]"):
        Feedback(reward, (), "")


def test_share_passed_is_of_test_cases_or_the_reward_where_there_are_none() -> None:
    assert Feedback(0.0, (True, False, False, True), "").share_passed == 0.5
    assert Feedback(0.25, (), "").share_passed == 0.25


def test_log_probs_that_are_not_one_per_token_are_refused() -> None:
    assert Completion("x", (1,), (2, 3), log_probs=(-0.5, -1.0)) == Completion("x", (1,), (2, 3))
    with pytest.raises(ValueError, match=r"log_probs must be 2 numbers, got 1"):
        Completion("x", (1,), (2, 3), log_probs=(-0.5,))


def test_question_is_the_last_message() -> None:
    assert rollout("a").example.question == "q"


def test_a_prompt_is_enriched_iff_it_holds_a_section() -> None:
    assert TeacherPrompt((), (), frozenset({"feedback"})).is_enriched
    assert not TeacherPrompt((), (), frozenset()).is_enriched


def test_records_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        rollout("a").sample = 1


def test_update_record_counts_from_zero_and_keeps_zero_counts() -> None:
    record = UpdateRecord(0, [], {})
    record.count("seen")
    record.count("seen", 2)
    record.count("none", 0)
    assert record.metrics == {"seen": 3, "none": 0}


def test_playbook_keys_are_each_once_in_prompt_order() -> None:
    record = UpdateRecord(0, [rollout("b"), rollout("b", 1), rollout("a"), rollout("c")], {})
    assert record.playbook_keys(lambda id_: id_) == ["b", "a", "c"]
    assert record.playbook_keys(lambda id_: "") == [""]
    assert [r.sample for r in record.with_example("b")] == [0, 1]


def test_purposes_are_the_words_that_scripts_and_metrics_use() -> None:
    assert [str(p) for p in Purpose] == [
        "rollout",
        "reflect",
        "tag",
        "curate",
        "validate",
        "predict",
        "rescore",
        "diagnose",
    ]
