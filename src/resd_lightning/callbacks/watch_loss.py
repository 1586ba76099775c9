"""What the loss was made of: means over the update's tokens, and the token losses of a few responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from resd_lightning.records import DistillBatch, MicroBatch, UpdateRecord

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class WatchLoss(Callback):
    """Reads what the training step computed anyway; nothing is kept but sums, and two responses' rows.

    Those are the first failed and the first successful response among the process's, once per batch of prompts.
    """

    def __init__(self) -> None:
        self._tokens = torch.zeros(())
        self._sums: dict[str, Tensor] = {}
        self._shown: dict[bool, tuple[int, Tensor]] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the update's sums at zero."""
        self._tokens, self._sums, self._shown = torch.zeros((), device=pl_module.device), {}, {}

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, Tensor],  # type: ignore[override]  # what the module's training_step returned
        batch: MicroBatch,
        batch_idx: int,
    ) -> None:
        """Add the micro-batch, and after the update's last put its means into the record."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record = module.data.record
        if record is None:
            return
        if isinstance(batch, DistillBatch):
            self._add(batch, outputs, record, is_first_visit=record.update % module.data.inner_updates == 0)
        if batch_idx + 1 == trainer.num_training_batches:
            self._finish(trainer, module, record)

    def _add(
        self, batch: DistillBatch, outputs: Mapping[str, Tensor], record: UpdateRecord, *, is_first_visit: bool
    ) -> None:
        counts = float(not batch.is_filler)  # one adds zeros, so that all ranks have the same names to reduce
        self._tokens += batch.response_mask.sum() * counts
        for name, values in outputs.items():
            if name != "loss":
                self._sums[name] = self._sums.get(name, 0) + values.sum() * counts
        for row, index in enumerate(batch.rollouts if is_first_visit else ()):
            self._shown.setdefault(record.rollouts[index].is_success, (index, outputs["divergence"][row]))

    def _finish(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        names = sorted(self._sums)
        sums = torch.stack([self._tokens, *(self._sums[name] for name in names)])
        tokens, *totals = trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        if tokens:
            record.metrics |= {f"loss/{name}": total / tokens for name, total in zip(names, totals, strict=True)}
        for index, losses in self._shown.values():
            completion = record.rollouts[index].completion
            record.observations.append(
                {
                    "kind": "token_losses",
                    "example": record.rollouts[index].example.id,
                    "sample": record.rollouts[index].sample,
                    "reward": record.rollouts[index].feedback.reward,
                    "is_success": record.rollouts[index].is_success,
                    "tokens": [module.tokenizer.decode([token]) for token in completion.token_ids],
                    "losses": losses[: len(completion.token_ids)].tolist(),
                }
            )
