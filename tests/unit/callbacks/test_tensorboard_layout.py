from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from resd_lightning.callbacks import TensorBoardLayout
from resd_lightning.callbacks.tensorboard_layout import layout

MODULE = cast("LightningModule", SimpleNamespace(data=SimpleNamespace(validation_samples=4)))
OPTIONS = {"model": {"teacher": {"ema_rate": 0.5}, "callbacks": ["A", "B"]}, "seed_everything": 3}


def trainer(sink: TensorBoardLogger, step: int = 0) -> Trainer:
    return cast("Trainer", SimpleNamespace(global_step=step, is_global_zero=True, loggers=[sink]))


def written(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"tensors": 0})
    events.Reload()
    return events


def test_a_new_run_gets_its_layout_and_its_hyperparameters_and_no_scalar(tmp_path: Path) -> None:
    sink = TensorBoardLogger(tmp_path, "tensorboard", version="")
    TensorBoardLayout(OPTIONS).on_fit_start(trainer(sink), MODULE)
    sink.experiment.flush()
    events = written(Path(sink.log_dir))
    charts = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert [category.title for category in charts.category] == ["learning", "context", "teacher", "cost"]
    data = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    told = HParamsPluginData.FromString(data).session_start_info.hparams
    assert told["model.teacher.ema_rate"].number_value == 0.5
    assert told["model.callbacks"].string_value == "['A', 'B']"
    assert told["seed_everything"].number_value == 3
    assert events.Tags()["scalars"] == []


def test_a_resumed_run_writes_neither_again(tmp_path: Path) -> None:
    sink = TensorBoardLogger(tmp_path, "tensorboard", version="")
    TensorBoardLayout(OPTIONS).on_fit_start(trainer(sink, step=5), MODULE)
    sink.experiment.flush()
    assert written(Path(sink.log_dir)).Tags()["tensors"] == []


@pytest.mark.parametrize("samples", [1, 4])
def test_names_are_regular_expressions_that_match_the_scores(samples: int) -> None:
    names = [name for charts in layout(samples).values() for _, names in charts.values() for name in names]
    for name in names:
        re.compile(name)
    for metric in (f"val/per_task/mean@{samples}", f"val/per_test/best@{samples}", "time/rollout_s", "train/loss"):
        assert any(re.fullmatch(name, metric) for name in names), metric
