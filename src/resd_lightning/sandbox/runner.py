"""Runs one program inside the sandbox: limits, source, calls. A script of its own; the package imports its constants.

It runs under a bare interpreter (`python -I -S`) and imports little, as every program pays for its start. Nothing in
here judges: whatever the program does to this process, only data leaves it.

Usage: runner.py JOB_FD CHANNEL_FD
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import struct
import sys

TYPE_CHECKING = False  # type checkers take this name for true; importing typing itself would double the start-up
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import IO, NoReturn, TypedDict

    class Job(TypedDict):
        """What `execute` hands over: the program, its limits, and how `launch` isolates it."""

        source: str
        function: str
        calls: list[list[object]]
        limits: dict[str, int]
        kind: str
        folders: list[str]
        scratch: str
        call_filter: list[tuple[int, int, int, int | None]]


PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2

STARTED = b"started\n"
MEMORY_STATUS = 77
_CHANNEL = 3
_ERROR_CHARS = 400


def main(job: Job, channel_fd: int) -> NoReturn:
    """Confine this process to its limits, run the job's source, make its calls, and exit."""
    os.dup2(channel_fd, _CHANNEL)
    os.closerange(_CHANNEL + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    os.environ.clear()  # the interpreter itself may have set a locale
    sys.argv = ["program.py"]
    filter_calls(job["call_filter"])
    limit_resources(job["limits"])
    status = 1
    # What only the sandbox can say comes first: without this line it is the sandbox that failed, not the program.
    os.write(_CHANNEL, STARTED)
    try:
        with open(_CHANNEL, "wb", buffering=0) as channel:
            run_program(job, channel)
        status = 0
    except SystemExit as stop:
        status = exit_status(stop.code)
    except MemoryError:
        status = MEMORY_STATUS
    except BaseException as error:  # noqa: BLE001  # the program's own: whatever it raised is its end
        sys.__excepthook__(type(error), error.with_traceback(program_traceback(error)), None)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BaseException:  # noqa: BLE001  # the program may have closed or replaced it
                status = status or 1
        os._exit(status)


def limit_resources(limits: dict[str, int]) -> None:
    """Lower this process's limits for good: soft and hard ones alike."""
    for name, value in {
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": limits["cpu_s"],
        "RLIMIT_AS": limits["memory_mib"] << 20,
        "RLIMIT_FSIZE": limits["file_mib"] << 20,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_NPROC": limits["processes"],
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_MSGQUEUE": 0,
    }.items():
        if (kind := getattr(resource, name, None)) is not None:
            hard = resource.getrlimit(kind)[1]
            bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (bound, bound))


def filter_calls(instructions: list[tuple[int, int, int, int | None]]) -> None:
    """Let the kernel refuse what `system_calls` names; where it can't, the probe will have seen that."""
    if not instructions:
        return
    encoded = b"".join(
        struct.pack("HBBI", code, if_true, if_false, os.getpid() if operand is None else operand)
        for code, if_true, if_false, operand in instructions
    )
    buffer = ctypes.create_string_buffer(encoded, len(encoded))
    program = struct.pack("HP", len(instructions), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program, 0, 0)


def run_program(job: Job, channel: IO[bytes]) -> None:
    """Execute the source as a module, then write one JSON line per call."""
    function_name = job["function"]
    module = type(sys)("program" if function_name else "__main__")
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    exec(compile(job["source"], "program.py", "exec", dont_inherit=True), module.__dict__)
    if not function_name:
        return
    function = module.__dict__.get(function_name)
    if not callable(function):
        raise NameError(f"the program defines no function {function_name}")
    dumps = json.dumps
    for encoded in job["calls"]:
        arguments = [read_plain(argument) for argument in encoded]
        channel.write(outcome(function, arguments, dumps).encode("ascii") + b"\n")


def outcome(function: Callable[..., object], arguments: list[object], dumps: Callable[..., str]) -> str:
    """Return the JSON line of one call: its value, or why there is none."""
    try:
        value = function(*arguments)
    except BaseException as error:  # noqa: BLE001  # one call's failure is that call's; the next is made all the same
        return dumps({"error": describe(error)})
    try:
        return dumps({"value": plain(value)})
    except TypeError as error:
        return dumps({"error": f"it returned {error}"[:_ERROR_CHARS]})
    except (ValueError, RecursionError):
        return dumps({"error": "it returned a value with too many digits, or too deep inside itself, to be read"})


def plain(value: object) -> object:
    """Return the value for JSON, with containers marked by their kind, so that tuples don't come back as lists.

    Raises:
        TypeError: It is no plain data: not numbers, text, and lists, tuples, sets and dicts of them.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {"dict": [[plain(key), plain(item)] for key, item in value.items()]}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return {kind.__name__: [plain(item) for item in value]}
    raise TypeError(f"data of type {type(value).__name__}, not plain data (numbers, text, lists and alike)")


def read_plain(value: object) -> object:
    """Undo `plain`; what comes from a program may have any form.

    Raises:
        ValueError: It isn't of that form.
        TypeError: A key or an element can't be hashed.
    """
    match value:
        case {"list": list(items)}:
            return [read_plain(item) for item in items]
        case {"tuple": list(items)}:
            return tuple(read_plain(item) for item in items)
        case {"set": list(items)} | {"frozenset": list(items)}:
            return {read_plain(item) for item in items}
        case {"dict": list(items)}:
            return {read_plain(key): read_plain(item) for key, item in items}
        case None | bool() | int() | float() | str():
            return value
    raise ValueError("no plain data")


def describe(error: BaseException) -> str:
    """Return the exception in one line, with the program's innermost line."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    line, frame = 0, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == "program.py":
            line = frame.tb_lineno
        frame = frame.tb_next
    return f"{text[:_ERROR_CHARS]} (line {line})" if line else text[:_ERROR_CHARS]


def program_traceback(error: BaseException) -> TracebackType | None:
    """Return the traceback from the program's first frame on; None where only this script stands in it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != "program.py":
        trace = trace.tb_next
    return trace


def exit_status(code: object) -> int:
    """Return the status that `sys.exit(code)` stands for."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


if __name__ == "__main__":
    with open(int(sys.argv[1]), encoding="ascii") as file:
        main(json.load(file), int(sys.argv[2]))
