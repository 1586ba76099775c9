"""SYNC: move the teacher toward the student (RESD Alg. 1 line 19)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer

from resd_lightning.algorithm import AlgorithmCallback

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class SyncTeacher(AlgorithmCallback):
    """Takes one step of the teacher's moving average after each policy update; other kinds of teacher have none."""

    line = 19

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the teacher; checkpoints are saved after this."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        policy = module.loaded_policy
        policy.sync_teacher()
        if policy.teacher_config.kind == "ema" and module.data.record is not None:
            module.data.record.metrics["teacher/lag"] = policy.ema.distance()
