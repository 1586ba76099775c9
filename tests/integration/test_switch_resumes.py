"""A run that changes its objective in its middle, resumed from any checkpoint, ends as if it had never stopped."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from resume_toy import CoinTask, ReflectiveEngine
from test_kill_and_resume import assert_same_state, jsonl, without_times
from toy import ALGORITHM_1, LORA

from resd_lightning.callbacks import KeepCheckpoints, RecordMetrics, SwitchObjective, WriteTranscripts
from resd_lightning.config import ContextConfig, OptimizerConfig, PolicyConfig, SamplingConfig, TeacherConfig
from resd_lightning.datamodule import RolloutDataModule
from resd_lightning.module import ResdModule
from resd_lightning.run_folder import RunFolder
from resd_lightning.training import derived_arguments

SHORT = SamplingConfig(max_new_tokens=8)
NUM_UPDATES, SWITCHED_AT = 6, 3


class KeepAll(Checkpoint):
    """Copies the run's folder as each update leaves it."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self._folder, self._copies = folder, copies

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        shutil.copytree(self._folder, self._copies / str(trainer.global_step))


@dataclass(frozen=True)
class Finished:
    """What a run left."""

    checkpoint: Mapping[str, object]
    metrics: list[dict[str, object]]
    transcripts: list[dict[str, object]]


def run(base: Path, folder: Path, copies: Path | None = None) -> Finished:
    """Run to the end, from where the folder's checkpoint is, if it holds one."""
    torch.manual_seed(0)  # draws the adapters' A
    paths = RunFolder(folder)
    module = ResdModule(
        PolicyConfig(str(base), dtype="float32", lora=LORA),
        TeacherConfig(ema_rate=0.25),
        optimizer=OptimizerConfig(learning_rate=0.02, warmup_updates=2),
        context=ContextConfig(max_entries=4, reflect=SHORT, tag=SHORT, curate=SHORT),
    )
    data = RolloutDataModule(
        CoinTask(NUM_UPDATES),
        ReflectiveEngine(),
        batch_size=2,
        inner_updates=2,
        micro_batch_size=2,
        rollout=SHORT,
        validation=SHORT,
        validation_samples=2,
    )
    switch = SwitchObjective(rollouts_per_prompt=4, success_rate=0.25, window=SWITCHED_AT)
    observers = [RecordMetrics(paths), WriteTranscripts(paths), KeepCheckpoints(paths, {})]
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        callbacks=[
            *(line() for line in ALGORITHM_1),
            switch,
            *observers,
            *([] if copies is None else [KeepAll(folder, copies)]),
        ],
        **derived_arguments(data.num_updates, data.inner_updates),
    )
    is_resumed = paths.last_checkpoint.exists()
    trainer.fit(module, data, ckpt_path=paths.last_checkpoint if is_resumed else None, weights_only=True)
    checkpoint = torch.load(paths.last_checkpoint, weights_only=True)
    return Finished(checkpoint, without_times(jsonl(paths.metrics)), jsonl(paths.transcripts))


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("copies")


@pytest.fixture(scope="module")
def whole(tiny_base: Path, copies: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run(tiny_base, tmp_path_factory.mktemp("whole"), copies)


def test_the_run_switches_in_its_middle(whole: Finished) -> None:
    updates = [line for line in whole.metrics if line["phase"] == "train"]
    assert [line["switch/is_on"] for line in updates] == [0, 0, 0, 1, 1, 1]
    assert [line["requests/rollout"] for line in updates] == [2, 2, 2, 8, 8, 8]
    assert [line.get("requests/reflect", 0) > 0 for line in updates[SWITCHED_AT:]] == [False] * 3
    assert sum(line.get("requests/reflect", 0) for line in updates) > 0
    assert all(line["grpo/without_rollout_log_probs"] == 0 for line in updates[SWITCHED_AT:])
    # The comparison is worth something: both objectives moved the weights.
    assert any(line["train/grad_norm"] > 0 for line in updates[:SWITCHED_AT])
    assert any(line["grpo/log_ratio"] > 0 for line in updates[SWITCHED_AT:] if "grpo/log_ratio" in line)


@pytest.mark.parametrize("updates_done", range(1, NUM_UPDATES))
def test_it_resumes_to_the_bit_before_at_and_after_the_switch(
    tiny_base: Path, whole: Finished, copies: Path, updates_done: int
) -> None:
    resumed = run(tiny_base, copies / str(updates_done))
    for part in ("resd", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_same_state(whole.checkpoint[part], resumed.checkpoint[part], part)
    assert whole.checkpoint["callbacks"] == resumed.checkpoint["callbacks"]
    assert whole.metrics == resumed.metrics
    assert whole.transcripts == resumed.transcripts
