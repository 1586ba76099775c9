"""Writes every scalar of a run: to the loggers, to metrics.jsonl, and to Lightning's own monitors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.run_folder import RunFolder, append_lines, drop_lines_after
from resd_lightning.summary import write_summary

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

logger = logging.getLogger(__name__)

ON_PROGRESS_BAR = ("train/loss", "train/per_task", "playbook/size")


class RecordMetrics(Callback):
    """Records an update when it ends, before its checkpoint is saved, and a validation when it ends.

    A checkpoint thus never knows of an update that metrics.jsonl lacks; lines of updates that a killed run had logged
    but not saved are dropped when it resumes.

    Args:
        folder: The run's folder; its `metrics.jsonl` and `summary.json` are written.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self.of_update: Mapping[str, float] = {}
        """The numbers of the latest update."""
        self.of_validation: Mapping[str, float] = {}
        """The numbers of the latest validation in training."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drop the lines past the update that is resumed from."""
        if trainer.is_global_zero:
            drop_lines_after(self._folder.metrics, trainer.global_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Book what was spent so far on the update, and not on the validation that begins."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        if trainer.state.fn == "fit" and module.data.record is not None:
            module.data.record.metrics |= module.data.costs.take()

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the validation's numbers at the updates behind it."""
        self._record_evaluation(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the test's numbers."""
        self._record_evaluation(trainer, pl_module)

    def _record_evaluation(self, trainer: Trainer, pl_module: LightningModule) -> None:
        module: ResdModule = pl_module  # type: ignore[assignment]
        metrics = module.evaluation_metrics()
        if trainer.state.fn == "fit":
            _offer(trainer, metrics)
            self.of_validation = metrics | module.data.costs.take()
            self._write(trainer, "val", self.of_validation)
            return
        pl_module.log_dict(metrics)  # Lightning prints what loggers would get
        if trainer.is_global_zero:
            self._folder.path.mkdir(parents=True, exist_ok=True)
            about = {
                "stage": "test" if trainer.testing else "val",
                "ckpt_path": trainer.ckpt_path,
                "updates_done": module.updates_done,
            }
            append_lines(self._folder.evaluations, [{**about, **metrics}])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the update."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record = module.data.record
        if record is None:
            raise RuntimeError("an update ended that made no record")
        metrics = record.metrics | module.data.costs.take() | module.step_metrics()
        self.of_update = metrics
        _offer(trainer, metrics)
        shown = {key: metrics[key] for key in ON_PROGRESS_BAR}  # on a bar of the user's; all ranks have the run's
        pl_module.log_dict(shown, logger=False, prog_bar=True, sync_dist=True)
        self._write(trainer, "train", metrics)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the summary of the run as it ended."""
        if trainer.is_global_zero:
            write_summary(self._folder, pl_module, is_finished=True)  # type: ignore[arg-type]

    def _write(self, trainer: Trainer, phase: str, metrics: Mapping[str, float]) -> None:
        updates_done = trainer.global_step
        for sink in trainer.loggers:
            sink.log_metrics(dict(metrics), step=updates_done)
            sink.save()
        if trainer.is_global_zero:
            line = {"updates_done": updates_done, "phase": phase, **dict(sorted(metrics.items()))}
            append_lines(self._folder.metrics, [line])
            if phase == "val":
                write_summary(self._folder, trainer.lightning_module, is_finished=False)  # type: ignore[arg-type]


def _offer(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Put metrics where Lightning's own callbacks look for what they monitor, such as `EarlyStopping`.

    Directly, as `log_dict` takes half a millisecond for each, which is a hundredth of a small model's update.
    """
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
