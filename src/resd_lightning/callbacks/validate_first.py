"""Validates before the first update, so that every curve starts where the run started."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.run_folder import RunFolder, read_lines
from resd_lightning.training import validate_now


class ValidateFirst(Callback):
    """Runs the whole validation once before the first update; a run resumed after it doesn't repeat it.

    Args:
        folder: The run's folder, whose metrics tell whether the validation is done.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the untrained student, with its numbers logged at 0 updates.

        The checkpoint of the start is saved before this, so a run killed in a long first validation resumes.
        """
        if trainer.global_step > 0:
            return
        is_done = any(line["phase"] == "val" for line in read_lines(self._folder.metrics))
        if trainer.strategy.broadcast(is_done):
            return
        validate_now(trainer)
