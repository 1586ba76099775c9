"""The judge on public rows: programs that look the answers up, wholly, in part, or not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from resd_lightning.records import Example
from resd_lightning.tasks.bouncing_sim import BouncingSimTask
from resd_lightning.tasks.bouncing_sim.asserts import read_asserts
from resd_lightning.tasks.bouncing_sim.scenes import Polygon, Scene, mean_distance
from resd_lightning.tasks.bouncing_sim.simulate import simulate

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data"
SIZES = {"bouncingsim_easy.jsonl": 100, "bouncingsim_medium.jsonl": 60}


@pytest.fixture(params=SIZES)
def task(request: pytest.FixtureRequest) -> BouncingSimTask:
    path = DATA / request.param
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    loaded = BouncingSimTask(test_path=str(path), timeout_s=60.0)
    assert len(loaded.examples("test")) == SIZES[request.param]
    return loaded


def looked_up(example: Example, *, shift: float = 0.0, right_until: float = 9.0) -> str:
    """A response whose program knows the answers: up to a time, and moved in x."""
    table = {test.t: test.positions for test in read_asserts(example.answer)}
    return (
        f"```python\ndef predict_position(t):\n    table = {table}\n"
        f"    return [[x + ({shift} if t <= {right_until} else 1000), y] for x, y in table[t]]\n```"
    )


def check(task: BouncingSimTask, examples: Sequence[Example]) -> None:
    for number, example in enumerate(examples):
        tests = read_asserts(example.answer)
        assert len(tests) == 15
        assert task.verify(example, looked_up(example)).reward == 1.0, example.id
        shifted = task.verify(example, looked_up(example, shift=60.0))
        assert (shifted.reward, shifted.share_passed) == (0.0, 0.0), example.id
        right = 1 + number % 14
        feedback = task.verify(example, looked_up(example, right_until=tests[right - 1].t))
        assert (feedback.reward, feedback.share_passed) == (0.0, right / 15), example.id
        assert f"right up to t = {tests[right - 1].t:g}." in feedback.text


def test_a_look_up_is_scored_by_what_it_knows_on_some_rows(task: BouncingSimTask) -> None:
    check(task, task.examples("test")[::10])


@pytest.mark.slow
def test_a_look_up_is_scored_by_what_it_knows_on_every_row(task: BouncingSimTask) -> None:
    check(task, task.examples("test"))


def scene_of(question: str) -> Scene:
    """The scene that a public row describes."""
    sides = re.search(r"Container 1: regular polygon with (\d+) sides", question)
    assert sides is not None
    number = r"([-\d.]+)"
    found = re.findall(
        rf"polygon \((\d+) sides\), .* position \({number}, {number}\), .* velocity \({number}, {number}\)", question
    )
    polygons = tuple(Polygon(int(sides), *map(float, numbers)) for sides, *numbers in found)
    return Scene(int(sides[1]), polygons)


def test_the_simulator_agrees_with_nearly_every_row_by_a_unit(task: BouncingSimTask) -> None:
    pytest.importorskip("Box2D")
    agreed = 0
    for example in task.examples("test"):
        tests = read_asserts(example.answer)
        seen = simulate(scene_of(example.question), [test.t for test in tests])
        agreed += all(mean_distance(here, test.positions) <= 1.0 for here, test in zip(seen, tests, strict=True))
    assert len(task.examples("test")) - agreed <= 3  # two rows of each file differ
