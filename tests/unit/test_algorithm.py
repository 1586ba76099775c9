from __future__ import annotations

from itertools import combinations

import pytest
from lightning.pytorch import Callback, Trainer

from resd_lightning.algorithm import AlgorithmCallback, algorithm_callbacks, check_algorithm
from resd_lightning.callbacks import (
    CacheSolutions,
    ConcisePlaybook,
    CuratePlaybook,
    ReflectOnFailures,
    SyncTeacher,
    TagSuccesses,
)
from resd_lightning.config import ConfigError

ALGORITHM_1 = (ConcisePlaybook, ReflectOnFailures, TagSuccesses, CuratePlaybook, CacheSolutions, SyncTeacher)


def made(*lines: type[AlgorithmCallback]) -> list[AlgorithmCallback]:
    return [line() for line in lines]


def test_the_whole_algorithm_and_every_sdpo_and_grpo_list_stand() -> None:
    check_algorithm(made(*ALGORITHM_1), "ema")
    check_algorithm(made(SyncTeacher), "ema")
    check_algorithm([], "live")


def test_lines_carry_the_papers_numbers() -> None:
    assert [line.line for line in ALGORITHM_1] == [6, 8, 8.5, 9, 11, 19]


@pytest.mark.parametrize(("first", "second"), list(combinations(ALGORITHM_1, 2)), ids=lambda line: line.__name__)
def test_any_two_lines_in_the_wrong_order_are_refused_by_name(
    first: type[AlgorithmCallback], second: type[AlgorithmCallback]
) -> None:
    swapped = list(ALGORITHM_1)
    i, j = swapped.index(first), swapped.index(second)
    swapped[i], swapped[j] = swapped[j], swapped[i]
    with pytest.raises(ConfigError, match=r"trainer\.callbacks: \w+ \(Algorithm 1 line .*must come before \w+ \(line"):
        check_algorithm(made(*swapped), "ema")


def test_the_text_names_both_lines() -> None:
    with pytest.raises(ConfigError, match=r"ConcisePlaybook \(Algorithm 1 line 6\) must come before CacheSolutions \("):
        check_algorithm(made(CacheSolutions, ConcisePlaybook), "initial")


def test_a_line_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"each line once; got .*'TagSuccesses', 'TagSuccesses'"):
        check_algorithm(made(ReflectOnFailures, TagSuccesses, TagSuccesses), "initial")


@pytest.mark.parametrize("dropped", ALGORITHM_1, ids=lambda line: line.__name__)
def test_only_a_curator_without_reflector_and_an_ema_without_sync_are_refused(dropped: type[AlgorithmCallback]) -> None:
    kept = made(*(line for line in ALGORITHM_1 if line is not dropped))
    complaint = {
        ReflectOnFailures: "CuratePlaybook needs ReflectOnFailures",
        SyncTeacher: r"model\.teacher\.kind ema needs SyncTeacher",
    }.get(dropped)
    if complaint is None:
        check_algorithm(kept, "ema")
    else:
        with pytest.raises(ConfigError, match=complaint):
            check_algorithm(kept, "ema")


@pytest.mark.parametrize("kind", ["live", "initial", "trust_region"])
def test_other_teachers_need_no_sync(kind: str) -> None:
    check_algorithm(made(*ALGORITHM_1[:-1]), kind)
    check_algorithm(made(*ALGORITHM_1), kind)


def test_observers_are_no_lines_of_the_algorithm() -> None:
    lines = made(*ALGORITHM_1)
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[Callback(), *lines, Callback()],
    )
    assert algorithm_callbacks(trainer) == lines
