"""Lightning's own callbacks find the run's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch.callbacks import EarlyStopping
from test_kill_and_resume import jsonl
from toy import Toy
from trace_script import ANSWERS, LINES

from resd_lightning.callbacks import RecordMetrics
from resd_lightning.run_folder import RunFolder


@pytest.mark.parametrize(("monitor", "hook"), [("playbook/size", True), ("val/per_task/mean@2", False)])
def test_a_monitored_number_ends_the_run(monitor: str, hook: bool, tiny_base: Path, tmp_path: Path) -> None:
    early = EarlyStopping(monitor, mode="max", patience=1, min_delta=1e6, check_on_train_epoch_end=hook)
    observers = (RecordMetrics(RunFolder(tmp_path)), early)
    Toy(tiny_base, ANSWERS, LINES, 3, max_batches=3, observers=observers).run()
    updates = [line for line in jsonl(tmp_path / "metrics.jsonl") if line["phase"] == "train"]
    assert early.stopped_epoch > 0
    assert len(updates) == early.stopped_epoch + 1 < 6
