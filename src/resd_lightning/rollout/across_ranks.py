"""Shares work over the processes of a run, so that all of them end with all of its results in one order."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import TypeVar, cast

import torch.distributed as dist
from filelock import FileLock

Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(work: Callable[[Sequence[Item]], list[Result]], items: Sequence[Item]) -> list[Result]:
    """Return `work(items)`, each rank doing every world-size-th item and all ranks getting all results, in order.

    With one process it is `work(items)` itself. All ranks must call it together, with the same items.
    """
    if not _is_shared():
        return work(items)
    world = dist.get_world_size()
    shares = from_all_ranks(work(items[dist.get_rank() :: world]))
    return [shares[i % world][i // world] for i in range(len(items))]


def on_first_rank(work: Callable[[], Result], failure: type[Exception]) -> Result:
    """Return, on every rank, what `work` returns on the first; the others wait for it. All must call it together.

    Raises:
        failure: `work` raised it; on every rank alike.
    """
    if not _is_shared():
        return work()
    shared: list[tuple[Result | None, str | None]] = [(None, None)]
    raised: Exception | None = None
    if dist.get_rank() == 0:
        try:
            shared = [(work(), None)]
        except failure as error:
            shared, raised = [(None, str(error))], error
    dist.broadcast_object_list(shared)
    result, reason = shared[0]
    if reason is not None:
        raise failure(reason) from raised
    return cast("Result", result)


def from_all_ranks(value: Result) -> list[Result]:
    """Return every rank's value, in the order of ranks; all must call it together."""
    if not _is_shared():
        return [value]
    values: list[Result] = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def in_turn(what: str) -> Iterator[None]:
    """Hold the turn to do `what` on this machine: its user's processes do it one after the other.

    Nothing is exchanged, and a process that ends in its turn gives it up, so that none waits for one that failed.
    """
    with FileLock(Path(gettempdir()) / f"resd-{what}-{os.getuid()}.lock"):
        yield


def require_same(value: str, what: str) -> None:
    """Raise `RuntimeError` unless every process of the run holds the same value; all must call it together."""
    values = from_all_ranks(value)
    if len(set(values)) > 1:
        raise RuntimeError(f"{what} differ between processes: {values}")


def _is_shared() -> bool:
    return dist.is_available() and dist.is_initialized()
