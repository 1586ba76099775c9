"""Past prompts asked again: numbers computed by hand, and a training that doesn't notice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_kill_and_resume import arguments, assert_same_state, jsonl, run
from toy import Lines, Toy
from trace_script import ANSWERS, LINES

from conftest import make_tiny_base
from resd_lightning.callbacks import MeasureForgetting, RecordMetrics
from resd_lightning.run_folder import RunFolder

# Three batches of three prompts, five of which are asked again: a1, a2, b1, b3 and c2. Who answers rightly, by the
# updates done.
ASKED = {2: ("a1", "a2"), 4: ("a1", "a2", "b1", "b3"), 6: ("a1", "a2", "b1", "b3", "c2")}
RIGHT = {2: ("a1",), 4: ("a2", "b1"), 6: ("a1", "b1")}
RESCORED: Lines = {
    ("rescore", updates, id_): str(ANSWERS[id_]) if id_ in RIGHT[updates] else "?"
    for updates, ids in ASKED.items()
    for id_ in ids
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that isn't told another root writes where it stands."""
    monkeypatch.chdir(tmp_path)


def test_what_is_kept_learned_and_forgotten_is_as_computed_by_hand(tiny_base: Path, tmp_path: Path) -> None:
    toy = Toy(tiny_base, ANSWERS, LINES | RESCORED, 3, max_batches=3)
    observers = (MeasureForgetting(max_examples=5), RecordMetrics(RunFolder(tmp_path)))
    watched, plain = replace(toy, observers=observers).run(), toy.run()
    assert jsonl(tmp_path / "forgetting.jsonl") == [
        {
            "updates_done": 2,
            "scored": 2,
            "solved_share": 1 / 2,
            "kept_share": None,
            "solved_share_by_batch": [1 / 2],
            "forgotten": {},
            "learned": ["a1"],
        },
        {
            "updates_done": 4,
            "scored": 4,
            "solved_share": 1 / 2,
            "kept_share": 0.0,
            "solved_share_by_batch": [1 / 2, 1 / 2],
            "forgotten": {"a1": 2},
            "learned": ["a2", "b1"],
        },
        {
            "updates_done": 6,
            "scored": 5,
            "solved_share": 2 / 5,
            "kept_share": pytest.approx(2 / 3),  # a1, solved after two updates, counts again
            "solved_share_by_batch": [1 / 2, 1 / 2, 0.0],
            "forgotten": {"a2": 4},
            "learned": [],
        },
    ]
    updates = [line for line in jsonl(tmp_path / "metrics.jsonl") if line["phase"] == "train"]
    assert [line.get("forgetting/forgotten") for line in updates] == [None, 0.0, None, 1.0, None, 1.0]
    assert [line.get("requests/rescore") for line in updates] == [None, 2.0, None, 4.0, None, 5.0]
    assert all("time/verify_s" in line for line in updates)
    assert json.loads((tmp_path / "summary.json").read_text())["metrics"]["forgetting/forgotten"]["best"] == 0.0
    # The run itself is the same, but for what was asked again.
    assert [request for request in watched.asked if request[0] != "rescore"] == plain.asked
    for one, other in zip(watched.moments, plain.moments, strict=True):
        assert_same_state(one.student_after, other.student_after, "student")
        assert_same_state(one.teacher_after, other.teacher_after, "teacher")
        assert one.playbooks == other.playbooks
        assert one.loss == other.loss


def test_prompts_that_are_too_long_are_not_scored(tiny_base: Path, tmp_path: Path) -> None:
    lines = {key: answer for key, answer in LINES.items() if key[0] == "rollout"}
    toy = Toy(tiny_base, ANSWERS, lines, 3, max_batches=1, max_prompt_tokens=3, observers=(MeasureForgetting(),))
    toy.run()
    (line,) = jsonl(tmp_path / "forgetting.jsonl")
    assert (line["scored"], line["solved_share"], line["solved_share_by_batch"]) == (0, None, [None])


def test_a_run_that_switches_it_on_in_yaml_comes_to_the_same_weights_as_one_without(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    watch = tmp_path / "watch.yaml"
    watch.write_text(
        "trainer:\n  callbacks+:\n    - class_path: MeasureForgetting\n      init_args: {max_examples: 6}\n"
    )
    run([*arguments(base, tmp_path / "plain", "none")], tmp_path / "plain.log")
    run([*arguments(base, tmp_path / "watched", "none"), f"--config={watch}"], tmp_path / "watched.log")
    plain, watched = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("plain", "watched")
    )
    for part in ("resd", "optimizer_states", "lr_schedulers"):
        assert_same_state(plain[part], watched[part], part)
    assert jsonl(tmp_path / "plain" / "transcripts.jsonl") == jsonl(tmp_path / "watched" / "transcripts.jsonl")
    lines = jsonl(tmp_path / "watched" / "forgetting.jsonl")
    assert [(line["updates_done"], line["scored"]) for line in lines] == [(3, 3), (6, 6)]
    assert not (tmp_path / "plain" / "forgetting.jsonl").exists()
