"""Writes what observers saw beyond scalars: diagnostics.jsonl."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.run_folder import RunFolder, append_lines, drop_lines_after

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class WriteDiagnostics(Callback):
    """Appends the update's observations, each with its `kind`; docs/diagnostics.md describes them.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines past the update that is resumed from."""
        if trainer.is_global_zero:
            drop_lines_after(self.folder.diagnostics, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the update's."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record = module.data.record
        if record is not None and trainer.is_global_zero:
            about = {"updates_done": trainer.global_step}
            append_lines(self.folder.diagnostics, [{**about, **seen} for seen in record.observations])
