"""The command line that starts one program, for each kind of isolation."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final, Literal

Kind = Literal["bubblewrap", "namespaces", "rlimits"]
KINDS: Final[tuple[Kind, ...]] = ("bubblewrap", "namespaces", "rlimits")
"""From the one to prefer to the last resort."""

_HERE: Final = Path(__file__).resolve().parent
_BARE: Final = ("-I", "-S", "-E", "-B", "-X", "utf8")
_RUNNER_INSIDE: Final = "/runner.py"


def interpreter() -> str:
    """Return the interpreter itself, not a virtual environment's link to it: its own library is all a program gets."""
    return os.path.realpath(sys.executable)


def library_folders() -> tuple[str, ...]:
    """Return the folders with Python's library and the shared libraries, none inside another."""
    prefix = Path(interpreter()).parents[1]
    folders = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", str(prefix / "lib"), str(prefix / "lib64")]
    present = sorted({folder for folder in folders if Path(folder).is_dir()})
    return tuple(
        folder for folder in present if not any(folder.startswith(f"{other}/") for other in present if other != folder)
    )


def command(kind: Kind, file_mib: int, job_fd: int, channel_fd: int) -> list[str] | None:
    """Return the command line, or None where its program isn't installed."""
    fds = [str(job_fd), str(channel_fd)]
    if kind != "bubblewrap":
        return [interpreter(), *_BARE, str(_HERE / "launch.py"), *fds]
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        return None
    options = ["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for folder in library_folders():
        is_link = Path(folder).is_symlink()
        options += ["--symlink", os.readlink(folder), folder] if is_link else ["--ro-bind", folder, folder]
    for path in (interpreter(), "/dev/null", "/dev/urandom"):
        options += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    options += ["--ro-bind", str(_HERE / "runner.py"), _RUNNER_INSIDE]
    options += ["--size", str(file_mib << 20), "--tmpfs", "/tmp", "--remount-ro", "/", "--chdir", "/tmp"]
    return [bwrap, *options, "--", interpreter(), *_BARE, _RUNNER_INSIDE, *fds]
