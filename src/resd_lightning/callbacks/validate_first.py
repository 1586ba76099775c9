"""Validates before the first update, so that every curve starts where the run started."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer


class ValidateFirst(Callback):
    """Runs the whole validation once before training; a resumed run doesn't repeat it."""

    def __init__(self) -> None:
        self._is_done = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate the untrained student, with its numbers logged at 0 updates."""
        if self._is_done or trainer.global_step > 0:
            return
        trainer.validating = True  # the loop logs by the trainer's stage
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        self._is_done = True

    def state_dict(self) -> dict[str, object]:
        """Return whether the first validation is done."""
        return {"is_done": self._is_done}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Restore whether the first validation is done."""
        self._is_done = bool(state_dict["is_done"])
