"""Where a scene's objects really are: the Box2D engine (RESD, Tasks: ground truth by Box2D).

With these settings it comes within one unit of 98 of 100 public rows of easy, and of 58 of 60 of medium; the tolerance
is 50. Coarser steps, or a smaller scale, under which Box2D's skin around each polygon grows, agree with fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from resd_lightning.config import ConfigError
from resd_lightning.tasks.bouncing_sim.scenes import BOX_RADIUS, CENTRE, OBJECT_RADIUS, Positions, Scene, corners

_STEP_S: Final = 0.001
_SCALE: Final = 0.1
_ITERATIONS: Final = 10


def simulate(scene: Scene, times: Sequence[float]) -> tuple[Positions, ...]:
    """Return the objects' positions at each time, in seconds and in rising order, rounded to two decimals.

    Raises:
        ConfigError: Box2D is not installed; the text names the extra.
    """
    try:
        from Box2D import b2EdgeShape, b2PolygonShape, b2World
    except ImportError as error:
        raise ConfigError(
            "generating BouncingSim problems needs the extra `bouncing`: pip install 'resd-lightning[bouncing]'"
        ) from error
    world = b2World(gravity=(0, 0))
    box = world.CreateStaticBody()
    walls = [((CENTRE + x) * _SCALE, (CENTRE + y) * _SCALE) for x, y in corners(scene.sides, BOX_RADIUS)]
    for wall in zip(walls, walls[1:] + walls[:1], strict=True):
        box.CreateFixture(shape=b2EdgeShape(vertices=wall), friction=0, restitution=1)
    bodies = []
    for polygon in scene.polygons:
        body = world.CreateDynamicBody(
            position=(polygon.x * _SCALE, polygon.y * _SCALE),
            linearVelocity=(polygon.vx * _SCALE, polygon.vy * _SCALE),
            fixedRotation=True,
            allowSleep=False,
        )
        shape = b2PolygonShape(vertices=corners(polygon.sides, OBJECT_RADIUS * _SCALE))
        body.CreateFixture(shape=shape, density=1, friction=0, restitution=1)
        bodies.append(body)
    seen: list[Positions] = []
    steps = 0
    for time in times:
        while steps < round(time / _STEP_S):
            world.Step(_STEP_S, _ITERATIONS, _ITERATIONS)
            steps += 1
        seen.append(tuple((round(b.position[0] / _SCALE, 2), round(b.position[1] / _SCALE, 2)) for b in bodies))
    return tuple(seen)
