"""Which kind of isolation this machine offers, found out by running a program that tries to get out of it."""

from __future__ import annotations

import json
import logging
import os
import socket
from dataclasses import dataclass
from functools import cache
from typing import Final

from resd_lightning.config import ConfigError
from resd_lightning.sandbox.command import KINDS, Kind
from resd_lightning.sandbox.execute import SandboxError, execute
from resd_lightning.sandbox.program import Ended, Limits, Program

logger = logging.getLogger(__name__)

CLAIMS: Final = (
    "empty environment",
    "limited memory",
    "limited processes",
    "limited disk",
    "no other process in reach",
    "no files",
    "read-only files",
    "no network",
)
"""What full isolation means; each is tried by the probe."""

# Bounded whatever it finds: its forks are counted and sleep, and memory that it does get it never touches.
_PROBE: Final = """
import json, os, sys, time
asked = json.loads(sys.stdin.read())
def refused(action):
    try:
        action()
    except (OSError, MemoryError):
        return True
    return False
def reach_process():
    try:
        os.kill(asked["pid"], 0)
    except OSError:
        open("/proc/%d/mem" % asked["pid"], "rb").close()
def fill_disk():
    for name in ("a", "b"):
        with open(name, "wb") as file:
            file.write(bytes(asked["file"]))
def connect():
    import _socket
    _socket.socket().connect(("127.0.0.1", asked["port"]))
def fork_too_often():
    for _ in range(asked["processes"] + 2):
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
def write_outside():
    for folder in ("/", "/usr/lib", "/var/tmp", "/dev", os.path.dirname(os.__file__)):
        try:
            os.close(os.open(folder + "/sandbox-probe", os.O_CREAT | os.O_WRONLY))
        except OSError:
            continue
        os.unlink(folder + "/sandbox-probe")
        return
    raise PermissionError
open("scratch", "w").write("scratch")
print(json.dumps({
    "empty environment": not os.environ,
    "limited memory": refused(lambda: bytearray(2 * asked["memory"])),
    "no other process in reach": refused(reach_process),
    "no files": refused(lambda: open("/etc/passwd").close()),
    "read-only files": refused(write_outside),
    "no network": refused(connect),
    "limited disk": refused(fill_disk),
    "limited processes": refused(fork_too_often),
}))
"""


@dataclass(frozen=True)
class Isolation:
    """A kind of isolation with what the probe found in force.

    Attributes:
        kind: How programs are started.
        holds: The claims that held when the probe tried them.
    """

    kind: Kind
    holds: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The claims that did not hold."""
        return tuple(claim for claim in CLAIMS if claim not in self.holds)


def probe(kind: Kind, limits: Limits | None = None) -> Isolation:
    """Run a program that tries to get out, and return what kept it in.

    Raises:
        SandboxError: This kind doesn't work here.
    """
    limits = limits or Limits()
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = {
            "port": server.getsockname()[1],
            "pid": os.getpid(),
            "processes": limits.processes,
            "memory": limits.memory_mib << 20,
            "file": limits.file_mib << 20,
        }
        result = execute(Program(_PROBE, stdin=json.dumps(asked)), limits, kind)
    if result.ended is not Ended.OK:
        raise SandboxError(f"{kind}: the probe ended by {result.ended}: {result.stderr.strip()[-500:]}")
    found = json.loads(result.stdout)
    return Isolation(kind, tuple(claim for claim in CLAIMS if found[claim]))


@cache
def find_isolation() -> Isolation:
    """Return the first kind under which every claim holds, else the one with the most; says once which it is.

    Raises:
        ConfigError: No program can be run at all.
    """
    found: list[Isolation] = []
    for kind in KINDS:
        try:
            found.append(probe(kind))
        except SandboxError as error:
            logger.debug("sandbox: %s can't be used here: %s", kind, error)
            continue
        if not found[-1].missing:
            break
    if not found:
        raise ConfigError(f"model-written programs can't be run here: none of {', '.join(KINDS)} works")
    best = max(found, key=lambda isolation: len(isolation.holds))
    if best.missing:
        logger.warning(
            "sandbox: programs run under %s, NOT fully isolated: %s not in force", best.kind, ", ".join(best.missing)
        )
    else:
        logger.info("sandbox: programs run under %s: %s", best.kind, ", ".join(best.holds))
    return best
