from __future__ import annotations

import math
import random

import pytest

from resd_lightning.tasks.bouncing_sim import BouncingSimTask, generator
from resd_lightning.tasks.bouncing_sim.asserts import read_asserts
from resd_lightning.tasks.bouncing_sim.generator import SIZES, TIMES, generate, is_chaotic, is_straight
from resd_lightning.tasks.bouncing_sim.scenes import (
    CENTRE,
    DIFFICULTIES,
    LEVELS,
    OBJECT_RADIUS,
    Difficulty,
    Polygon,
    Scene,
    corners,
    draw_scene,
    mean_distance,
    nudged,
)
from resd_lightning.tasks.bouncing_sim.simulate import simulate

ALONE = Scene(4, (Polygon(4, 750, 750, 100.0, 100.0),))


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_drawn_scene_is_of_its_level_and_nothing_in_it_touches(difficulty: Difficulty) -> None:
    level = LEVELS[difficulty]
    for number in range(30):
        scene = draw_scene(difficulty, random.Random(number))
        assert level.objects[0] <= len(scene.polygons) <= level.objects[1]
        places = [(p.x, p.y) for p in scene.polygons]
        for at, polygon in enumerate(scene.polygons):
            assert level.speed[0] - 0.02 <= math.hypot(polygon.vx, polygon.vy) <= level.speed[1] + 0.02
            assert all(math.dist(places[at], other) > 2 * OBJECT_RADIUS for other in places[:at])
            assert math.dist(places[at], (CENTRE, CENTRE)) < 375 - OBJECT_RADIUS
    assert draw_scene(difficulty, random.Random(1)) == draw_scene(difficulty, random.Random(1))


def test_corners_go_counter_clockwise_from_the_right() -> None:
    assert [(round(x, 9), round(y, 9)) for x, y in corners(4, 2.0)] == [(2, 0), (0, 2), (-2, 0), (0, -2)]


def test_the_mean_distance_is_over_objects() -> None:
    assert mean_distance(((0, 0), (0, 0)), ((3, 4), (0, 1))) == 3.0


def test_a_nudge_moves_starts_by_no_more_and_nothing_else() -> None:
    moved = nudged(ALONE, 0.1, random.Random(0)).polygons[0]
    assert 0 < math.dist((moved.x, moved.y), (750, 750)) <= 0.15
    assert (moved.sides, moved.vx, moved.vy) == (4, 100.0, 100.0)


def test_a_scene_that_a_nudge_throws_off_is_chaotic(monkeypatch: pytest.MonkeyPatch) -> None:
    truth = tuple(((750.0, 750.0),) for _ in TIMES)
    for away, chaotic in ((49.0, False), (51.0, True)):
        last = ((750.0 + away, 750.0),)
        monkeypatch.setattr(generator, "simulate", lambda scene, times, last=last: (*truth[:-1], last))
        assert is_chaotic(ALONE, truth, random.Random(0)) is chaotic


def test_a_scene_is_straight_where_no_bounce_matters() -> None:
    straight = tuple(((750 + 100 * t, 750 + 100 * t),) for t in TIMES)
    assert is_straight(ALONE, straight)
    assert not is_straight(ALONE, (*straight[:-1], ((750.0, 750.0),)))


def test_box2d_moves_along_lines_and_bounces_elastically() -> None:
    pytest.importorskip("Box2D")
    # The box's corners are at 375 along the axes: its wall x + y = 375 is hit head on by a square whose side is
    # parallel to it, after (375 / sqrt 2 - 20 / sqrt 2) units at 100 sqrt 2 a second, and thrown straight back.
    seen = simulate(ALONE, (1.0, 1.7, 2.5))
    assert seen[0][0] == pytest.approx((850, 850), abs=0.1)
    assert seen[1][0] == pytest.approx((920, 920), abs=0.1)
    back = 750 + 2 * 177.5 - 250
    assert seen[2][0] == pytest.approx((back, back), abs=1.0)


def test_box2d_lets_two_equal_hexagons_exchange_their_velocities() -> None:
    pytest.importorskip("Box2D")
    scene = Scene(6, (Polygon(6, 750, 700, 0.0, 100.0), Polygon(6, 750, 800, 0.0, -100.0)))
    (one, other) = simulate(scene, (1.0,))[0]
    # side meets side when 2 x 20 cos 30 = 34.64 apart, after 0.327 s; they go back for 0.673 s
    assert one == pytest.approx((750, 665.4), abs=1.0)
    assert other == pytest.approx((750, 834.6), abs=1.0)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_generated_problems_are_fit_to_be_asked_and_the_same_every_time(difficulty: Difficulty) -> None:
    pytest.importorskip("Box2D")
    problems = list(generate(3, "train", difficulty, 4, 10.0))
    assert problems == list(generate(3, "train", difficulty, 4, 10.0))
    assert problems[:2] == list(generate(3, "train", difficulty, 2, 10.0))
    assert problems[0].question != next(generate(3, "test", difficulty, 1, 10.0)).question
    for problem in problems:
        tests = read_asserts(problem.answer)
        assert tuple(test.t for test in tests) == TIMES
        assert {len(test.positions) for test in tests} == {problem.question.count("- Object")}
        assert all(math.dist(place, (CENTRE, CENTRE)) < 375 for test in tests for place in test.positions)


def test_the_task_generates_where_no_path_is_given() -> None:
    pytest.importorskip("Box2D")
    task = BouncingSimTask(difficulty="basic", train_size=3, test_size=2)
    train, test = task.examples("train"), task.examples("test")
    assert ([example.id for example in train], len(test)) == (["basic_train_0", "basic_train_1", "basic_train_2"], 2)
    assert task.examples("val") is test
    table = {check.t: check.positions for check in read_asserts(train[0].answer)}
    response = f"```python\ndef predict_position(t):\n    return {table}[t]\n```"
    assert task.verify(train[0], response).reward == 1.0
    assert SIZES["easy"] == (640, 100)
    assert SIZES["medium"] == (320, 100)
