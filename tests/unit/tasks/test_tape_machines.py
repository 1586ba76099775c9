from __future__ import annotations

import random

import pytest

from resd_lightning.config import ConfigError
from resd_lightning.micro.world import RULES, response
from resd_lightning.records import Split
from resd_lightning.tasks.tape_machines import TapeMachinesTask


def test_only_the_machines_own_rule_succeeds() -> None:
    task = TapeMachinesTask(mapping_seed=3, train_size=64)
    for example in task.examples("train"):
        words = example.question.split()
        machine, tape = words[1], words[3:]
        passed = [rule for rule in RULES if task.verify(example, response(machine, rule, tape)).is_success]
        assert passed == [task.rules[machine]]


def test_feedback_is_evidence_for_the_informative_share_and_never_the_answer() -> None:
    task = TapeMachinesTask(informative_share=0.5, train_size=400)
    texts = [task.verify(example, "rule m0 copy keep ; answer R").text for example in task.examples("train")]
    informative = [text for text in texts if " turns R B Y G into " in text]
    assert set(texts) - set(informative) == {"wrong"}
    assert 0.4 < len(informative) / len(texts) < 0.6
    for example, text in zip(task.examples("train"), texts, strict=True):
        assert " ".join(example.answer[1]) not in text.rpartition("into")[2] or text == "wrong"


@pytest.mark.parametrize(("share", "texts"), [(0.0, {"wrong"}), (1.0, set())])
def test_informative_share_reaches_its_ends(share: float, texts: set[str]) -> None:
    task = TapeMachinesTask(informative_share=share, train_size=50)
    said = {task.verify(example, "answer R").text for example in task.examples("train")}
    assert said & {"wrong"} == texts


def test_splits_ask_about_the_same_machines_on_their_own_tapes_and_stay_the_same() -> None:
    task = TapeMachinesTask(train_size=64, eval_size=32)
    assert [e.id for e in task.examples("train")] == [e.id for e in task.examples("train")]
    assert {e.family for e in task.examples("val")} == {e.family for e in task.examples("train")} == set(task.rules)
    assert task.examples("val")[0].messages != task.examples("test")[0].messages


@pytest.mark.parametrize("split", ["val", "test"])
def test_no_training_prompt_is_asked_in_evaluation(split: Split) -> None:
    task = TapeMachinesTask(mapping_seed=2)
    trained = {example.question for example in task.examples("train")}
    asked = [example.question for example in task.examples(split)]
    assert len(asked) == 256
    assert not trained & set(asked)


def test_a_training_split_that_leaves_no_tape_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    task = TapeMachinesTask(train_size=64)
    monkeypatch.setattr("resd_lightning.tasks.tape_machines.MAX_DRAWS", 0)
    with pytest.raises(ConfigError, match="train_size 64"):
        task.examples("val")


def test_hostile_responses_are_wrong_or_malformed() -> None:
    task = TapeMachinesTask()
    example = task.examples("train")[0]
    rng = random.Random(1)
    for text in ["", "answer", "R B Y G", "<think>answer R", "answer " * 1000, "\x00", "answer {{ x }}"]:
        feedback = task.verify(example, text)
        assert feedback.reward == 0.0
        assert len(feedback.text) < 100
    noise = "".join(chr(rng.randint(1, 0x2FFF)) for _ in range(500))
    assert task.verify(example, noise).reward == 0.0


def test_a_lesson_is_true_when_it_says_the_machines_rule() -> None:
    task = TapeMachinesTask(mapping_seed=1)
    assert task.is_true(f"m5 {task.rules['m5']}")
    assert not task.is_true(f"m5 {next(rule for rule in RULES if rule != task.rules['m5'])}")
    assert not task.is_true("")
    assert not task.is_true("m99 copy keep")


@pytest.mark.parametrize("arguments", [{"informative_share": 1.5}, {"tape_lengths": ()}, {"train_size": 0}])
def test_arguments_out_of_range_are_refused_by_name(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        TapeMachinesTask(**arguments)
