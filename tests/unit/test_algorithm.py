from __future__ import annotations

from itertools import combinations

import pytest
from lightning.pytorch import Callback, Trainer

from resd_lightning.algorithm import AlgorithmCallback, Phase, algorithm_callbacks, check_algorithm
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


def test_a_subclass_stands_for_its_parent() -> None:
    class Reflect(ReflectOnFailures):
        pass

    class Sync(SyncTeacher):
        pass

    check_algorithm(made(Reflect, CuratePlaybook, Sync), "ema")


# Phases

DISTILLATION, GRPO = Phase("distillation", 1), Phase("grpo", 8)


@pytest.mark.parametrize(
    "phases", [[DISTILLATION], [DISTILLATION, GRPO], [GRPO, DISTILLATION], [Phase("mixture", 2)]], ids=str
)
def test_the_whole_algorithm_serves_every_run_with_a_teacher_in_it(phases: list[Phase]) -> None:
    check_algorithm(made(*ALGORITHM_1), "ema", phases)
    with pytest.raises(ConfigError, match=r"model\.teacher\.kind ema needs SyncTeacher"):
        check_algorithm(made(*ALGORITHM_1[:-1]), "ema", phases)


@pytest.mark.parametrize("teacher", ["ema", "live", "initial", "trust_region"])
def test_grpo_alone_stands_without_lines_whatever_the_teacher(teacher: str) -> None:
    check_algorithm([], teacher, [GRPO])


@pytest.mark.parametrize("line", ALGORITHM_1, ids=lambda line: line.__name__)
def test_lines_for_a_teacher_that_grpo_has_not_are_refused_by_name(line: type[AlgorithmCallback]) -> None:
    with pytest.raises(ConfigError, match=rf"model\.objective grpo has no teacher.*'{line.__name__}'"):
        check_algorithm(made(*(x for x in ALGORITHM_1 if x is line or line.needs == x.__name__)), "live", [GRPO])


@pytest.mark.parametrize("objective", ["grpo", "mixture"])
def test_groups_of_one_are_refused_by_the_key_that_makes_them(objective: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.rollouts_per_prompt must be at least 2 under .*{objective}.*got 1"):
        check_algorithm(made(SyncTeacher), "ema", [Phase(objective, 1)])
    with pytest.raises(ConfigError, match=r"SwitchObjective's rollouts_per_prompt must be at least 2 .* got 1"):
        check_algorithm(made(SyncTeacher), "ema", [DISTILLATION, Phase(objective, 1)])


def test_a_switch_to_what_the_run_minimises_already_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"SwitchObjective goes over to grpo, which is model\.objective already"):
        check_algorithm([], "live", [GRPO, GRPO])


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
