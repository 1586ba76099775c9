"""Keeps the state of the latest update, and the student's weights of every validation."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from resd_lightning.run_folder import RunFolder, replace_text, replaced_folder

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class KeepCheckpoints(Checkpoint):
    """Saves `checkpoints/last.ckpt` after each update, and `checkpoints/update-N` at each validation.

    All appear in one step: a kill in the middle of saving leaves the previous ones whole. Lightning runs checkpoint
    callbacks last, so the state has the teacher's step in it.

    Args:
        folder: The run's folder.
        config: The run's configuration, kept in the checkpoint to tell what a resumed run changed.
    """

    def __init__(self, folder: RunFolder, config: dict[str, object]) -> None:
        self._folder = folder
        self._config = config

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, object]) -> None:
        """Put the configuration into the checkpoint."""
        checkpoint["config"] = self._config

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the configuration, now that all it asks for has been built, and save the start.

        The start is a checkpoint too, so that a run killed in its first update resumes.
        """
        if trainer.is_global_zero:
            self._folder.path.mkdir(parents=True, exist_ok=True)
            replace_text(self._folder.config, yaml.safe_dump(self._config, sort_keys=False, allow_unicode=True))
        if trainer.global_step == 0:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state after the update."""
        self._save_last(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the validated student and its playbook: adapters are small and all kept, of whole models the latest."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        if trainer.state.fn != "fit":
            return
        weights = module.loaded_policy.weights_to_save()  # all ranks together; one writes
        if trainer.is_global_zero:
            self._keep_student(trainer, module, weights)

    def _keep_student(self, trainer: Trainer, module: ResdModule, weights: dict[str, Tensor] | None) -> None:
        earlier = [] if module.loaded_policy.has_adapters else self._folder.students()
        with replaced_folder(self._folder.student(trainer.global_step)) as scratch:
            module.loaded_policy.save_pretrained(scratch, weights)
            replace_text(scratch / "playbook.json", module.context.to_json())
            for folder in earlier:
                shutil.rmtree(folder, ignore_errors=True)

    def _save_last(self, trainer: Trainer) -> None:
        last = self._folder.last_checkpoint
        scratch = Path(f"{last}.new")
        last.parent.mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(scratch, weights_only=False)  # the optimizer too
        if trainer.is_global_zero:
            os.replace(scratch, last)
        trainer.strategy.barrier("last checkpoint")
