"""Runs what is unfinished, several processes at a time."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from resd_lightning.compare.plan import Options, PlannedRun
from resd_lightning.config import ConfigError, require
from resd_lightning.run_folder import replace_text

logger = logging.getLogger(__name__)


def cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def choose_jobs(asked: int | None, runs: Sequence[PlannedRun]) -> int:
    """Return how many runs go at a time: as asked, else one per core for runs on the CPU, and one on anything else."""
    if asked is not None:
        require(asked >= 1, "jobs", "at least 1", asked)
        return asked
    on_cpu = all(cast("Options", run.options["trainer"])["accelerator"] == "cpu" for run in runs)
    return max(1, min(cores(), len(runs))) if on_cpu else 1


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """Hold a study's folder while the body runs, and while a process that inherits the yielded descriptor lives.

    Raises:
        ConfigError: Another comparison, or a run that one has left behind, is at work there.
    """
    path = out / "runs" / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"--out {out}: another `resd compare`, or a run that it started, works there") from error
        yield file.fileno()


class Launcher:
    """Starts runs as processes of their own, and ends them where this process is ended.

    Args:
        jobs: Runs at a time, which share the cores.
        lock: Descriptor that the processes inherit.
    """

    def __init__(self, jobs: int, lock: int) -> None:
        self.jobs = jobs
        self._lock = lock
        self._processes: list[subprocess.Popen[bytes]] = []

    def run_all(self, runs: Sequence[PlannedRun]) -> dict[PlannedRun, int]:
        """Run, or go on with, each of the runs; return the exit status of those that failed."""
        failed: dict[PlannedRun, int] = {}
        previous = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
        pool = ThreadPoolExecutor(self.jobs)
        try:
            futures = {pool.submit(self._run, run): run for run in runs}
            for done, future in enumerate(as_completed(futures), start=1):
                run, status = futures[future], future.result()
                outcome = "finished" if status == 0 else f"failed with exit status {status}, see {run.log}"
                logger.info("[%d/%d] %s, seed %d: %s", done, len(runs), run.variant, run.seed, outcome)
                if status != 0:
                    failed[run] = status
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in self._processes:
                process.terminate()  # nothing to those that have ended
            pool.shutdown()
            signal.signal(signal.SIGTERM, previous)
        return failed

    @property
    def environment(self) -> dict[str, str]:
        """What a run's environment says of threads; what the user's own says of them wins."""
        # Threads that wait for each other asleep: spinning, they take the cores from the runs beside them.
        wanted = {"OMP_NUM_THREADS": str(max(1, cores() // self.jobs)), "OMP_WAIT_POLICY": "PASSIVE"}
        return {name: os.environ.get(name, value) for name, value in wanted.items()}

    def _run(self, run: PlannedRun) -> int:
        arguments = list(run.arguments) if run.state == "new" else [*run.arguments, "--ckpt_path=last"]
        logger.info("%s, seed %d: %s", run.variant, run.seed, "starts" if run.state == "new" else "goes on")
        facts = {"cpu": cpu(), "cores": cores(), "jobs": self.jobs, **self.environment}
        replace_text(run.machine, json.dumps(facts) + "\n")
        with run.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "resd_lightning", "fit", *arguments],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(self._lock,),  # if this process is killed, the folder stays locked until the run has ended
            )
            self._processes.append(process)
            return process.wait()


def cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
