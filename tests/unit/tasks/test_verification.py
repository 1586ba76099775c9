"""Whatever a task's `verify` does, it costs one sample and never the run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import pytest

from resd_lightning.records import Example, Feedback, Split
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.verification import Verifier

MAIN_PROCESS = os.getpid()


class UnpicklableError(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("needs two arguments, has one")


def raise_(argument: str) -> Feedback:
    raise ValueError(f"no sense in {argument}")


def raise_unpicklable(argument: str) -> Feedback:
    raise UnpicklableError(1, 2)


def loop(argument: str) -> Feedback:
    while True:
        pass


def sleep(argument: str) -> Feedback:
    time.sleep(float(argument))
    return say(argument)


def swallow(argument: str) -> Feedback:
    with suppress(Exception):
        time.sleep(60)
    return say(argument)


def recurse(argument: str) -> Feedback:
    return recurse(argument)


def exit_(argument: str) -> Feedback:
    sys.exit(3)


def exit_at_once(argument: str) -> Feedback:
    os._exit(3)


def forget(argument: str) -> None:
    return None


def say(argument: str) -> Feedback:
    share = len(argument) / 10
    return Feedback(share, (share > 0.5, True), f"said {argument}")


COMMANDS = {
    "say": say,
    "raise": raise_,
    "raise-unpicklable": raise_unpicklable,
    "loop": loop,
    "sleep": sleep,
    "swallow": swallow,
    "recurse": recurse,
    "sys.exit": exit_,
    "os._exit": exit_at_once,
    "forget": forget,
}


class ObedientTask(Task):
    """Does what the response says: the worst a judge can do."""

    def examples(self, split: Split) -> Sequence[Example]:
        return []

    def verify(self, example: Example, response: str) -> Feedback:
        command, _, argument = response.partition(" ")
        return COMMANDS[command](argument)


class ProcessTask(ObedientTask):
    """Says in which kind of process it was asked."""

    def verify(self, example: Example, response: str) -> Feedback:
        return Feedback(1.0, (), str(os.getpid()))


def examples(number: int) -> list[Example]:
    return [Example(f"e{i}", (), None) for i in range(number)]


def judge(verifier: Verifier, *responses: str) -> list[Feedback]:
    return verifier.verify(examples(len(responses)), responses)


@pytest.fixture(scope="module", params=[0, 2], ids=["in-process", "workers"])
def verifier(request: pytest.FixtureRequest) -> Iterator[Verifier]:
    """A verifier with and without a worker; the limit leaves room for a worker's imports."""
    verifier = Verifier(ObedientTask(), workers=request.param, timeout_s=60.0)
    yield verifier
    verifier.close()


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("raise 5", "ValueError: no sense in 5"),
        ("recurse", "RecursionError"),
        ("sys.exit", "SystemExit: 3"),
        ("forget", "ObedientTask.verify must return Feedback, got NoneType"),
    ],
)
def test_a_raise_is_a_failed_sample_that_says_why(response: str, said: str, verifier: Verifier) -> None:
    before, failed, after = judge(verifier, "say 1", response, "say 1")
    assert (failed.reward, failed.tests_passed, failed.error) == (0.0, (), "raised")
    assert said in failed.text
    assert (before.error, after.error) == ("", "")


def test_a_raise_that_quotes_much_is_told_in_short(verifier: Verifier) -> None:
    (failed,) = judge(verifier, f"raise {'x' * 10_000}")
    assert failed.text.startswith("The check of this response failed: ValueError: no sense in x")
    assert len(failed.text) < 600


def test_an_exception_that_cannot_be_sent_between_processes_fails_its_sample_alone(verifier: Verifier) -> None:
    failed, after = judge(verifier, "raise-unpicklable", "say 123")
    assert failed.error == "raised"
    assert not failed.is_success
    assert after.reward == pytest.approx(0.3)


@pytest.mark.parametrize(("workers", "timeout_s"), [(0, 0.3), (2, 1.5)])  # a worker's limit has room for its start
def test_an_endless_check_is_stopped_at_its_limit(workers: int, timeout_s: float) -> None:
    verifier = Verifier(ObedientTask(), workers=workers, timeout_s=timeout_s)
    start = time.monotonic()
    *stopped, after = judge(verifier, "loop", "sleep 60", "swallow", "say 123")
    assert time.monotonic() - start < 30
    verifier.close()
    assert [(one.reward, one.error) for one in stopped] == [(0.0, "timeout")] * 3
    assert all(f"longer than {timeout_s} s" in one.text for one in stopped)
    assert after.reward == pytest.approx(0.3)


def test_a_check_that_ends_its_process_costs_one_sample_and_the_next_worker_goes_on() -> None:
    verifier = Verifier(ObedientTask(), workers=1, timeout_s=60.0)
    feedback = judge(verifier, "say 1", "os._exit", "say 12", "os._exit", "say 123")
    assert [one.error for one in feedback] == ["", "died", "", "died", ""]
    assert [one.reward for one in feedback] == pytest.approx([0.1, 0.0, 0.2, 0.0, 0.3])
    verifier.close()
    verifier.close()
    assert judge(verifier, "say 12")[0].reward == pytest.approx(0.2)  # it starts anew
    verifier.close()


def test_feedback_is_in_the_order_of_the_responses_whichever_is_ready_first(verifier: Verifier) -> None:
    feedback = judge(verifier, "sleep 0.4", "say 1", "sleep 0.2", "say 2")
    assert [one.text for one in feedback] == [
        "said 0.4",
        "said 1",
        "said 0.2",
        "said 2",
    ]


def test_workers_and_this_process_judge_alike(verifier: Verifier) -> None:
    responses = ["say 1234567890", "raise 1", "say 12", "recurse", "sys.exit", "forget", "say 1234567"]
    here = Verifier(ObedientTask(), workers=0, timeout_s=60.0)
    assert judge(verifier, *responses) == judge(here, *responses)


@pytest.mark.parametrize(("workers", "is_here"), [(0, True), (1, False)])
def test_workers_judge_outside_the_training_process(workers: int, is_here: bool) -> None:
    verifier = Verifier(ProcessTask(), workers=workers, timeout_s=60.0)
    (feedback,) = judge(verifier, "x")
    verifier.close()
    assert (int(feedback.text) == MAIN_PROCESS) == is_here


def test_the_alarm_is_off_and_its_handler_back_after_each_check() -> None:
    before = signal.getsignal(signal.SIGALRM)
    judge(Verifier(ObedientTask(), workers=0, timeout_s=60.0), "say 1", "raise 1")
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) == before


def test_examples_and_responses_that_do_not_pair_up_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Verifier(ObedientTask(), workers=0, timeout_s=1.0).verify(examples(2), ["say"])
