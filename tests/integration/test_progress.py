"""What a run shows as it goes: lines in the log, bars on a terminal, and nothing that touches what is trained."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from test_kill_and_resume import arguments, assert_same_state, jsonl, run
from toy import Toy
from trace_script import ANSWERS, LINES

from conftest import make_tiny_base
from resd_lightning.callbacks import RecordMetrics, ShowProgress
from resd_lightning.cli import ResdCLI
from resd_lightning.run_folder import RunFolder

QUICKSTART = str(Path(__file__).resolve().parents[2] / "configs" / "quickstart.yaml")


def watched(base: Path, folder: Path, console: Console | None = None) -> Toy:
    numbers = RecordMetrics(RunFolder(folder))
    folder.mkdir()
    return Toy(base, ANSWERS, LINES, 3, max_batches=2, observers=(numbers, ShowProgress(numbers, console)))


def test_each_update_and_each_validation_is_one_line_of_the_log_in_order(
    tiny_base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "resd_lightning.callbacks.show_progress")
    watched(tiny_base, tmp_path / "run").run()
    said = [record.getMessage() for record in caplog.records if record.name.endswith("show_progress")]
    assert [line.split("  ")[0] for line in said] == [
        "update 1/4",
        "update 2/4",
        "validation after 2 updates:",
        "update 3/4",
        "update 4/4",
        "validation after 4 updates:",
    ]
    lines = jsonl(tmp_path / "run" / "metrics.jsonl")
    first = next(line for line in lines if line["phase"] == "train")
    success, loss, size = first["train/per_task"], first["train/loss"], first["playbook/size"]
    tokens = sum(value for name, value in first.items() if name.endswith("_generated"))
    shape = rf"update 1/4  success {success:.2f}  loss {loss:.4f}  playbook {size:.0f}  {tokens:,.0f} tokens  [\d.]+ s"
    assert re.fullmatch(shape, said[0])
    # v1 is always solved, v2 by one of its two samples
    assert re.fullmatch(r"validation after 2 updates:  mean@2 0.750  best@2 1.000  [\d.]+ s", said[2])


def test_bars_of_all_phases_stand_on_a_terminal_and_none_elsewhere(
    tiny_base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    screen = io.StringIO()
    watched(tiny_base, tmp_path / "run", Console(file=screen, force_terminal=True, width=100)).run()
    drawn = re.sub(r"\x1b\[[0-9;?]*\w", "", screen.getvalue()).replace("\r", "\n")
    for bar in ("updates", "rollout", "reflect", "tag", "curate", "train", "validation", "validate"):
        assert re.search(rf"^{bar} +.*\d+/\d+", drawn, re.MULTILINE), bar
    capfd.readouterr()
    watched(tiny_base, tmp_path / "quiet").run()
    assert "rollout" not in "".join(capfd.readouterr())


def test_a_run_that_is_shown_comes_to_the_weights_of_one_that_is_not(tiny_base: Path, tmp_path: Path) -> None:
    shown = watched(tiny_base, tmp_path / "run", Console(file=io.StringIO(), force_terminal=True))
    for one, other in zip(shown.run().moments, replace(shown, observers=()).run().moments, strict=True):
        assert_same_state(one.student_after, other.student_after, "student")
        assert one.playbooks == other.playbooks
        assert one.loss == other.loss


def test_the_display_is_off_where_it_is_not_wanted_and_makes_way_for_a_users_own(tmp_path: Path) -> None:
    def bars(*options: str) -> list[str]:
        cli = ResdCLI(["--config", QUICKSTART, f"--run_dir={tmp_path / 'run'}", *options], run=False)
        return [type(c).__name__ for c in cli.trainer.callbacks if "Progress" in type(c).__name__]

    assert bars() == ["ShowProgress"]
    assert bars("--trainer.enable_progress_bar=false") == []
    own = f"{RichProgressBar.__module__}.{RichProgressBar.__name__}"
    assert bars(f"--trainer.callbacks+={own}") == ["RichProgressBar"]


def test_ctrl_c_ends_with_one_line_that_goes_on_with_the_run(tmp_path: Path) -> None:
    base = make_tiny_base(tmp_path / "base")
    command = arguments(base, tmp_path / "run", "none")
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    ) as process:
        assert process.stderr is not None
        said = ""
        for raw in iter(process.stderr.readline, b""):
            said += raw.decode()
            if raw.startswith(b"update 2/"):
                os.killpg(process.pid, signal.SIGINT)
                break
        rest = process.stderr.read().decode()
    assert process.returncode == 130, said + rest
    assert "Traceback" not in rest
    last = rest.strip().splitlines()[-1]
    found = re.fullmatch(
        r"resd: the run stopped after update (\d+); `resd (fit --config \S+ --ckpt_path last)`.*", last
    )
    assert found, rest
    assert int(found[1]) >= 1  # the second update's line may come before its checkpoint
    run([*command[:3], *found[2].split()], tmp_path / "resumed.log")
    run(arguments(base, tmp_path / "whole", "none"), tmp_path / "whole.log")
    assert jsonl(tmp_path / "run" / "transcripts.jsonl") == jsonl(tmp_path / "whole" / "transcripts.jsonl")
