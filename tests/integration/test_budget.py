"""A run ends with the update that reaches its budget, in whichever currency; resumed, it stays ended."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import Toy
from trace_script import ANSWERS, LINES

from resd_lightning.callbacks import RecordMetrics, StopAtBudget
from resd_lightning.config import BudgetConfig, ConfigError
from resd_lightning.run_folder import RunFolder, read_lines


def tokens_by_update() -> list[int]:
    """Tokens of the script's answers, update by update: one per byte and an end; rollouts are cut after 40."""
    tokens: dict[int, int] = defaultdict(int)
    for (purpose, update, _), text in LINES.items():
        assert isinstance(text, str)
        tokens[update] += min(len(text.encode()) + 1, 40 if purpose == "rollout" else 1024)
    return [tokens[update] for update in range(8)]


TOKENS = tokens_by_update()
IN_4, IN_5 = sum(TOKENS[:4]), sum(TOKENS[:5])


def run(base: Path, folder: Path, **limits: int) -> RunFolder:
    """Run eight updates, four batches of three prompts with two updates each, within a budget."""
    folder.mkdir()
    observers = [RecordMetrics(RunFolder(folder)), StopAtBudget(RunFolder(folder), BudgetConfig(**limits))]
    Toy(base, ANSWERS, LINES, 3, observers=observers).run()
    return RunFolder(folder)


def updates(folder: RunFolder, phase: str) -> list[object]:
    return [line["updates_done"] for line in read_lines(folder.metrics) if line["phase"] == phase]


@pytest.mark.parametrize(
    ("limits", "last", "validated"),
    [
        ({"rollouts": 9}, 3, [2, 3]),  # exactly three updates of three
        ({"rollouts": 10}, 4, [2, 3, 4]),  # a fourth would pass it: validated before and after
        ({"rollouts": 12}, 4, [2, 4]),
        ({"prompts": 3}, 2, [2]),  # both updates on the first batch
        ({"prompts": 4}, 4, [2, 4]),
        ({"generated_tokens": IN_4}, 4, [2, 3, 4]),  # after three, one like the first would pass it
        ({"generated_tokens": IN_4 + 1}, 5, [2, 3, 4, 5]),
        ({"generated_tokens": IN_5}, 5, [2, 4, 5]),
        ({"rollouts": 1000, "generated_tokens": IN_5}, 5, [2, 4, 5]),  # whichever comes first
        ({"rollouts": 1000}, 8, [2, 4, 6, 8]),
    ],
)
def test_a_run_ends_with_the_update_that_reaches_its_budget(
    tiny_base: Path, tmp_path: Path, limits: dict[str, int], last: int, validated: list[int]
) -> None:
    folder = run(tiny_base, tmp_path / "run", **limits)
    assert updates(folder, "train") == list(range(1, last + 1))
    assert updates(folder, "val") == validated
    assert json.loads(folder.summary.read_text())["is_finished"]


def test_reflection_and_curation_count_and_validation_does_not(tiny_base: Path, tmp_path: Path) -> None:
    folder = run(tiny_base, tmp_path / "run")
    spent = json.loads(folder.summary.read_text())["spent"]
    counted = sum(spent[f"tokens/{purpose}_generated"] for purpose in ("rollout", "reflect", "tag", "curate"))
    assert counted == sum(TOKENS)
    assert spent["tokens/validate_generated"] > 0
    assert spent["prompts/drawn"] == 12


def test_validating_near_the_budget_changes_no_number_of_the_run(tiny_base: Path, tmp_path: Path) -> None:
    plain = Toy(tiny_base, ANSWERS, LINES, 3).run().moments
    (tmp_path / "run").mkdir()
    folder = RunFolder(tmp_path / "run")
    toy = Toy(tiny_base, ANSWERS, LINES, 3)
    limited = replace(toy, observers=[RecordMetrics(folder), StopAtBudget(folder, BudgetConfig(rollouts=16))]).run()
    assert len(limited.moments) == 6
    assert updates(folder, "val") == [2, 4, 5, 6]
    for one, other in zip(plain, limited.moments, strict=False):
        assert one.loss == other.loss
        for name, weight in one.student_after.items():
            assert torch.equal(weight, other.student_after[name])


@pytest.mark.parametrize("currency", ["prompts", "rollouts", "generated_tokens"])
def test_a_budget_of_nothing_is_refused_by_name(currency: str) -> None:
    with pytest.raises(ConfigError, match=rf"budget\.{currency} must be at least 1, got 0"):
        BudgetConfig(**{currency: 0})
