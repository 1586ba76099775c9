"""Runs a task's `verify` so that nothing it does can end the run: a raise or a time-out is a failed sample."""

from __future__ import annotations

import logging
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from multiprocessing import get_context
from types import FrameType

from pebble import ProcessExpired, ProcessPool

from resd_lightning.records import Example, Feedback
from resd_lightning.tasks.base import Task
from resd_lightning.tasks.rows import clip

logger = logging.getLogger(__name__)

_MAX_SAID = 500
"""Characters of an exception that feedback repeats: some quote the whole response."""


class Verifier:
    """Judges responses with a task, in this process or in workers.

    Args:
        task: Its `verify` is called once per response.
        workers: Processes to verify in; 0 verifies in this one, which is right for quick tasks.
        timeout_s: Longest time for one response, in seconds.
    """

    def __init__(self, task: Task, *, workers: int, timeout_s: float) -> None:
        self._task = task
        self._workers = workers
        self._timeout_s = timeout_s
        self._pool: ProcessPool | None = None

    def verify(self, examples: Sequence[Example], responses: Sequence[str]) -> list[Feedback]:
        """Return one feedback per response, in order."""
        pairs = list(zip(examples, responses, strict=True))
        if self._workers == 0:
            feedback = [self._in_process(example, response) for example, response in pairs]
        else:
            self._pool = self._pool or self._start_pool()
            futures = [
                self._pool.schedule(_judge, args=[self._task, example, response], timeout=self._timeout_s)
                for example, response in pairs
            ]
            feedback = [self._from_worker(future) for future in futures]
        for example, judged in zip(examples, feedback, strict=True):
            if judged.error:
                logger.warning("verifying a response to example %s: %s", example.id, judged.text)
        return feedback

    def close(self) -> None:
        """Stop the workers; verifying again starts new ones."""
        if self._pool is not None:
            self._pool.stop()  # type: ignore[no-untyped-call]
            self._pool.join()
            self._pool = None

    def _start_pool(self) -> ProcessPool:
        # Not forked from here: a fork of a process with running torch threads can hang. The server that does fork has
        # the imports behind it, so that the worker after one that was killed is there at once.
        context = get_context("forkserver")
        context.set_forkserver_preload([Task.__module__, type(self._task).__module__])
        return ProcessPool(max_workers=self._workers, context=context)

    def _in_process(self, example: Example, response: str) -> Feedback:
        try:
            with _alarm(self._timeout_s):
                return _judge(self._task, example, response)
        except _OutOfTime:
            return self._timed_out()

    def _from_worker(self, future: Future[Feedback]) -> Feedback:
        try:
            return future.result()
        except FutureTimeoutError:
            return self._timed_out()
        except ProcessExpired:
            return _failed("died", "The check of this response ended its process.")

    def _timed_out(self) -> Feedback:
        return _failed("timeout", f"The check of this response took longer than {self._timeout_s:g} s.")


def _judge(task: Task, example: Example, response: str) -> Feedback:
    """Return the task's feedback, or a failure that says what it raised.

    A worker sends no exception back: one that can't be pickled would take the pool, and all other samples, with it.
    """
    try:
        feedback: object = task.verify(example, response)
        if not isinstance(feedback, Feedback):
            raise TypeError(f"{type(task).__name__}.verify must return Feedback, got {type(feedback).__name__}")
    except (Exception, SystemExit) as error:  # noqa: BLE001  # the user's code: what it raises is one failed sample
        said = "".join(traceback.format_exception_only(error)).strip()
        return _failed("raised", f"The check of this response failed: {clip(said, _MAX_SAID)}")
    return feedback


def _failed(error: str, text: str) -> Feedback:
    return Feedback(0.0, (), text, error=error)


class _OutOfTime(BaseException):  # not an Exception: a task's own `except Exception` must not swallow it
    pass


@contextmanager
def _alarm(timeout_s: float) -> Iterator[None]:
    """Raise `_OutOfTime` in the main thread after `timeout_s` seconds; other threads can't be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
