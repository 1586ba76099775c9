"""What each update does to the playbooks, in numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer

from resd_lightning.context.playbook import Playbook
from resd_lightning.diagnostics.playbook_flow import playbook_flow
from resd_lightning.tasks.base import JudgesLessons

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class WatchPlaybook(Callback):
    """Compares the playbooks at an update's end with those at its start."""

    def __init__(self) -> None:
        self._before: Mapping[str, Playbook] = {}

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the playbooks as the update finds them; they are immutable."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        self._before = module.context.playbooks

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the flow into the record."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        record, task = module.data.record, module.data.task
        if record is not None:
            judge = task.is_true if isinstance(task, JudgesLessons) else None
            record.metrics |= playbook_flow(self._before, module.context.playbooks, record.update, judge)
