"""How a line of Algorithm 1 becomes a callback, and the rules by which lines may stand together."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from lightning.pytorch import Callback, Trainer

from resd_lightning.config import ConfigError, TeacherKind
from resd_lightning.records import UpdateRecord

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule


class AlgorithmCallback(Callback):
    """One line of Algorithm 1. The list of these in the method's YAML is the method; removing one is an ablation.

    Besides Lightning's hooks it has two of its own, called in list order while the update's context is open.
    """

    line: ClassVar[float]
    """Line number in RESD Algorithm 1; callbacks stand in this order."""
    needs: ClassVar[str | None] = None
    """Name of the callback this one can't work without."""

    def on_rollouts_end(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        """Called when all rollouts are verified, before any teacher prompt is built."""

    def on_curation_end(self, trainer: Trainer, module: ResdModule, record: UpdateRecord) -> None:
        """Called when the curator's operations have been applied."""


def algorithm_callbacks(trainer: Trainer) -> list[AlgorithmCallback]:
    """Return the trainer's lines of Algorithm 1, in order."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, AlgorithmCallback)]


def check_algorithm(callbacks: Sequence[AlgorithmCallback], teacher: TeacherKind) -> None:
    """Refuse a list of callbacks that can't mean an algorithm.

    Raises:
        ConfigError: Wrong order, a line that stands twice, a missing companion, or an EMA teacher that nothing moves.
    """
    names = [type(callback).__name__ for callback in callbacks]
    for earlier, later in pairwise(callbacks):
        if earlier.line >= later.line:
            raise ConfigError(
                f"trainer.callbacks: {type(later).__name__} (Algorithm 1 line {later.line:g}) must come before "
                f"{type(earlier).__name__} (line {earlier.line:g}), and each line once; got {names}"
            )
    for callback in callbacks:
        if callback.needs is not None and callback.needs not in names:
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} needs {callback.needs} before it; got {names}"
            )
    if teacher == "ema" and "SyncTeacher" not in names:
        raise ConfigError(
            "trainer.callbacks: model.teacher.kind ema needs SyncTeacher, or the teacher never moves; add it, or "
            f"choose model.teacher.kind initial; got {names}"
        )
