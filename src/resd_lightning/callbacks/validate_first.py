"""Validates before the first update, so that every curve starts where the run started."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class ValidateFirst(Callback):
    """Runs the whole validation once before training; a resumed run doesn't repeat it."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the untrained student, with its numbers logged at 0 updates."""
        if trainer.ckpt_path is not None:  # the first checkpoint is saved after this validation
            return
        trainer.validating = True  # the loop logs by the trainer's stage
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
