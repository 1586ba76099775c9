"""Generates problems whose tests mean something: not too chaotic to predict, not solved by straight lines."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

from jinja2 import FileSystemLoader, StrictUndefined
from jinja2.sandbox import SandboxedEnvironment

from resd_lightning.records import Example, Message
from resd_lightning.tasks.bouncing_sim.scenes import (
    BOX_RADIUS,
    CENTRE,
    OBJECT_RADIUS,
    Difficulty,
    Positions,
    Scene,
    draw_scene,
    mean_distance,
    nudged,
)
from resd_lightning.tasks.bouncing_sim.simulate import simulate

TIMES: Final = tuple(round(0.1 * number, 1) for number in range(1, 16))
TOLERANCE: Final = 50.0
SIZES: Final[dict[Difficulty, tuple[int, int]]] = {
    "basic": (640, 100),
    "easy": (640, 100),
    "medium": (320, 100),
    "hard": (320, 100),
    "extreme": (320, 100),
}
"""Training and test problems; easy and medium as in the paper."""

_NUDGE: Final = 0.1
_NUDGES: Final = 3


def generate(
    seed: int, split: Literal["train", "test"], difficulty: Difficulty, size: int | None, timeout_s: float
) -> Iterator[Example]:
    """Yield the split's problems; each is drawn from a generator of its own, so fewer are the first of more.

    Raises:
        ConfigError: Box2D is not installed.
    """
    template = SandboxedEnvironment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        autoescape=False,  # the text goes to a model
        trim_blocks=True,
    ).get_template("problem.jinja")
    whole = SIZES[difficulty][0 if split == "train" else 1]
    for number in range(whole if size is None else min(size, whole)):
        rng = random.Random(f"bouncing_sim {seed} {split} {difficulty} {number}")
        scene, truth = draw_problem(difficulty, rng)
        text = template.render(
            scene=scene,
            radius=BOX_RADIUS,
            centre=CENTRE,
            object_radius=OBJECT_RADIUS,
            last_time=TIMES[-1],
            tolerance=TOLERANCE,
            timeout_s=timeout_s,
        )
        yield Example(
            id=f"{difficulty}_{split}_{number}",
            messages=(Message(role="user", content=text),),
            answer=tuple(_assert(t, positions) for t, positions in zip(TIMES, truth, strict=True)),
        )


def draw_problem(difficulty: Difficulty, rng: random.Random) -> tuple[Scene, tuple[Positions, ...]]:
    """Return a scene with its true positions at each of `TIMES`, drawing again until it is fit to be asked."""
    while True:
        scene = draw_scene(difficulty, rng)
        truth = simulate(scene, TIMES)
        if not is_straight(scene, truth) and not is_chaotic(scene, truth, rng):
            return scene, truth


def is_chaotic(scene: Scene, truth: tuple[Positions, ...], rng: random.Random) -> bool:
    """Whether moving the starts by a tenth of a unit fails a test: then it asks for luck, and not for mechanics."""
    return any(
        mean_distance(here, there) > TOLERANCE
        for _ in range(_NUDGES)
        for here, there in zip(simulate(nudged(scene, _NUDGE, rng), TIMES), truth, strict=True)
    )


def is_straight(scene: Scene, truth: tuple[Positions, ...]) -> bool:
    """Whether straight lines pass every test."""
    return all(
        mean_distance(tuple((p.x + p.vx * t, p.y + p.vy * t) for p in scene.polygons), positions) <= TOLERANCE
        for t, positions in zip(TIMES, truth, strict=True)
    )


def _assert(t: float, positions: Positions) -> str:
    return f"assert check_distance(predict_position({t:.2f}), {[list(p) for p in positions]}) <= {TOLERANCE}"
