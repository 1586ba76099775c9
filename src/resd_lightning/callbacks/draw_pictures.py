"""Draws token losses and successes per prompt into TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from resd_lightning.callbacks.tensorboard import tensorboards
from resd_lightning.callbacks.write_diagnostics import WriteDiagnostics
from resd_lightning.config import require
from resd_lightning.run_folder import read_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from resd_lightning.module import ResdModule

FIRST_DRAWING_S = 0.5
"""Seconds that the first drawing is taken to need: importing matplotlib is most of it."""


class DrawPictures(Callback):
    """Draws what `WatchLoss` and `CountSuccesses` saw, which `resd fit` always has.

    Args:
        time_share: Draw no more than fits into this share of the run's time so far; null draws everything.
    """

    def __init__(self, time_share: float | None = None) -> None:
        require(time_share is None or 0 < time_share < 1, "DrawPictures.time_share", "between 0 and 1", time_share)
        self._time_share = time_share
        self._began = time.perf_counter()
        self._spent = 0.0
        self._next = FIRST_DRAWING_S
        self._may_draw = time_share is None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the update's token losses."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record, sinks = module.data.record, tensorboards(trainer)
        losses = [] if record is None else [seen for seen in record.observations if seen["kind"] == "token_losses"]
        if not (losses and sinks and self._may_draw and self._has_time()):
            return
        with self._timed(module):
            # Imported here: matplotlib takes half a second, which only this observer costs.
            from resd_lightning.diagnostics.pictures import token_losses_picture

            for seen in losses:
                title = f"{seen['example']}, update {trainer.global_step}, reward {seen['reward']:g}"
                name = "token_losses/success" if seen["is_success"] else "token_losses/failure"
                _show(sinks, name, token_losses_picture(seen, title), trainer.global_step)
        self._may_draw = self._time_share is None  # else the next validation decides

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the successes of all validations so far, those before the run was resumed among them."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        writers = [callback for callback in callbacks if isinstance(callback, WriteDiagnostics)]
        sinks = tensorboards(trainer)
        if trainer.state.fn != "fit" or not sinks or not writers or not self._has_time():
            return
        self._may_draw = True
        with self._timed(module):
            from resd_lightning.diagnostics.pictures import successes_picture

            lines = [line for line in read_lines(writers[0].folder.diagnostics) if line["kind"] == "successes"]
            if lines:  # none where every prompt was too long
                _show(sinks, "successes_per_prompt", successes_picture(lines), trainer.global_step)

    def _has_time(self) -> bool:
        """Whether a drawing as long as the last one keeps to the share."""
        so_far = time.perf_counter() - self._began
        return self._time_share is None or self._spent + self._next <= self._time_share * so_far

    @contextmanager
    def _timed(self, module: ResdModule) -> Iterator[None]:
        started = time.perf_counter()
        with module.data.costs.timed("draw"):
            yield
        self._next = time.perf_counter() - started
        self._spent += self._next


def _show(sinks: Sequence[TensorBoardLogger], name: str, figure: Figure, step: int) -> None:
    for sink in sinks:
        sink.experiment.add_figure(name, figure, step)
