from __future__ import annotations

import math
from pathlib import Path

import pytest
from handmade import curve, four_updates, numbers, update, validation

from resd_lightning.compare.curve import NoNumbersError
from resd_lightning.config import BudgetConfig

LINES = four_updates(0.0, 0.3, 0.6, 0.9)


def test_spending_adds_up_to_each_validation_and_leaves_validations_out(tmp_path: Path) -> None:
    whole = curve(tmp_path, LINES)
    assert [point.updates for point in whole.points] == [0, 2, 3, 4]
    assert [point.spent for point in whole.points] == [
        {"prompts": 0, "rollouts": 0, "generated_tokens": 0, "seconds": 0},
        {"prompts": 8, "rollouts": 8, "generated_tokens": 60, "seconds": 4},
        {"prompts": 16, "rollouts": 12, "generated_tokens": 90, "seconds": 6},
        {"prompts": 16, "rollouts": 16, "generated_tokens": 120, "seconds": 8},
    ]
    assert (whole.updates, whole.total["generated_tokens"]) == (4, 120)


def test_end_is_the_last_validation_within_the_budget(tmp_path: Path) -> None:
    run = numbers(tmp_path, LINES)  # 100 tokens lie between the third update's 90 and the fourth's 120
    assert (run.end.updates, run.end.scores["per_task/mean"]) == (3, 0.6)
    assert run.total["generated_tokens"] == 120


@pytest.mark.parametrize(
    ("budget", "updates"),
    [
        (BudgetConfig(generated_tokens=120), 4),
        (BudgetConfig(generated_tokens=119), 3),
        (BudgetConfig(generated_tokens=89), 2),
        (BudgetConfig(rollouts=12), 3),
        (BudgetConfig(rollouts=11), 2),
        (BudgetConfig(prompts=8), 2),
        (BudgetConfig(prompts=16), 4),
    ],
)
def test_a_validation_exactly_at_the_budget_is_within_it(tmp_path: Path, budget: BudgetConfig, updates: int) -> None:
    assert numbers(tmp_path, LINES, budget=budget).end.updates == updates


def test_the_curve_ends_at_the_budget_between_two_validations(tmp_path: Path) -> None:
    last = numbers(tmp_path, LINES).curve[-1]
    # A third of the way from update 3 to update 4
    assert last.updates == pytest.approx(3 + 1 / 3)
    assert last.spent == pytest.approx(
        {"prompts": 16, "rollouts": 12 + 4 / 3, "generated_tokens": 100, "seconds": 6 + 2 / 3}
    )
    assert last.scores["per_task/mean"] == pytest.approx(0.7)


def test_area_is_the_mean_height_over_the_budget(tmp_path: Path) -> None:
    # 60 tokens at 0.15 on average, 30 at 0.45 and 10 at 0.65, over 100
    assert numbers(tmp_path, LINES).area["per_task/mean"] == pytest.approx(0.29)


def test_a_run_that_ends_before_its_budget_keeps_its_last_height(tmp_path: Path) -> None:
    run = numbers(tmp_path, LINES, budget=BudgetConfig(generated_tokens=200))
    # 9 + 13.5 to the third update, 30 at 0.75, then 80 at 0.9
    assert run.area["per_task/mean"] == pytest.approx((9 + 13.5 + 22.5 + 72) / 200)
    assert run.end.updates == 4
    assert run.curve[-1].spent["generated_tokens"] == 120


def test_a_level_is_reached_where_the_line_between_validations_first_crosses_it(tmp_path: Path) -> None:
    run = numbers(tmp_path, LINES, levels=[0.3, 0.45, 0.65, 0.7, 0.8])
    assert run.reached[0.3] == pytest.approx({"prompts": 8, "rollouts": 8, "generated_tokens": 60, "seconds": 4})
    assert run.reached[0.45] == pytest.approx({"prompts": 12, "rollouts": 10, "generated_tokens": 75, "seconds": 5})
    assert run.reached[0.65]["generated_tokens"] == pytest.approx(95)  # type: ignore[index]
    assert run.reached[0.8] is None  # only beyond the budget


def test_a_level_counts_when_first_reached_whatever_comes_after(tmp_path: Path) -> None:
    run = numbers(tmp_path, four_updates(0.0, 0.6, 0.1, 0.9), levels=[0.3])
    assert run.reached[0.3]["generated_tokens"] == 30  # type: ignore[index]


def test_a_level_that_the_untrained_student_has_costs_nothing(tmp_path: Path) -> None:
    run = numbers(tmp_path, four_updates(0.4, 0.1, 0.6, 0.9), levels=[0.4])
    assert set(run.reached[0.4].values()) == {0.0}  # type: ignore[union-attr]


def test_levels_are_levels_of_the_studys_metric(tmp_path: Path) -> None:
    lines = [validation(0, 0.0, 0.1, 0.2, 0.3), update(1, tokens=50, prompts=8), validation(1, 0.0, 0.1, 0.7, 0.3)]
    assert numbers(tmp_path, lines, levels=[0.45]).reached[0.45] is None
    run = numbers(tmp_path / "other", lines, levels=[0.45], metric="per_test/mean")
    assert run.reached[0.45]["generated_tokens"] == pytest.approx(25)  # type: ignore[index]


def test_ranked_is_the_best_sum_of_ranks_within_the_budget(tmp_path: Path) -> None:
    lines = [
        validation(0, 0.1, 0.1, 0.1, 0.9),  # ranks 3, 3, 3, 1
        update(1, tokens=40, prompts=8),
        validation(1, 0.3, 0.2, 0.3, 0.2),  # ranks 1, 2, 1, 3: 7, and the earlier of equal ones
        update(2, tokens=40),
        validation(2, 0.2, 0.3, 0.2, 0.5),  # ranks 2, 1, 2, 2
        update(3, tokens=40),
        validation(3, 1.0, 1.0, 1.0, 1.0),  # beyond the budget
    ]
    run = numbers(tmp_path, lines)
    assert (run.ranked.updates, run.end.updates) == (1, 2)
    assert run.ranked.scores["per_test/best"] == 0.2


def test_a_validation_without_numbers_is_left_out(tmp_path: Path) -> None:
    nothing = {"updates_done": 2, "phase": "val", "val/skipped": 8.0}
    lines = [*LINES[:2], nothing, LINES[3], validation(2, math.nan), *LINES[4:]]
    assert [point.updates for point in curve(tmp_path, lines).points] == [0, 3, 4]


@pytest.mark.parametrize("lines", [[], LINES[1:], [update(1, tokens=30)], [validation(0, 0.5, k=2)]])
def test_a_run_without_a_start_has_no_curve(tmp_path: Path, lines: list[dict[str, object]]) -> None:
    with pytest.raises(NoNumbersError, match=r"metrics\.jsonl has no numbers of a validation before the first update"):
        curve(tmp_path, lines)
