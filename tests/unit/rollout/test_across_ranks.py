"""Processes of one machine that take turns, without waiting for one that has failed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

TURN = """
import sys, time
from resd_lightning.rollout.across_ranks import in_turn
with in_turn(sys.argv[1]):
    print("begins", time.time(), flush=True)
    time.sleep(float(sys.argv[2]))
    print("ends", time.time(), flush=True)
"""


def take_turn(what: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", TURN, what, str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_turns_do_not_overlap_and_end_with_a_process_that_is_killed_in_its_own(tmp_path: Path) -> None:
    what = f"test-{tmp_path.name}-{time.time_ns()}"
    with take_turn(what, 600) as first:
        assert first.stdout is not None
        assert first.stdout.readline().startswith("begins")
        others = [take_turn(what, 0.2) for _ in range(2)]
        time.sleep(0.5)
        first.kill()
    killed_at = time.time()
    said = [process.communicate(timeout=120)[0].split() for process in others]
    turns = sorted((float(begins), float(ends)) for _, begins, _, ends in said)
    assert killed_at - 1 <= turns[0][0] < turns[0][1] <= turns[1][0] < turns[1][1]
