"""Goes over to another objective in mid-run: RESD out of rare success, then GRPO (RESD section 4.4)."""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Literal, cast

from lightning.pytorch import LightningModule, Trainer

from resd_lightning.algorithm import Phase, PhaseCallback
from resd_lightning.config import ConfigError, require

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

logger = logging.getLogger(__name__)


class SwitchObjective(PhaseCallback):
    """Switches once, when enough of the latest rollouts succeeded or at a given update, and never back.

    From then on the lines of Algorithm 1 that make context are left out if the objective reads none. Optimizer and
    learning rate go on as they are.

    Args:
        objective: What later updates minimise.
        rollouts_per_prompt: Responses to each prompt in them.
        success_rate: Switch when the last `window` updates together reached this share of successes; null for never.
        window: Updates that the share is taken over; the paper's K is one batch of prompts.
        at_update: Switch before this update, counted from 0, if not earlier; null for no such limit.
    """

    def __init__(
        self,
        objective: Literal["grpo", "distillation"] = "grpo",
        rollouts_per_prompt: int = 8,
        success_rate: float | None = 0.5,
        window: int = 4,
        at_update: int | None = None,
    ) -> None:
        if success_rate is None and at_update is None:
            raise ConfigError("SwitchObjective needs success_rate or at_update, or it never switches")
        require(rollouts_per_prompt >= 1, "SwitchObjective's rollouts_per_prompt", "at least 1", rollouts_per_prompt)
        is_rate = success_rate is None or 0 < success_rate <= 1
        require(is_rate, "SwitchObjective's success_rate", "in (0, 1]", success_rate)
        require(window >= 1, "SwitchObjective's window", "at least 1", window)
        require(at_update is None or at_update >= 1, "SwitchObjective's at_update", "at least 1", at_update)
        self.phase = Phase(objective, rollouts_per_prompt)
        self._success_rate = success_rate
        self._at_update = at_update
        self._rates: deque[float] = deque(maxlen=window)
        self._first_update: int | None = None

    def has_begun(self, update: int) -> bool:
        """Return whether update number `update` comes after the switch."""
        return self._first_update is not None and update >= self._first_update

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the update's success rate, and decide about the next; checkpoints are saved after this."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record = module.data.record
        if record is None:
            raise RuntimeError("an update ended that made no record")
        self._rates.append(record.metrics["train/per_task"])
        rate = sum(self._rates) / len(self._rates)
        record.metrics["switch/success_rate"] = rate
        record.metrics["switch/is_on"] = float(self.has_begun(record.update))
        if self._first_update is not None:
            return
        following = record.update + 1
        is_reached = self._success_rate is not None and rate >= self._success_rate
        is_full = len(self._rates) == self._rates.maxlen
        if (is_reached and is_full) or (self._at_update is not None and following >= self._at_update):
            self._first_update = following
            logger.info(
                "from update %d on: objective %s, %d rollouts per prompt; success rate of the last %d updates %.2f",
                following,
                self.phase.objective,
                self.phase.rollouts_per_prompt,
                len(self._rates),
                rate,
            )

    def state_dict(self) -> dict[str, object]:
        """Return when it switched, and the success rates it goes by."""
        return {"first_update": self._first_update, "rates": list(self._rates)}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Restore what `state_dict` returned."""
        self._first_update = cast("int | None", state_dict["first_update"])
        self._rates = deque(cast("list[float]", state_dict["rates"]), maxlen=self._rates.maxlen)
