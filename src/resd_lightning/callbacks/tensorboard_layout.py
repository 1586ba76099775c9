"""Arranges a run's scalars in TensorBoard: charts by what they are about, and a row in its table of hyperparameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from resd_lightning.callbacks.tensorboard import tensorboards
from resd_lightning.config import flat

if TYPE_CHECKING:
    from resd_lightning.module import ResdModule

Charts = dict[str, dict[str, list[object]]]


class TensorBoardLayout(Callback):
    """Writes the layout of the tab Custom Scalars, and the run's settings for the tab HParams, when a run begins.

    A run's row in HParams shows the latest value of each score, so runs compare there while they last.

    Args:
        options: The run's whole configuration.
    """

    def __init__(self, options: Mapping[str, object]) -> None:
        self._options = options

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write both, where there is a TensorBoard logger; what a resumed run's folder has already is left."""
        module: ResdModule = pl_module  # type: ignore[assignment]
        if trainer.global_step > 0:
            return
        for sink in tensorboards(trainer):
            samples = module.data.validation_samples
            sink.experiment.add_custom_scalars(layout(samples))
            self._add_hyperparameters(sink, samples)

    def _add_hyperparameters(self, sink: TensorBoardLogger, samples: int) -> None:
        # Imported here: it takes a second, which only a run that logs to TensorBoard should cost.
        from torch.utils.tensorboard.summary import hparams

        settings = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flat(self._options).items()
        }
        scores = {f"val/{score}@{samples}": 0.0 for score in ("per_task/mean", "per_task/best", "per_test/mean")}
        # Summaries by themselves: the logger's own way would also log the zeros as scores of update 0.
        for summary in hparams(settings, scores):  # type: ignore[no-untyped-call]  # torch leaves it untyped
            sink.experiment.file_writer.add_summary(summary)


def layout(samples: int) -> Charts:
    """Return the charts by chapter; names are regular expressions over the metrics'.

    Args:
        samples: Responses per prompt in validation; k of mean@k.
    """
    return {
        "learning": {
            "success per task": _chart(f"val/per_task/(mean|best)@{samples}", "train/per_task"),
            "success per test case": _chart(f"val/per_test/(mean|best)@{samples}", "train/per_test"),
            "prompts by samples solved": _chart("val/solved_.*"),
            "loss": _chart("train/loss", "loss/divergence"),
            "gradient norm": _chart("train/grad_norm"),
            "response tokens": _chart("rollout/response_tokens"),
            "truncated responses": _chart("rollout/truncated_share"),
        },
        "context": {
            "playbook size": _chart("playbook/size", "solutions/size"),
            "births and deaths": _chart("playbook/(births|deaths|pruned)"),
            "entries helpful, harmful, true": _chart("playbook/(helpful|harmful|true)_share"),
            "tags": _chart("playbook/tagged_.*"),
            "malformed answers": _chart("(reflect|tag|curate)/problem/.*"),
        },
        "teacher": {
            "sections in its prompt": _chart("teacher/.*_share"),
            "prompt tokens": _chart("teacher/prompt_tokens", "teacher/shared_prefix_tokens"),
            "right in context": _chart("in_context/(full|student|headroom|nothing)"),
            "attribution": _chart("attribution/.*"),
            "clipped": _chart("loss/clipped_.*", "grpo/clipped_share"),
            "distance from the student": _chart("teacher/lag"),
        },
        "cost": {
            "seconds": _chart("time/.*"),
            "tokens generated": _chart("tokens/.*_generated"),
            "tokens read": _chart("tokens/.*_prompt"),
        },
    }


def _chart(*names: str) -> list[object]:
    return ["Multiline", list(names)]
