from __future__ import annotations

import inspect
import pickle
import random
import re
import sys
from collections import Counter

import numpy as np
import pytest

from resd_lightning.config import ConfigError
from resd_lightning.records import Example, Feedback
from resd_lightning.tasks import reasoning_gym as task_module
from resd_lightning.tasks.marked_answer import find_answer
from resd_lightning.tasks.reasoning_gym import EVALUATING, GymDataset, GymEntry, ReasoningGymTask
from resd_lightning.tasks.verification import Verifier

LEGS = GymDataset("leg_counting", config={"max_animals": 4})


class Scorer:
    """A dataset whose score is the number that the answer is."""

    def __getitem__(self, at: int) -> dict[str, object]:
        return {"question": f"Number {at}?\n", "answer": "1", "metadata": {}}

    def score_answer(self, answer: str | None, entry: dict[str, object]) -> float:
        return float(answer or "0")


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> ReasoningGymTask:
    monkeypatch.setattr(task_module, "_make", lambda name, config, seed=0: Scorer())
    return ReasoningGymTask((GymDataset("numbers"),), train_size=3, test_size=2)


def example(answer: object = None) -> Example:
    entry = GymEntry("numbers", {"question": "?", "answer": answer, "metadata": {}})
    return Example("e", ({"role": "user", "content": "?"},), entry)


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("<think><answer>1</answer></think>So: <answer> 2 </answer>", "2"),
        ("<answer>1</answer> no, <answer>2</answer>", "2"),
        ("<answer>1</answer> no, <answer>2", "1"),
        ("<answer>1 <answer>2</answer>", "2"),
        ("<answer></answer>", ""),
        ("2", None),
        ("<think><answer>2</answer>", None),
    ],
)
def test_the_last_complete_answer_after_the_thinking_counts(response: str, found: str | None) -> None:
    assert find_answer(response) == found


def test_the_reward_is_the_score_clipped_and_the_text_is_about_this_response(scored: ReasoningGymTask) -> None:
    assert scored.verify(example(), "<answer>1</answer>") == Feedback(
        1.0, (True,), "The answer found is: 1\nIt is right: the scorer of numbers gives it 1 of 1."
    )
    assert scored.verify(example(), "<answer>0.01</answer>") == Feedback(
        0.01, (False,), "The answer found is: 0.01\nIt is not right: the scorer of numbers gives it 0.01 of 1."
    )
    rewards = [scored.verify(example(), f"<answer>{said}</answer>").reward for said in ("7", "-7", "nan", "0.9999")]
    assert rewards == [1.0, 0.0, 0.0, 0.9999]
    assert not scored.verify(example(), "<answer>0.9999</answer>").is_success


def test_errors_of_form_are_told(scored: ReasoningGymTask) -> None:
    whole = scored.verify(example(), "<think>hm</think> 1 ")
    assert whole.is_success
    assert whole.text.startswith(
        "No complete <answer>...</answer>: the whole response was taken. Give the final answer"
    )
    assert "the scorer of numbers gives it 0 of 1" in scored.verify(example(), "<answer> </answer>").text
    for empty in ("", "<think>1"):
        assert scored.verify(example(), empty).text.startswith("The response holds no answer. Give the final")
    broken = scored.verify(example(), "<answer>one</answer>")
    assert (broken.reward, broken.tests_passed, broken.error) == (0.0, (False,), "")
    assert "The scorer of numbers could not read it: ValueError" in broken.text
    assert len(scored.verify(example("z" * 9999), "y" * 9999).text) < 1500
    with pytest.raises(ValueError, match="example e: answer must be an entry of this task"):
        scored.verify(Example("e", (), "1"), "1")


def test_answers_leak_only_if_allowed_and_only_to_wrong_answers(scored: ReasoningGymTask) -> None:
    assert "secret" not in scored.verify(example("secret"), "<answer>0</answer>").text
    leaking = ReasoningGymTask((GymDataset("numbers"),), leak_answers=True)
    assert leaking.verify(example("secret"), "<answer>0</answer>").text.endswith("\nA right answer is: secret")
    assert "secret" not in leaking.verify(example("secret"), "<answer>1</answer>").text
    assert "A right answer" not in leaking.verify(example(None), "<answer>0</answer>").text


def test_examples_say_how_to_answer_and_fewer_are_the_first_of_more(scored: ReasoningGymTask) -> None:
    train = scored.examples("train")
    assert train[0].question == "Number 0?\n\nGive the final answer between <answer> and </answer>."
    assert [(e.id, e.family) for e in train] == [(f"train-0000{at}", "numbers") for at in range(3)]
    assert scored.examples("val") is scored.examples("test")
    mixed = (GymDataset("numbers"), GymDataset("others", weight=3.0))
    few, many = (ReasoningGymTask(mixed, train_size=size).examples("train") for size in (40, 400))
    assert few == many[:40]
    assert 250 < Counter(e.family for e in many)["others"] < 350


@pytest.mark.parametrize("seed", range(5))
def test_the_splits_seeds_never_meet(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    starts: list[int] = []
    monkeypatch.setattr(task_module, "_make", lambda name, config, seed=0: starts.append(seed) or Scorer())
    task = ReasoningGymTask((GymDataset("numbers"),), seed=seed, train_size=1, test_size=1, val_size=1)
    for split in ("train", "test", "val"):
        task.examples(split)
    size = 2**29  # the largest allowed
    assert starts[0] + size <= 2 * size <= starts[1]
    assert starts[1] + size <= 4 * size <= starts[2] < starts[2] + size < 2**32


def test_the_global_streams_are_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    class Drawing(Scorer):
        def __getitem__(self, at: int) -> dict[str, object]:
            return super().__getitem__(at) | {"metadata": (random.random(), np.random.rand())}

    monkeypatch.setattr(task_module, "_make", lambda name, config, seed=0: Drawing())
    random.seed(1), np.random.seed(1)
    expected = random.random(), np.random.rand()
    random.seed(1), np.random.seed(1)
    one = ReasoningGymTask((GymDataset("numbers"),)).examples("train")
    assert (random.random(), np.random.rand()) == expected
    assert one == ReasoningGymTask((GymDataset("numbers"),)).examples("train")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"datasets": ()}, r"datasets must be different datasets"),
        ({"datasets": (LEGS, LEGS)}, r"datasets must be different datasets"),
        ({"datasets": (GymDataset("x", weight=0.0),)}, r"\(x\): weight must be a number above 0"),
        ({"datasets": (GymDataset("x", config={"seed": 1}),)}, r"\(x\): config must be without seed and size"),
        ({"datasets": (GymDataset("composite"),)}, "name the datasets here"),
        ({"datasets": (GymDataset("countdown"),)}, r"\(countdown\): its scorer evaluates .*allow_eval"),
        ({"train_size": 0}, r"train_size must be in \[1"),
        ({"val_size": 0}, r"val_size must be in \[1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.task\.init_args\..*{words}"):
        ReasoningGymTask(**({"datasets": (LEGS,)} | settings))  # type: ignore[arg-type]
    assert ReasoningGymTask((GymDataset("countdown"),), allow_eval=True)


def test_a_missing_package_is_refused_when_examples_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    task = ReasoningGymTask((LEGS,), seed=987)
    with pytest.raises(ConfigError, match=r"needs the extra `reasoning-gym`: pip install"):
        task.examples("train")


# With the package


def test_real_problems_are_judged_by_their_own_scorers() -> None:
    pytest.importorskip("reasoning_gym")
    datasets = (LEGS, GymDataset("knights_knaves", weight=2.0), GymDataset("list_functions"), GymDataset("pool_matrix"))
    task = ReasoningGymTask(datasets, train_size=40, test_size=40)
    train, test = task.examples("train"), task.examples("test")
    assert {e.family for e in train} == {dataset.name for dataset in datasets}
    assert not {e.question for e in train} & {e.question for e in test}
    assert train == ReasoningGymTask(datasets, train_size=40).examples("train")
    assert train != ReasoningGymTask(datasets, train_size=40, seed=1).examples("train")
    for each in train:
        assert isinstance(each.answer, GymEntry)
        assert task.verify(each, f"<think>?</think><answer>{each.answer.entry['answer']}</answer>").is_success
        assert not task.verify(each, "<answer>I don't know</answer>").is_success
    legs = next(e for e in train if e.family == "leg_counting")
    assert isinstance(legs.answer, GymEntry)
    assert len(legs.answer.entry["metadata"]["animals"]) <= 4  # type: ignore[index]


def test_a_scorer_that_raises_is_a_wrong_answer() -> None:
    pytest.importorskip("reasoning_gym")
    task = ReasoningGymTask((GymDataset("prime_factorization"),), train_size=1)
    feedback = task.verify(task.examples("train")[0], "<answer>nonsense</answer>")
    assert (feedback.reward, feedback.error) == (0.0, "")
    assert "could not read it: ValueError" in feedback.text


def test_the_task_and_its_examples_travel_to_workers() -> None:
    pytest.importorskip("reasoning_gym")
    task = ReasoningGymTask((LEGS,), train_size=2)
    each = task.examples("train")[0]
    assert len(pickle.dumps(task)) < 2000
    verifier = Verifier(task, workers=1, timeout_s=60.0)
    try:
        answer = each.answer
        assert isinstance(answer, GymEntry)
        assert [f.is_success for f in verifier.verify([each] * 2, [str(answer.entry["answer"]), "no"])] == [True, False]
    finally:
        verifier.close()


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (GymDataset("leg_countin"), "has no dataset leg_countin; near it: leg_counting"),
        (GymDataset("leg_counting", config={"min_animals": 0}), "leg_counting refuses its config .* must be positive"),
        (GymDataset("leg_counting", config={"animals": 1}), "leg_counting refuses its config .*'animals'"),
    ],
)
def test_what_the_package_refuses_is_refused_by_key(dataset: GymDataset, words: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=rf"data\.task\.init_args\.datasets: .*{words}"):
        ReasoningGymTask((dataset,)).examples("train")


def test_every_scorer_that_evaluates_answers_is_known() -> None:
    pytest.importorskip("reasoning_gym")
    from reasoning_gym.factory import DATASETS

    found = set()
    for name, (dataset, _) in DATASETS.items():
        source = inspect.getsource(sys.modules[dataset.__module__])
        if re.search(r"\b(eval|exec|parse_expr|sympify)\(answer", source):
            found.add(name)
    assert found == EVALUATING
