"""Stops a run at its budget of prompts, rollouts or generated tokens."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.config import BudgetConfig
from resd_lightning.costs import spent_on_training
from resd_lightning.run_folder import RunFolder, read_lines
from resd_lightning.training import validate_now

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

logger = logging.getLogger(__name__)


class StopAtBudget(Callback):
    """Ends a run with the update that reaches its budget, and validates there; resumed, the run stays ended.

    It also validates where one more update, as dear as the dearest so far, would pass the budget: as a rule that is
    the last student within the budget. The updates on a batch of prompts draw it together, so a budget of prompts ends
    with the batch that reaches it.

    What was spent is read off metrics.jsonl, so that killed and resumed runs count alike: this callback stands behind
    `RecordMetrics`.

    Args:
        folder: The run's folder.
        budget: Its limits; without any, this does nothing.
    """

    def __init__(self, folder: RunFolder, budget: BudgetConfig) -> None:
        self._folder = folder
        self._budget = budget

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep a resumed run ended that has reached its budget."""
        _, is_reached = self._near_and_reached(trainer, pl_module)
        if is_reached:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate near the budget, where no validation was due, and end at it.

        The update's checkpoint is saved after this: a run killed in here makes the update again.
        """
        module: ResdModule = pl_module  # type: ignore[assignment]
        is_near, is_reached = self._near_and_reached(trainer, pl_module)
        if is_near and trainer.global_step % module.data.inner_updates != 0:
            validate_now(trainer)
        if is_reached:
            logger.info("the budget is reached after %d updates", trainer.global_step)
            trainer.should_stop = True

    def _near_and_reached(self, trainer: Trainer, pl_module: LightningModule) -> tuple[bool, bool]:
        module: ResdModule = pl_module  # type: ignore[assignment]
        limits = self._budget.limits
        if not limits:
            return False, False
        updates = [spent_on_training(line) for line in read_lines(self._folder.metrics) if line["phase"] == "train"]
        is_near = is_reached = False
        for currency, limit in limits.items():
            if currency == "prompts" and trainer.global_step % module.data.inner_updates != 0:
                continue
            costs = [update[currency] for update in updates]
            is_near |= sum(costs) + max(costs, default=0.0) > limit
            is_reached |= sum(costs) >= limit
        verdict: tuple[bool, bool] = trainer.strategy.broadcast((is_near, is_reached))  # rank 0 writes the file
        return verdict
