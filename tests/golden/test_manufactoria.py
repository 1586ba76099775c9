from __future__ import annotations

import json
from pathlib import Path

import pytest

from resd_lightning.tasks.manufactoria import ManufactoriaSyntaxError, parse

GOLDEN = Path(__file__).resolve().parents[2] / ".." / "shared" / "golden" / "manufactoria_open.json"


@pytest.fixture(scope="module")
def programs() -> list[dict[str, object]]:
    if not GOLDEN.is_file():
        pytest.skip(f"{GOLDEN} is absent")
    loaded: list[dict[str, object]] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return loaded


def does_parse(program: str) -> bool:
    try:
        parse(program)
    except ManufactoriaSyntaxError:
        return False
    return True


def test_every_golden_program_is_judged_valid_or_not(programs):
    assert len(programs) >= 200
    for number, entry in enumerate(programs):
        assert does_parse(entry["program"]) == entry["parses"], f"program {number}"


def test_every_golden_run_agrees(programs):
    compared = 0
    for number, entry in enumerate(programs):
        if not entry["parses"]:
            continue
        program = parse(entry["program"])
        for tape, *expected in entry["runs"]:
            run = program.run(tape)
            assert [run.finished, run.tape, run.reason, run.steps] == expected, f"program {number} on {tape!r}"
            compared += 1
    assert compared > 1000
