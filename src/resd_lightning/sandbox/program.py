"""What goes into the sandbox and what comes out of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from resd_lightning.config import require


class Ended(StrEnum):
    """How a program came to its end."""

    OK = "ok"
    EXCEPTION = "exception"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output limit"
    KILLED = "killed"


@dataclass(frozen=True)
class Limits:
    """What one program may use; memory is per process, so all of it together is at most memory x processes."""

    wall_s: float = 10.0
    """Seconds after which the program and all it started are killed."""
    cpu_s: int = 10
    """CPU seconds of each process."""
    memory_mib: int = 512
    """Address space of each process, the interpreter's own 30 MiB included."""
    processes: int = 4
    """Processes and threads at the same time, the program itself included."""
    file_mib: int = 4
    """Size of one file, and of the whole scratch folder under namespaces and bubblewrap."""
    output_kib: int = 256
    """Standard output and error, and separately the returned values; one byte more ends the program."""

    def __post_init__(self) -> None:
        for key in self.__dataclass_fields__:
            require(getattr(self, key) > 0, f"sandbox limits.{key}", "above 0", getattr(self, key))
        require(self.memory_mib >= 64, "sandbox limits.memory_mib", "at least 64", self.memory_mib)


@dataclass(frozen=True)
class Program:
    """One program to run.

    Attributes:
        source: Python text, as the model wrote it.
        stdin: What it reads from standard input.
        function: Name of a function to call once the source has run; empty runs the source alone, as `__main__`.
        calls: The positional arguments of each call, plain data.
    """

    source: str
    stdin: str = ""
    function: str = ""
    calls: tuple[tuple[object, ...], ...] = ()


@dataclass(frozen=True)
class CallOutcome:
    """What one call returned, as plain data, or how it failed.

    Attributes:
        value: The returned numbers, text and containers of them; None also where the call failed. Floats may be nan.
        error: The exception and its line, or that the value is no plain data; empty where the call returned.
    """

    value: object
    error: str = ""


@dataclass(frozen=True)
class SandboxResult:
    """What became of a program; every field is the program's own claim, except `ended` when it was stopped.

    Attributes:
        ended: How it ended; `OK` is exit status 0.
        exit_status: As a shell reports it, 128 + signal for a signal; None where the sandbox stopped the program.
        stdout: Decoded, bounded by the output limit.
        stderr: Likewise; a traceback ends up here.
        calls: Outcomes in the order of the program's calls; shorter where it ended before all were made.
        seconds: Wall time, start-up included.
    """

    ended: Ended
    exit_status: int | None
    stdout: str
    stderr: str
    calls: tuple[CallOutcome, ...]
    seconds: float
