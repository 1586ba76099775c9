"""Measures how many trivial programs a second the sandbox runs, under each kind of isolation that works here.

python benchmarks/sandbox.py --programs 200 --workers 2
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor

from resd_lightning.sandbox import Ended, Limits, Program
from resd_lightning.sandbox.command import KINDS, Kind
from resd_lightning.sandbox.execute import SandboxError, execute
from resd_lightning.sandbox.isolation import probe

PROGRAM = Program("import math\ndef f(t):\n    return [[math.cos(t), t]]", function="f", calls=((0.5,), (1.0,)))


def per_second(kind: Kind, programs: int, workers: int) -> float:
    """Return programs per second, their start included."""
    limits = Limits()
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(lambda _: execute(PROGRAM, limits, kind), range(programs)))
    seconds = time.perf_counter() - began
    assert all(result.ended is Ended.OK and len(result.calls) == 2 for result in results)
    return programs / seconds


def main() -> None:
    """Print one line per kind of isolation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=200, help="programs to run under each kind")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="programs at the same time")
    args = parser.parse_args()
    print(f"Python {platform.python_version()}, Linux {platform.release()}, {os.cpu_count()} cores, ", end="")
    print(f"load {os.getloadavg()[0]:.1f}, user id {os.geteuid()}")
    for kind in KINDS:
        try:
            missing = ", ".join(probe(kind).missing) or "nothing"
        except SandboxError as error:
            print(f"{kind}: {error}")
            continue
        for workers in args.workers:
            print(
                f"{kind}, {workers} at a time: {per_second(kind, args.programs, workers):.0f} programs a second", end=""
            )
            print(f" (missing: {missing})")


if __name__ == "__main__":
    main()
