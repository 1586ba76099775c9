"""Scenes: several regular polygons in a regular polygon, drawn at five difficulties."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Final, Literal, get_args

Difficulty = Literal["basic", "easy", "medium", "hard", "extreme"]
DIFFICULTIES: Final[tuple[Difficulty, ...]] = get_args(Difficulty)

CENTRE: Final = 750
BOX_RADIUS: Final = 375.0
OBJECT_RADIUS: Final = 20.0
SIDES: Final = (3, 4, 5, 6)
_FREE_SPACE: Final = 5.0

Positions = tuple[tuple[float, float], ...]
"""The [x, y] of each object."""


@dataclass(frozen=True)
class Level:
    """What a difficulty draws from; easy and medium are as the public rows have them, the others go on from there.

    Attributes:
        objects: Fewest and most objects.
        speed: Slowest and fastest, in units a second.
    """

    objects: tuple[int, int]
    speed: tuple[float, float]


LEVELS: Final[dict[Difficulty, Level]] = {
    "basic": Level((2, 2), (200.0, 400.0)),
    "easy": Level((3, 3), (400.0, 600.0)),
    "medium": Level((4, 5), (600.0, 800.0)),
    "hard": Level((6, 7), (800.0, 1000.0)),
    "extreme": Level((8, 9), (1000.0, 1200.0)),
}


@dataclass(frozen=True)
class Polygon:
    """One moving object; its first corner points to +x, and it never rotates."""

    sides: int
    x: float
    y: float
    vx: float
    vy: float


@dataclass(frozen=True)
class Scene:
    """A box with so many sides around `CENTRE`, and what moves in it from time 0 on."""

    sides: int
    polygons: tuple[Polygon, ...]


def corners(sides: int, radius: float) -> list[tuple[float, float]]:
    """Return a regular polygon's corners around the origin, counter-clockwise from +x."""
    angles = [2 * math.pi * number / sides for number in range(sides)]
    return [(radius * math.cos(angle), radius * math.sin(angle)) for angle in angles]


def draw_scene(difficulty: Difficulty, rng: random.Random) -> Scene:
    """Return a scene whose objects touch neither the box nor each other."""
    level = LEVELS[difficulty]
    sides = rng.choice(SIDES)
    count = rng.randint(*level.objects)
    polygons: list[Polygon] = []
    while len(polygons) < count:
        x, y = (CENTRE + rng.randint(-300, 300) for _ in range(2))
        if not _is_free(x, y, sides, polygons):
            continue
        speed, angle = rng.uniform(*level.speed), rng.uniform(0, 2 * math.pi)
        vx, vy = round(speed * math.cos(angle), 2), round(speed * math.sin(angle), 2)
        polygons.append(Polygon(rng.choice(SIDES), x, y, vx, vy))
    return Scene(sides, tuple(polygons))


def nudged(scene: Scene, by: float, rng: random.Random) -> Scene:
    """Return the scene with every object's start moved by up to so much in x and in y."""
    return Scene(
        scene.sides,
        tuple(
            Polygon(p.sides, p.x + rng.uniform(-by, by), p.y + rng.uniform(-by, by), p.vx, p.vy) for p in scene.polygons
        ),
    )


def mean_distance(these: Positions, those: Positions) -> float:
    """Return the mean over the objects of their Euclidean distance: what a test compares with its tolerance."""
    return sum(math.dist(one, other) for one, other in zip(these, those, strict=True)) / len(those)


def _is_free(x: float, y: float, sides: int, polygons: list[Polygon]) -> bool:
    """Whether an object's circle fits there, with some space around it."""
    half = math.pi / sides
    room = BOX_RADIUS * math.cos(half) - OBJECT_RADIUS - _FREE_SPACE
    walls = [half * (2 * number + 1) for number in range(sides)]
    in_box = all((x - CENTRE) * math.cos(wall) + (y - CENTRE) * math.sin(wall) <= room for wall in walls)
    return in_box and all(math.dist((x, y), (p.x, p.y)) >= 2 * OBJECT_RADIUS + _FREE_SPACE for p in polygons)
