"""Pictures that nobody asked for keep to their share of a run's time; those that were asked for are all drawn."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import TensorBoardLogger

from resd_lightning.callbacks import DrawPictures, WriteDiagnostics, draw_pictures
from resd_lightning.config import ConfigError
from resd_lightning.costs import Costs
from resd_lightning.diagnostics import pictures
from resd_lightning.run_folder import RunFolder, append_lines

SECONDS_A_PICTURE = 0.2


class World:
    """A run whose updates take a second each, with a validation before every fourth, and its clock."""

    def __init__(self, folder: Path) -> None:
        self.now = 0.0
        self.shown: list[tuple[str, int]] = []
        run = RunFolder(folder)
        append_lines(run.diagnostics, [{"kind": "successes", "updates_done": 0, "samples": 1, "by_prompt": {"v": 1}}])
        seen = {"kind": "token_losses", "example": "e", "reward": 0.0, "is_success": False}
        self.module = SimpleNamespace(
            data=SimpleNamespace(record=SimpleNamespace(observations=[seen]), costs=Costs()),
        )
        self.trainer = SimpleNamespace(
            state=SimpleNamespace(fn="fit"),
            is_global_zero=True,
            loggers=[TensorBoardLogger(folder)],
            callbacks=[WriteDiagnostics(run)],
            global_step=0,
        )

    def show(self, sinks: object, name: str, figure: object, step: int) -> None:
        self.now += SECONDS_A_PICTURE
        self.shown.append((name, step))

    def go(self, callback: DrawPictures, updates: int) -> list[tuple[str, int]]:
        callback.on_fit_start(self.trainer, self.module)  # type: ignore[arg-type]
        for update in range(updates):
            if update % 4 == 0:
                callback.on_validation_end(self.trainer, self.module)  # type: ignore[arg-type]
            self.now += 1
            self.trainer.global_step = update + 1
            callback.on_train_epoch_end(self.trainer, self.module)  # type: ignore[arg-type]
        return self.shown


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World(tmp_path)
    monkeypatch.setattr(draw_pictures.time, "perf_counter", lambda: world.now)
    monkeypatch.setattr(draw_pictures, "_show", world.show)
    monkeypatch.setattr(pictures, "successes_picture", lambda lines: None)
    monkeypatch.setattr(pictures, "token_losses_picture", lambda seen, title: None)
    return world


def test_without_a_share_every_picture_is_drawn(world: World) -> None:
    losses = [("token_losses/failure", step) for step in range(1, 9)]
    successes = [("successes_per_prompt", step) for step in (0, 4)]
    assert world.go(DrawPictures(), 8) == [successes[0], *losses[:4], successes[1], *losses[4:]]


def test_with_a_share_successes_and_token_losses_take_turns_within_it(world: World) -> None:
    shown = world.go(DrawPictures(time_share=0.01), 200)
    steps = [step for name, step in shown if name == "successes_per_prompt"]
    assert steps[0] == 52  # half a second is what the first one is taken to need: at 1 %, after 50 s
    assert [name for name, _ in shown] == ["successes_per_prompt", "token_losses/failure"] * (len(shown) // 2)
    assert len(steps) > 2
    assert len(shown) * SECONDS_A_PICTURE <= 0.01 * world.now


def test_where_there_is_no_tensorboard_nothing_is_drawn(world: World) -> None:
    world.trainer.loggers = []
    assert world.go(DrawPictures(), 8) == []


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"DrawPictures.time_share must be between 0 and 1"):
        DrawPictures(time_share=1.5)
