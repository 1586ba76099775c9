"""The sandbox as its users see it: programs in, results out, in order."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from resd_lightning.config import ConfigError, require
from resd_lightning.sandbox.execute import execute
from resd_lightning.sandbox.isolation import Isolation, find_isolation
from resd_lightning.sandbox.program import Limits, Program, SandboxResult


@dataclass(frozen=True)
class Sandbox:
    """Runs programs, each in a process of its own with nothing to reach; settings only, so it goes to workers as it is.

    What the machine offers is found out at the first run of a process, and said once in the log.
    """

    limits: Limits = field(default_factory=Limits)
    """What each program may use."""
    workers: int = 1
    """Programs that `run_all` runs at the same time."""
    require_isolation: bool = False
    """Refuse to run anything unless the isolation is full; otherwise what is missing is logged."""

    def __post_init__(self) -> None:
        require(self.workers >= 1, "sandbox workers", "at least 1", self.workers)

    def run(self, program: Program) -> SandboxResult:
        """Run one program and return what became of it, whatever it does.

        Raises:
            ConfigError: Isolation is required and the machine has no full one, or no program can be run at all.
            SandboxError: The sandbox failed, not the program.
        """
        return execute(program, self.limits, self.isolation().kind)

    def run_all(self, programs: Sequence[Program]) -> list[SandboxResult]:
        """Run the programs, several at a time, and return their results in their order."""
        self.isolation()
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self.run, programs))

    def isolation(self) -> Isolation:
        """Return what is in force.

        Raises:
            ConfigError: As `run`.
        """
        isolation = find_isolation()
        if self.require_isolation and isolation.missing:
            raise ConfigError(
                f"require_isolation: the best here is {isolation.kind}, without: {', '.join(isolation.missing)}. "
                "Install bubblewrap or allow user namespaces, or set require_isolation to false to run them as it is"
            )
        return isolation
