"""A run's folder written by hand, with what a model might write to break a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import yaml

from resd_lightning.context.playbook import Playbook, PlaybookEntry
from resd_lightning.run_folder import RunFolder, append_lines

HOSTILE = "</script><script>document.title = 'broken'</script><!-- <b>&amp; \u2028 /* script */ <!-- data -->"


def rollout(update: int, example: str, **changes: object) -> dict[str, object]:
    return {
        "update": update,
        "example": example,
        "sample": 0,
        "prompt": [{"role": "user", "content": f"question of {example}"}],
        "response": "A B",
        "response_tokens": 2,
        "is_truncated": False,
        "reward": 0.0,
        "tests_passed": [False],
        "feedback": "wrong",
        "verify_error": "",
        "answers": [],
        "operations": [],
        "teacher_sections": ["feedback"],
        "teacher_prompt": [{"role": "user", "content": "a long prompt"}],
        "teacher_skipped": False,
        "loss_coefficient": 1.0,
        **changes,
    }


def tagged(purpose: str, **verdicts: str) -> dict[str, object]:
    tags = [{"id": id_, "tag": tag} for id_, tag in verdicts.items()]
    return {"purpose": purpose, "prompt": [], "text": json.dumps({"key_insight": "x", "tags": tags}), "problems": []}


def operation(
    kind: str, entry: str | None, text: str = "", problem: str | None = None, **more: object
) -> dict[str, object]:
    return {"type": kind, "playbook": "", "example": "a", "entry": entry, "problem": problem, "text": text, **more}


def prune(id_: str, reason: str) -> dict[str, object]:
    return {"type": "PRUNE", "playbook": "", "reason": reason, "id": id_}


ROLLOUTS = [
    rollout(
        0,
        "a",
        response=HOSTILE,
        operations=[
            operation("ADD", "e00001", HOSTILE, section="others"),
            operation("ADD", "e00002", "second", section="formulas"),
            operation("ADD", "e00003", "third", section="others"),
            operation("ADD", "e00004", "one too many", section="others"),
            prune("e00004", "over_budget"),
        ],
    ),
    rollout(0, "b", operations=[operation("ADD", "e00001", HOSTILE, "duplicate", section="others")]),
    rollout(1, "a", reward=1.0, answers=[tagged("tag", E00001="neutral", e00001="helpful", e00002="harmful")]),
    rollout(
        1,
        "b",
        answers=[tagged("reflect", e00002="harmful", e00009="helpful")],
        operations=[prune("start", "periodic"), operation("MERGE", "e00005", "both", ids=["e00002", "e00003"])],
    ),
]

LEFT = Playbook(
    (PlaybookEntry("e00001", "others", HOSTILE, 1), PlaybookEntry("e00005", "formulas", "both", 0, 2)), 2, 6
)

METRICS = [
    {"updates_done": 0, "phase": "val", "val/per_task/mean@4": 0.25, "val/skipped": 0.0},
    {"updates_done": 1, "phase": "train", "train/loss": 0.5, "train/per_task": 0.0},
    {"updates_done": 2, "phase": "train", "train/loss": float("nan"), "train/per_task": 0.5},
]


def write_run(path: Path, *, without: tuple[str, ...] = (), **options: object) -> Path:
    """Write a run's folder and return it.

    Args:
        path: Of the folder.
        without: Names of files to leave out.
        options: Its configuration.
    """
    path.mkdir()
    folder = RunFolder(path)
    append_lines(folder.metrics, METRICS)
    append_lines(folder.transcripts, ROLLOUTS)
    losses = {"kind": "token_losses", "updates_done": 1, "example": "b", "sample": 0}
    append_lines(folder.diagnostics, [{**losses, "tokens": ["A", "B"], "losses": [0.0, 1.5]}])
    summary: Mapping[str, object] = {
        "method": "resd",
        "metrics": {"train/loss": {"first": 0.5, "last": 0.5, "best": 0.5}},
        "spent": {"time/rollout_s": 2.0, "requests/rollout": 4.0},
        "updates": 2,
    }
    folder.summary.write_text(json.dumps(summary))
    folder.playbook.write_text(LEFT.to_json())
    folder.config.write_text(yaml.safe_dump({"run_dir": str(path), "model": {"method": "resd", **options}}))
    for name in without:
        (path / name).unlink()
    return path
