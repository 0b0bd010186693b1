"""The one thread of an executor: it drives the queue of tasks, and settles their futures.

Other threads put steps into an inbox and write to an eventfd; only this thread touches the queue. It holds no reference
to the executor itself, so an executor that is forgotten ends its thread.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import os
import select
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from gwsandbox.client.parameters import Parameters
from gwsandbox.client.processes import forget_private, keep_private
from gwsandbox.client.task_queue import Submission, TaskQueue
from gwsandbox.model.errors import InitializerFailed
from gwsandbox.model.result import TaskResult


class Settled(Protocol):
    """A future, as far as the thread knows it."""

    def begin(self) -> bool:
        """Its task is about to be sent; whether it is still wanted."""

    def settle(self, result: TaskResult, broken: str) -> None:
        """Take its result; ``broken`` says why the executor is broken, or is ""."""


class Ending(enum.Enum):
    """What is ended before its time."""

    NOTHING = enum.auto()
    PENDING = enum.auto()
    """Tasks that are not sent yet."""
    TERMINATE = enum.auto()
    """Tasks that have not begun; those that run get SIGTERM."""
    KILL = enum.auto()
    """Everything."""


class ExecutorThread:
    """A queue of tasks, and from the first task on the thread that drives it.

    Args:
        parameters: Of the sessions.
        ended: Called when the last task has its result and none can follow.
    """

    def __init__(self, parameters: Parameters, ended: Callable[[], None] | None = None) -> None:
        self.broken = ""
        self.is_closing = False
        self._owner = os.getpid()
        self._has_succeeded = False
        # A finalizer may ask for the end in the middle of any step of the same thread, so it is one that nests.
        self._lock = threading.RLock()
        self._inbox: deque[Callable[[], None]] = deque()
        self._futures: dict[Submission, Settled] = {}
        self._queue = TaskQueue(parameters)
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        keep_private(self._wake)
        self._thread: threading.Thread | None = None
        self._permit: deque[None] = deque((None,))  # Ctrl-C in Thread.start may leave a thread that nobody knows of
        self._is_over = False
        self._call_ended = ended
        self._ended = threading.Event()
        _known.add(self)

    # --- in any thread ------------------------------------------------------------------------------

    def submit(self, submission: Submission, future: Settled) -> None:
        """Run a task; its future is settled by the thread.

        Raises:
            RuntimeError: No task is taken any more, or this is another process.
            SandboxError: No supervisor can be started.
        """
        self._check_process()
        with self._lock:
            self._check_open()
            self._start()
            self._futures[submission] = future
            self._post(partial(self._queue.add, submission))

    def cancel(self, submission: Submission) -> None:
        """End a task, whether it waits or runs; its future is settled all the same."""
        self._check_process()
        with self._lock:
            self._post(partial(self._queue.cancel, (submission,)))

    def refresh(self) -> None:
        """Let tasks that are sent from now on see the caller as it is at this moment.

        Raises:
            RuntimeError, SandboxError: As ``submit``.
        """
        self._check_process()
        with self._lock:
            self._check_open()
            if self._thread is not None:
                self._post(partial(self._queue.adopt, self._queue.started_session()))

    def shutdown(self, ending: Ending = Ending.NOTHING, *, wait: bool = False) -> None:
        """Take no more tasks, and end when the last one has its result.

        Args:
            ending: What is ended before its time.
            wait: Whether to come back only when nothing is left.
        """
        if os.getpid() != self._owner:
            return  # a fork of the caller's own: what runs is not its to end
        with self._lock:
            self.is_closing = True
            self._post(partial(self._end_early, ending))
            if self._thread is None and not self._is_over:
                self._finish()
        if wait and threading.current_thread() is not self._thread:
            self._ended.wait()
            if self._thread is not None:
                self._thread.join()

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"this SandboxExecutor belongs to process {self._owner}, not to {os.getpid()}; make one of its own"
            )

    def _check_open(self) -> None:
        if self.broken:
            from gwsandbox.client import broken  # noqa: PLC0415 - it imports multiprocessing

            raise broken.InitializerFailed(self.broken)
        if self.is_closing:
            when = "interpreter shutdown" if _interpreter_ends else "shutdown"
            raise RuntimeError(f"cannot schedule new futures after {when}")

    def _start(self) -> None:
        """Have a session and the thread. The first is forked from here: a caller without threads is forked so."""
        if self._thread is None:
            self._queue.start()
            thread = threading.Thread(target=self._run, name="gwsandbox executor", daemon=True)
            thread.start()
            self._thread = thread

    def _post(self, step: Callable[[], None]) -> None:
        if not self._is_over:
            self._inbox.append(step)
            os.eventfd_write(self._wake, 1)

    # --- in the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        if not self._permit:
            return
        self._permit.clear()
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        poll.register(self._queue.fileno(), select.POLLIN)
        try:
            while self._turn():
                poll.poll()
        finally:
            with self._lock:
                self.is_closing = True
                self._finish()

    def _turn(self) -> bool:
        """Do what there is to do; whether there will be more."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        while self._inbox:
            self._inbox.popleft()()
        self._turn_queue()
        return not self.is_closing or bool(len(self._queue) or self._inbox)

    def _turn_queue(self) -> None:
        for submission, result in self._queue.turn(self._begins):
            self._settle(submission, result)

    def _begins(self, submission: Submission) -> bool:
        return self._futures[submission].begin()

    def _settle(self, submission: Submission, result: TaskResult) -> None:
        self._has_succeeded |= result.success
        if isinstance(result.exception, InitializerFailed) and not self._has_succeeded:
            self.broken = self.broken or str(result.exception)
            self._queue.cancel(self._queue.unfinished())
        self._futures.pop(submission).settle(result, self.broken)

    def _end_early(self, ending: Ending) -> None:
        if ending is Ending.PENDING:
            self._turn_queue()  # free slots take what was submitted before
            self._queue.cancel(self._queue.waiting())
        elif ending is not Ending.NOTHING:
            self._queue.cancel(self._queue.unfinished(), begun=ending is Ending.KILL)
        if ending is Ending.TERMINATE:
            self._queue.send_signal(signal.SIGTERM)

    def _finish(self) -> None:
        """Nothing is left to do, or nothing more can be done."""
        self._is_over = True
        for submission, result in self._queue.close():
            self._settle(submission, result)
        self._inbox.clear()
        forget_private(self._wake)
        os.close(self._wake)
        if self._call_ended is not None:
            self._call_ended()
        self._ended.set()


# --- the end of the interpreter ------------------------------------------------------------------------------

_known: weakref.WeakSet[ExecutorThread] = weakref.WeakSet()
_interpreter_ends = False


def _end_all() -> None:
    """What is submitted is run to its end, as by the executors of ``concurrent.futures``."""
    global _interpreter_ends  # noqa: PLW0603 - it ends once
    _interpreter_ends = True
    threads = list(_known)
    for thread in threads:
        thread.shutdown()
    for thread in threads:
        thread.shutdown(wait=True)


atexit.register(_end_all)
