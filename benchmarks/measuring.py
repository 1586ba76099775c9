"""What the benchmarks measure with: memory and time of a process, a case in a process of its own, and where it ran."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from resd_lightning.compare.launch import cpu


def status_mib(key: str) -> float:
    """Return an amount of this process's memory as Linux keeps it, such as VmRSS or its peak, VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


class Stopwatch:
    """Seconds and peak of memory of some work on the CPU, in parts that follow on each other.

    A part's peak is what the process holds above what it held when the watch was started.
    """

    def __init__(self) -> None:
        self.parts: dict[str, dict[str, float]] = {}
        self.start()

    def start(self) -> None:
        """Start from here, with no parts."""
        self.parts = {}
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and is kept for later isn't in use
        self._held_mib = status_mib("VmRSS")
        self._begin_part()

    def _begin_part(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        self._processor, self._wall = time.process_time(), time.perf_counter()

    def end_part(self, name: str) -> None:
        """End the part that is running, and begin the next."""
        self.parts[name] = {
            "seconds": time.process_time() - self._processor,
            "wall_s": time.perf_counter() - self._wall,
            "peak_mib": status_mib("VmHWM") - self._held_mib,
        }
        self._begin_part()

    def total(self) -> dict[str, float]:
        """Return seconds of all parts, and the largest of their peaks."""
        parts = self.parts.values()
        seconds = {key: sum(part[key] for part in parts) for key in ("seconds", "wall_s")}
        return {**seconds, "peak_mib": max(part["peak_mib"] for part in parts)}


def cost(work: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return by how many MiB memory rises while `work` runs, and the seconds of the processor or, on a GPU, elapsed."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20, time.perf_counter() - began
    watch = Stopwatch()
    work()
    watch.end_part("work")
    return watch.parts["work"]["peak_mib"], watch.parts["work"]["seconds"]


def run_apart(script: str, arguments: Sequence[str]) -> dict[str, object]:
    """Run a script in a process of its own and return the JSON object in the last line of its output.

    Raises:
        CalledProcessError: It failed; what it said of that is on this process's error output.
    """
    # Blocks from a megabyte on go back to the system when they are freed, so that memory held is memory in use.
    # Threads that wait for each other asleep take no processor time from those that work.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def surroundings(*packages: str) -> dict[str, dict[str, object]]:
    """Return the machine and the versions of Python and of those of some packages that are installed."""
    versions: dict[str, object] = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    load = round(os.getloadavg()[0], 1)
    return {"machine": {"cpu": cpu(), "cores": os.cpu_count(), "load": load}, "versions": versions}


def rounded(value: object, digits: int = 4) -> object:
    """Return JSON values with all their fractions rounded."""
    if isinstance(value, dict):
        return {key: rounded(one, digits) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one, digits) for one in value]
    return round(value, digits) if isinstance(value, float) else value


def write(path: Path | None, report: dict[str, object]) -> None:
    """Write a report as JSON; None writes nothing."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n")
