"""How often each prompt is solved: the histogram of RESD Fig. 4, at every validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.records import ExampleBatch, Rollout
from resd_lightning.run_folder import RunFolder, append_lines

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class CountSuccesses(Callback):
    """Counts each validation prompt's successes, for metrics by share of prompts and for diagnostics.jsonl by prompt.

    It stands before RecordMetrics, by whose line a resumed run knows that the first validation is done.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._successes: dict[str, int] = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Sequence[Rollout]],  # type: ignore[override]  # what validation_step returned
        batch: ExampleBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count the batch; a prompt above its limit has no rollouts and isn't counted."""
        for rollout in outputs["rollouts"]:
            id_ = rollout.example.id
            self._successes[id_] = self._successes.get(id_, 0) + rollout.is_success

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand the shares to the evaluation's metrics, and write the counts."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        samples, successes = module.data.validation_samples, self._successes
        self._successes = {}
        if not successes:
            return
        for solved in range(samples + 1):
            share = sum(n == solved for n in successes.values()) / len(successes)
            module.observed[f"val/solved_{solved}_of_{samples}"] = share
        if trainer.is_global_zero:
            line = {
                "kind": "successes",
                "updates_done": trainer.global_step,
                "samples": samples,
                "by_prompt": successes,
            }
            append_lines(self._folder.diagnostics, [line])
