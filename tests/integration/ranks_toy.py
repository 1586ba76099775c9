"""The scripted trace as a task and an engine that a run in a subprocess names, and callbacks that do harm."""

from __future__ import annotations

import os

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from toy import Script, SumTask
from trace_script import ANSWERS, LINES

from resd_lightning.context.playbook import Playbook
from resd_lightning.records import MicroBatch
from resd_lightning.rollout.scripted import ScriptedEngine


class TraceTask(SumTask):
    """The trace's questions."""

    def __init__(self) -> None:
        super().__init__(ANSWERS)


class TraceEngine(ScriptedEngine):
    """The trace's answers."""

    def __init__(self) -> None:
        super().__init__(Script(LINES))


class ForgetOnOneRank(Callback):
    """Empties the playbook of the second rank behind the first update's."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_rank == 1:
            pl_module.context.begin_update([], keep_solutions=True)
            pl_module.context.put_playbook("", Playbook())
            pl_module.context.seal()


class DieOnOneRank(Callback):
    """Ends the second rank's process in the third update, as the kernel would."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        if trainer.global_rank == 1 and trainer.current_epoch == 2:
            os.kill(os.getpid(), 9)


class DieAtOnce(Callback):
    """Ends the process in the first update."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        os.kill(os.getpid(), 9)


class Fsdp1OnCpu(FSDPStrategy):
    """Lightning's FSDP1, which it keeps off CPUs: it gives torch a device's number, and autocasts on GPUs alone."""

    def setup_environment(self) -> None:
        super().setup_environment()
        if self.precision_plugin.precision == "bf16-mixed":
            self.precision_plugin.forward_context = lambda: torch.autocast("cpu", torch.bfloat16)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        return FullyShardedDataParallel(
            model,
            device_id=torch.device("cpu"),
            sharding_strategy=self.sharding_strategy,
            mixed_precision=self.mixed_precision_config,
            **self.kwargs,
        )
