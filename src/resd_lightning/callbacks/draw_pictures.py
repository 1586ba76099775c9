"""Draws token losses and successes per prompt into TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from resd_lightning.callbacks.write_diagnostics import WriteDiagnostics
from resd_lightning.run_folder import read_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resd_lightning.module import ResdModule


class DrawPictures(Callback):
    """Draws what `WatchLoss` and `CountSuccesses` saw, which `resd fit` always has."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the update's token losses."""
        # Imported here: matplotlib takes half a second, which only this observer costs.
        from resd_lightning.diagnostics.pictures import token_losses_picture

        module: ResdModule = pl_module  # type: ignore[assignment]
        record = module.data.record
        if record is None or not trainer.is_global_zero:
            return
        for seen in record.observations:
            if seen["kind"] == "token_losses":
                title = f"{seen['example']}, update {trainer.global_step}, reward {seen['reward']:g}"
                name = "token_losses/success" if seen["is_success"] else "token_losses/failure"
                with module.data.costs.timed("draw"):
                    _show(trainer, name, token_losses_picture(seen, title))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the successes of all validations so far, those before the run was resumed among them."""
        from resd_lightning.diagnostics.pictures import successes_picture

        module: ResdModule = pl_module  # type: ignore[assignment]
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        writers = [callback for callback in callbacks if isinstance(callback, WriteDiagnostics)]
        if trainer.state.fn != "fit" or not trainer.is_global_zero or not writers:
            return
        with module.data.costs.timed("draw"):
            lines = [line for line in read_lines(writers[0].folder.diagnostics) if line["kind"] == "successes"]
            if lines:  # none where every prompt was too long
                _show(trainer, "successes_per_prompt", successes_picture(lines))


def _show(trainer: Trainer, name: str, figure: Figure) -> None:
    for sink in trainer.loggers:
        if isinstance(sink, TensorBoardLogger):
            sink.experiment.add_figure(name, figure, trainer.global_step)
