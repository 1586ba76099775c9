"""Runs one program under one kind of isolation and collects what it did, within its limits."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import IO, Final

from resd_lightning.sandbox.command import Kind, command, library_folders
from resd_lightning.sandbox.program import CallOutcome, Ended, Limits, Program, SandboxResult
from resd_lightning.sandbox.runner import MEMORY_STATUS, STARTED, plain, read_plain
from resd_lightning.sandbox.system_calls import call_filter

_CHUNK_BYTES: Final = 1 << 16
_POLL_S: Final = 0.1
_KILL_GRACE_S: Final = 10.0
_SIGNALLED: Final = 128


class SandboxError(RuntimeError):
    """The sandbox itself failed; the program was not started."""


class _Pipes:
    """Reads a process's outputs, each up to a bound.

    Attributes:
        is_over: One of them went past it.
    """

    def __init__(self, fds: Mapping[str, int], limit_bytes: int) -> None:
        self.content = {name: bytearray() for name in fds}
        self.is_over = False
        self._limit_bytes = limit_bytes
        self._selector = selectors.DefaultSelector()
        for name, fd in fds.items():
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, name)

    @property
    def is_open(self) -> bool:
        return bool(self._selector.get_map())

    def read(self, timeout_s: float) -> bool:
        """Take in what is there, waiting for at most the timeout; return whether there was anything."""
        ready = self._selector.select(timeout_s)
        for key, _ in ready:
            content = self.content[key.data]
            if not (chunk := os.read(key.fd, _CHUNK_BYTES)):
                self._selector.unregister(key.fd)
            content += chunk
            if len(content) > self._limit_bytes:
                del content[self._limit_bytes :]
                self.is_over = True
        return bool(ready)

    def close(self) -> None:
        self._selector.close()


def execute(program: Program, limits: Limits, kind: Kind) -> SandboxResult:
    """Run the program and return what became of it.

    Raises:
        SandboxError: This kind of isolation could not be set up.
    """
    with (
        _scratch_folder(kind) as scratch,
        _job_file(program, limits, kind, scratch) as job,
        tempfile.TemporaryFile() as stdin,
    ):
        stdin.write(program.stdin.encode("utf-8", "replace"))
        stdin.seek(0)
        return _run(program, limits, kind, job.fileno(), stdin)


@contextmanager
def _scratch_folder(kind: Kind) -> Iterator[str]:
    """Make an empty folder for a program that gets no file system of its own, and remove it whatever is in it then."""
    if kind != "rlimits":
        yield ""
        return
    folder = tempfile.mkdtemp(prefix="sandbox-")
    os.chmod(folder, 0o777)  # root's programs run as another user
    try:
        yield folder
    finally:
        # Not shutil.rmtree: folders inside each other, a thousand deep, are more than it can take.
        subprocess.run(["/bin/sh", "-c", 'chmod -R u+rwX "$0"; rm -rf "$0"', folder], check=False, capture_output=True)


@contextmanager
def _job_file(program: Program, limits: Limits, kind: Kind, scratch: str) -> Iterator[IO[str]]:
    """Hand the job over in a file that has no name: no size is too large, and nothing to write can block."""
    job = {
        "source": program.source,
        "function": program.function,
        "calls": [[plain(argument) for argument in arguments] for arguments in program.calls],
        "limits": asdict(limits),
        "kind": kind,
        "folders": library_folders(),
        "scratch": scratch,
        "call_filter": call_filter(),
    }
    with tempfile.TemporaryFile("w+", encoding="ascii") as file:
        json.dump(job, file)
        file.flush()
        file.seek(0)
        yield file


def _run(program: Program, limits: Limits, kind: Kind, job_fd: int, stdin: IO[bytes]) -> SandboxResult:
    channel, channel_end = os.pipe()
    with os.fdopen(channel, "rb") as channel_file:
        began = time.monotonic()
        try:
            line = command(kind, limits.file_mib, job_fd, channel_end)
            if line is None:
                raise SandboxError(f"{kind} is not installed")
            process = subprocess.Popen(
                line,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(job_fd, channel_end),
                env={},
                cwd="/",
                start_new_session=True,  # its own group, and no terminal to write to
            )
        except OSError as error:
            raise SandboxError(f"{kind}: {error}") from error
        finally:
            os.close(channel_end)
        with process:
            assert process.stdout is not None
            assert process.stderr is not None
            fds = {"stdout": process.stdout.fileno(), "stderr": process.stderr.fileno()}
            pipes = _Pipes(fds | {"channel": channel_file.fileno()}, limits.output_kib << 10)
            try:
                is_in_time = _collect(process, pipes, began + limits.wall_s)
            finally:
                _end(process)
                pipes.close()
    seconds = time.monotonic() - began
    text = {name: bytes(content).decode("utf-8", "replace") for name, content in pipes.content.items()}
    if not pipes.content["channel"].startswith(STARTED) and is_in_time:
        raise SandboxError(f"{kind}: {text['stderr'].strip()[-500:] or f'exit status {process.returncode}'}")
    stopped = Ended.OUTPUT_LIMIT if pipes.is_over else None if is_in_time else Ended.TIMEOUT
    status = process.returncode if process.returncode >= 0 else _SIGNALLED - process.returncode
    return SandboxResult(
        ended=stopped or _how_it_ended(status, seconds, limits),
        exit_status=None if stopped else status,
        stdout=text["stdout"],
        stderr=text["stderr"],
        calls=_outcomes(text["channel"], len(program.calls)),
        seconds=seconds,
    )


def _collect(process: subprocess.Popen[bytes], pipes: _Pipes, deadline: float) -> bool:
    """Read until the process has ended or an output is over its limit; return False if the deadline came first."""
    while not pipes.is_over:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        if pipes.is_open:
            is_ended = process.poll() is not None  # before reading: what it wrote until then is read below
            if not pipes.read(min(_POLL_S, left_s)) and is_ended:
                return True  # something it left behind holds the outputs open
        else:
            try:
                process.wait(left_s)
            except subprocess.TimeoutExpired:
                return False
            return True
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing running: the waiting process kills the program; bubblewrap's namespace dies with bubblewrap."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(_KILL_GRACE_S)
        except subprocess.TimeoutExpired:
            continue


def _how_it_ended(status: int, seconds: float, limits: Limits) -> Ended:
    if status == 0:
        return Ended.OK
    if status == MEMORY_STATUS:
        return Ended.MEMORY
    if status == _SIGNALLED + signal.SIGXCPU or (status == _SIGNALLED + signal.SIGKILL and seconds >= limits.cpu_s):
        return Ended.TIMEOUT
    return Ended.KILLED if status > _SIGNALLED else Ended.EXCEPTION


def _outcomes(channel: str, expected: int) -> tuple[CallOutcome, ...]:
    """Read the complete lines after the first, at most one per call; a program that forges one forges only data."""
    lines = channel.split("\n")[1:-1]
    return tuple(_outcome(line) for line in lines[:expected])


def _outcome(line: str) -> CallOutcome:
    try:
        match json.loads(line):
            case {"error": str(error)}:
                return CallOutcome(None, error)
            case {"value": value}:
                return CallOutcome(read_plain(value))
    except (ValueError, TypeError, RecursionError):  # a number with thousands of digits, a set of lists, deep nesting
        pass
    return CallOutcome(None, "it returned a value that could not be read back")
