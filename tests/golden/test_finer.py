from __future__ import annotations

import json
from pathlib import Path

import pytest

from resd_lightning.records import Example
from resd_lightning.tasks.finer import FinerTask, extract_tags

SHARED = Path(__file__).resolve().parents[2] / ".." / "shared"
GOLDEN = SHARED / "golden" / "finer_open.json"
ROWS = SHARED / "data" / "finer_val.jsonl"

Case = dict[str, object]


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN} is absent")
    loaded: list[Case] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return loaded


def test_every_golden_response_is_judged_alike(cases):
    assert len(cases) >= 40
    task, sharing = FinerTask(), FinerTask(reward="share")
    for number, case in enumerate(cases):
        example = Example(str(number), (), case["target"])
        feedback = task.verify(example, case["response"])
        assert feedback.reward == case["per_task"], f"case {number}"
        assert feedback.share_passed == case["per_test_case"], f"case {number}"
        assert sharing.verify(example, case["response"]).reward == case["per_test_case"], f"case {number}"
        assert (extract_tags(case["response"]) is not None) == case["format_ok"], f"case {number}"


def test_every_public_row_is_read_and_its_own_answer_is_right():
    if not ROWS.is_file():
        pytest.skip(f"{ROWS} is absent")
    task = FinerTask(test_path=str(ROWS))
    examples = task.examples("test")
    assert len(examples) == len({example.id for example in examples}) == 500
    instructions = {example.messages[0]["content"] for example in examples}
    assert len(instructions) == 1  # what all rows share stands first, in the system's message
    for example in examples:
        assert example.question.startswith("1. What is best tag for entity")
        assert example.question.endswith("<answer>A,B,C,D</answer>")
        assert task.verify(example, f"<answer>{example.answer}</answer>").reward == 1.0
