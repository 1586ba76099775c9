"""How a line of Algorithm 1 becomes a callback, which phases a run has, and the rules by which they stand together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from lightning.pytorch import Callback, Trainer

from resd_lightning.config import ConfigError, ObjectiveName, TeacherKind
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


@dataclass(frozen=True)
class Phase:
    """What the updates of one part of a run minimise, and on how many responses to each prompt.

    Attributes:
        objective: Name of the objective.
        rollouts_per_prompt: Responses to each prompt and update.
    """

    objective: ObjectiveName
    rollouts_per_prompt: int


class PhaseCallback(Callback, ABC):
    """Puts another phase behind the run's first.

    It is asked at each update whether its phase has begun. It answers from the update's number and its own state, which
    is in the checkpoint, so nothing else has to be restored when a run resumes.
    """

    phase: Phase

    @abstractmethod
    def has_begun(self, update: int) -> bool:
        """Return whether update number `update` belongs to the phase."""


def later_phases(trainer: Trainer) -> list[PhaseCallback]:
    """Return the trainer's phases behind the first."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, PhaseCallback)]


def check_algorithm(
    callbacks: Sequence[AlgorithmCallback], teacher: TeacherKind, phases: Sequence[Phase] = (Phase("distillation", 1),)
) -> None:
    """Refuse lines of the algorithm that can't mean one, also together with what the run's phases minimise.

    Raises:
        ConfigError: Wrong order, a line that stands twice, a missing companion, an EMA teacher that nothing moves,
            lines for a teacher that no phase uses, or groups of one.
    """
    _check_lines(callbacks)
    _check_phases(phases)
    names = [type(callback).__name__ for callback in callbacks]
    if all(phase.objective == "grpo" for phase in phases):
        if names:
            raise ConfigError(
                f"trainer.callbacks: model.objective grpo has no teacher and reads no context, so {names} would only "
                "cost; take them out, as configs/method/grpo.yaml does"
            )
    elif teacher == "ema" and "SyncTeacher" not in _roles(callbacks):
        raise ConfigError(
            "trainer.callbacks: model.teacher.kind ema needs SyncTeacher, or the teacher never moves; add it, or "
            f"choose model.teacher.kind initial; got {names}"
        )


def _check_lines(callbacks: Sequence[AlgorithmCallback]) -> None:
    names = [type(callback).__name__ for callback in callbacks]
    for earlier, later in pairwise(callbacks):
        if earlier.line >= later.line:
            raise ConfigError(
                f"trainer.callbacks: {type(later).__name__} (Algorithm 1 line {later.line:g}) must come before "
                f"{type(earlier).__name__} (line {earlier.line:g}), and each line once; got {names}"
            )
    for callback in callbacks:
        if callback.needs is not None and callback.needs not in _roles(callbacks):
            raise ConfigError(
                f"trainer.callbacks: {type(callback).__name__} needs {callback.needs} before it; got {names}"
            )


def _roles(callbacks: Sequence[AlgorithmCallback]) -> set[str]:
    """Return the names of the callbacks and of what they inherit from: a subclass does what its parent is there for."""
    return {parent.__name__ for callback in callbacks for parent in type(callback).__mro__}


def _check_phases(phases: Sequence[Phase]) -> None:
    for number, phase in enumerate(phases):
        if phase.objective != "distillation" and phase.rollouts_per_prompt < 2:
            key = "data.rollouts_per_prompt" if number == 0 else "SwitchObjective's rollouts_per_prompt"
            raise ConfigError(
                f"{key} must be at least 2 under the objective {phase.objective}, which compares the responses to a "
                f"prompt with each other, got {phase.rollouts_per_prompt}"
            )
    for earlier, later in pairwise(phases):
        if earlier.objective == later.objective:
            raise ConfigError(
                f"trainer.callbacks: SwitchObjective goes over to {later.objective}, which is model.objective already"
            )
