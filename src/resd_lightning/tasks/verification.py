"""Runs a task's `verify` so that nothing it does can end the run: a raise or a time-out is a failed sample."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from types import FrameType

from pebble import ProcessExpired, ProcessPool

from resd_lightning.records import Example, Feedback
from resd_lightning.tasks.base import Task

logger = logging.getLogger(__name__)


class Verifier:
    """Judges responses with a task, in this process or in workers.

    Args:
        task: Its `verify` is called once per response.
        workers: Processes to verify in; 0 verifies in this one, which is right for quick tasks.
        timeout_s: Longest time for one response, in seconds.
    """

    def __init__(self, task: Task, *, workers: int, timeout_s: float) -> None:
        self._task = task
        self._timeout_s = timeout_s
        # Not forked: a fork of a process with running torch threads can hang.
        self._pool = ProcessPool(max_workers=workers, context=get_context("forkserver")) if workers > 0 else None

    def verify(self, examples: Sequence[Example], responses: Sequence[str]) -> list[Feedback]:
        """Return one feedback per response, in order."""
        if self._pool is None:
            pairs = zip(examples, responses, strict=True)
            return [self._guarded(partial(self._in_process, example, text), example) for example, text in pairs]
        futures = [
            self._pool.schedule(self._task.verify, args=[example, response], timeout=self._timeout_s)
            for example, response in zip(examples, responses, strict=True)
        ]
        return [self._guarded(future.result, example) for future, example in zip(futures, examples, strict=True)]

    def close(self) -> None:
        """Stop the workers."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()

    def _in_process(self, example: Example, response: str) -> Feedback:
        with _alarm(self._timeout_s):
            return self._task.verify(example, response)

    def _guarded(self, judge: Callable[[], Feedback], example: Example) -> Feedback:
        try:
            return judge()
        except (FutureTimeoutError, TimeoutError):
            return _failed("timeout", f"The check of this response took longer than {self._timeout_s:g} s.")
        except ProcessExpired:
            return _failed("died", "The check of this response ended its process.")
        except Exception as error:  # noqa: BLE001  # a task is the user's code: whatever it raises is one failed sample
            logger.warning("verifying a response to example %s raised %r", example.id, error)
            return _failed("raised", f"The check of this response failed: {type(error).__name__}: {error}")


def _failed(error: str, text: str) -> Feedback:
    return Feedback(0.0, (), text, error=error)


@contextmanager
def _alarm(timeout_s: float) -> Iterator[None]:
    """Raise `TimeoutError` in the main thread after `timeout_s` seconds; other threads can't be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
