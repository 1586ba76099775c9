"""The scripted trace as a task and an engine that a run in a subprocess names, and a callback that does harm."""

from __future__ import annotations

import os

from lightning.pytorch import Callback, LightningModule, Trainer
from toy import Script, SumTask
from trace_script import ANSWERS, LINES

from resd_lightning.records import MicroBatch
from resd_lightning.rollout.scripted import ScriptedEngine


class TraceTask(SumTask):
    """The trace's questions."""

    def __init__(self) -> None:
        super().__init__(ANSWERS)


class TraceEngine(ScriptedEngine):
    """The trace's answers."""

    def __init__(self) -> None:
        super().__init__(Script(LINES))


class DieOnOneRank(Callback):
    """Ends the second rank's process in the third update, as the kernel would."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 2:
            os.kill(os.getpid(), 9)
