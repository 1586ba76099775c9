"""Where texts and pictures go."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the trainer's TensorBoard loggers; none on other ranks than the first."""
    loggers = trainer.loggers if trainer.is_global_zero else []
    return [sink for sink in loggers if isinstance(sink, TensorBoardLogger)]
