"""Processes of one machine that take turns, without waiting for one that has failed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

TURN = """
import sys, time
from resd_lightning.rollout.across_ranks import in_turn
print("waits", flush=True)
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
        assert says(first).startswith("waits")
        assert says(first).startswith("begins")
        others = [take_turn(what, 1) for _ in range(2)]
        assert [says(other).startswith("waits") for other in others] == [True, True]
        time.sleep(0.5)  # long enough for them to begin, if the turn weren't held
        first.kill()
        first.wait()
        killed_at = time.time()
    said = [other.communicate(timeout=120)[0].split() for other in others]
    turns = sorted((float(begins), float(ends)) for _, begins, _, ends in said)
    assert turns[0][0] > killed_at - 0.4
    assert turns[0][1] <= turns[1][0]


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()
