"""What the work of a run tells whoever shows how far it has come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], object]
"""Says that so many more items are done."""


class Display(Protocol):
    """Shows phases of work, which may stand within each other."""

    def phase(self, name: str, total: int) -> AbstractContextManager[Advance]:
        """Show a phase of `total` items for as long as the context lasts."""
        ...


class NoDisplay:
    """Shows nothing: logs, notebooks, and all ranks but the first."""

    @contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """Count for nobody."""
        yield lambda done: None
