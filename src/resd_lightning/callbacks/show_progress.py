"""Shows how far a run has come: bars on a terminal, and one line for each update and each validation."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers.utils import logging as transformers_logging

from resd_lightning.algorithm import algorithm_callbacks
from resd_lightning.callbacks.record_metrics import RecordMetrics
from resd_lightning.costs import spent_on_training
from resd_lightning.progress import Advance, NoDisplay
from resd_lightning.records import MicroBatch

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

logger = logging.getLogger(__name__)

CURATE_LINE = 9
"""Line of Algorithm 1 without which a run has no playbook to speak of."""


def is_terminal() -> bool:
    """Whether somebody watches standard error: no log, no notebook, no terminal that can't move its cursor."""
    return sys.stderr.isatty() and not Console(stderr=True).is_dumb_terminal


class Bars:
    """Bars that stand within each other, the run's on top; what is printed or logged meanwhile appears above them.

    Args:
        console: Where they are drawn.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description:10}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            refresh_per_second=4,
        )
        self._progress.start()

    def begin(self, name: str, total: int, done: int = 0) -> TaskID:
        """Put a bar below the others."""
        return self._progress.add_task(name, total=total, completed=done)

    def advance(self, bar: TaskID, done: int = 1) -> None:
        """Move a bar on."""
        self._progress.advance(bar, done)

    def end(self, bar: TaskID) -> None:
        """Take a bar away."""
        self._progress.remove_task(bar)

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """Show a bar for as long as the context lasts; see `Display`."""
        bar = self.begin(name, total)
        try:
            yield lambda done: self.advance(bar, done)
        finally:
            self.end(bar)

    def close(self) -> None:
        """Give the terminal back."""
        self._progress.stop()


class ShowProgress(Callback):
    """Owns the one display of a run: generation, gradients and validation draw their bars on it.

    The lines go to the log at INFO, so that a file or a notebook has them too; the bars are for a terminal alone, and
    only the first rank's. Nothing here draws from a random stream.

    Args:
        numbers: Knows the numbers of the update or validation that ended; None where nothing is recorded.
        console: Where bars are drawn; None is standard error, if it is a terminal.
    """

    def __init__(self, numbers: RecordMetrics | None = None, console: Console | None = None) -> None:
        self._numbers = numbers
        self._console = console
        self._bars: Bars | None = None
        self._open: dict[str, TaskID] = {}
        self._is_within_update = False
        self._held = ""

    # The display

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Open the display, and lend it to the datamodule."""
        if not is_terminal():
            transformers_logging.disable_progress_bar()  # its bar for reading weights
        if self._console is None and is_terminal():
            self._console = Console(stderr=True)
        if self._console is not None and self._bars is None and trainer.is_global_zero:
            module: ResdModule = pl_module  # type: ignore[assignment]
            self._bars = module.data.display = Bars(self._console)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close it."""
        self._close(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close it before the error is told."""
        self._close(pl_module)

    def _close(self, pl_module: LightningModule) -> None:
        if self._bars is not None:
            module: ResdModule = pl_module  # type: ignore[assignment]
            module.data.display = NoDisplay()
            self._bars.close()
            self._bars, self._open = None, {}

    def _begin(self, name: str, total: float, done: int = 0) -> None:
        if self._bars is not None and name not in self._open:
            self._open[name] = self._bars.begin(name, int(total), done)

    def _advance(self, name: str) -> None:
        if self._bars is not None and name in self._open:
            self._bars.advance(self._open[name])

    def _end(self, name: str) -> None:
        if self._bars is not None and name in self._open:
            self._bars.end(self._open.pop(name))

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the run's bar, where a resumed run stands."""
        self._begin("updates", trainer.max_epochs or 0, trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: MicroBatch, batch_idx: int
    ) -> None:
        """Show the bar of the update's gradients."""
        self._is_within_update = True
        self._begin("train", trainer.num_training_batches)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: MicroBatch,
        batch_idx: int,
    ) -> None:
        """Move it on."""
        self._advance("train")
        if batch_idx + 1 == trainer.num_training_batches:
            self._end("train")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the update came to, and then its validation, which Lightning runs before the update's end."""
        self._advance("updates")
        self._is_within_update = False
        if trainer.is_global_zero and self._numbers is not None:
            curates = any(callback.line == CURATE_LINE for callback in algorithm_callbacks(trainer))
            numbers = self._numbers.of_update
            logger.info("%s", update_line(trainer.global_step, trainer.max_epochs or 0, numbers, has_playbook=curates))
        if self._held:
            logger.info("%s", self._held)
            self._held = ""

    # Evaluation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the validation's bar, over its batches of prompts."""
        self._begin("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(self, trainer: Trainer, *others: object) -> None:
        """Move it on."""
        self._advance("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what it came to, behind the line of the update it belongs to."""
        self._end("validation")
        if trainer.state.fn != "fit" or not trainer.is_global_zero or self._numbers is None:
            return  # `resd validate` prints a table
        line = validation_line(trainer.global_step, self._numbers.of_validation)
        if self._is_within_update:
            self._held = line
        else:
            logger.info("%s", line)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the test's bar."""
        self._begin("test", sum(trainer.num_test_batches))

    def on_test_batch_end(self, trainer: Trainer, *others: object) -> None:
        """Move it on."""
        self._advance("test")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it away."""
        self._end("test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the prediction's bar."""
        self._begin("prediction", sum(trainer.num_predict_batches))

    def on_predict_batch_end(self, trainer: Trainer, *others: object) -> None:
        """Move it on."""
        self._advance("prediction")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take it away."""
        self._end("prediction")


def update_line(done: int, total: int, numbers: Mapping[str, float], *, has_playbook: bool) -> str:
    """Return an update in one line: success, loss, playbook, and the tokens and seconds that it cost."""
    spent = spent_on_training(numbers)
    parts = [f"update {done:{len(str(total))}}/{total}"]
    parts += [f"success {numbers['train/per_task']:.2f}", f"loss {numbers['train/loss']:.4f}"]
    if has_playbook:
        parts.append(f"playbook {numbers['playbook/size']:.0f}")
    parts += [f"{spent['generated_tokens']:,.0f} tokens", f"{spent['seconds']:.1f} s"]
    return "  ".join(parts)


def validation_line(done: int, numbers: Mapping[str, float]) -> str:
    """Return a validation in one line: the mean and the best over its samples, and its seconds."""
    prefix = "val/per_task/"
    scores = [f"{name.removeprefix(prefix)} {x:.3f}" for name, x in sorted(numbers.items()) if name.startswith(prefix)]
    seconds = sum(x for name, x in numbers.items() if name.startswith("time/"))
    parts = [*reversed(scores)] or ["no prompt within data.max_prompt_tokens"]
    return "  ".join([f"validation after {done} updates:", *parts, f"{seconds:.1f} s"])
