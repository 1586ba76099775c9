"""Writes what `resd predict` sampled."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.records import ExampleBatch, RolloutBatch
from resd_lightning.run_folder import RunFolder, append_lines, replace_text


class WritePredictions(Callback):
    """Writes one line per response to `predictions.jsonl`, replacing an earlier one.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start an empty file."""
        if trainer.is_global_zero:
            self._folder.path.mkdir(parents=True, exist_ok=True)
            replace_text(self._folder.predictions, "")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: RolloutBatch,
        batch: ExampleBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch's responses."""
        if not trainer.is_global_zero:
            return
        append_lines(
            self._folder.predictions,
            [
                {
                    "example": rollout.example.id,
                    "sample": rollout.sample,
                    "response": rollout.completion.text,
                    "is_truncated": rollout.completion.is_truncated,
                    "reward": rollout.feedback.reward,
                    "feedback": rollout.feedback.text,
                }
                for rollout in outputs.rollouts
            ],
        )
