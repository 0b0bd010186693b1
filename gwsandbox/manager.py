"""``ProcessManager``: queue tasks, get results."""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat, starmap
from types import TracebackType
from typing import Any, Literal, Self

from gwsandbox.client.parameters import Parameters, check_task
from gwsandbox.client.results import never_started
from gwsandbox.client.running import RunningTask
from gwsandbox.client.session import Session
from gwsandbox.client.uninterrupted import enters_uninterrupted
from gwsandbox.model.errors import CgroupError
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import Command, Task

# Orders that a supervisor has beyond its slots, so that a slot that comes free is filled at once.
_AHEAD_PER_WORKER = 2

Work = Task | Command

# Attributes that may be assigned: they hold for what starts after that.
_SET_BY_USERS = (
    *("max_workers", "worker_timeout_seconds", "memory_limit_in_gib", "limits", "total_memory"),
    *("hardening", "start_method", "preload"),
)


class ProcessManager:
    """Runs each task in a process, and where the host allows it a cgroup, of its own.

    ::

        with ProcessManager(max_workers=4, worker_timeout_seconds=5, memory_limit_in_gib=1) as manager:
            for path in paths:
                manager.queue_task(Task(func=work, args=(path,)))
        for result in manager.task_results: ...

    or, inside of the block, ``for result in manager.as_completed(): ...``. To be used by one thread.

    Args:
        max_workers: Tasks at a time; ``None`` or 0: the logical CPUs that this process may use. "auto": of those only
            as many as there is memory for, by the memory limit of a task.
        worker_timeout_seconds: Wall-clock seconds of each task; ``None`` or 0: no limit.
        memory_limit_in_gib: GiB (1024**3 bytes) of memory of each task; ``None`` or 0: no limit.
        limits: Further limits of each task; the two above override its ``wall_seconds`` and ``memory``.
        total_memory: Bytes, or a text like "4GiB", of memory of all tasks together. A task starts only when its own
            memory limit fits under it beside those that run; one without a limit counts nothing.
        hardening: What tasks may see and do; ``None`` is ``Hardening.standard()``. One that shows only some files needs
            a clean interpreter, and then ``start_method`` is "forkserver".
        backend: "cgroup", "rlimit", or "auto": cgroup where it is available, else rlimit, with one
            ``DegradedWarning`` unless every limit that is asked for is held fully.
        start_method: "fork": guests see the caller's modules, globals and queued tasks as they are when
            processing begins. "forkserver": a clean interpreter, safe when the caller has threads; callables
            travel by cloudpickle.
        preload: Names of modules for "forkserver" to import once, when processing begins, so that not every guest
            has to; as the caller's own imports they are under no limit.

    Raises:
        TypeError, ValueError: A parameter is of the wrong type, negative, NaN, infinite or absurd.
        CgroupError: ``backend="cgroup"``, and this process gets no delegated cgroup v2; says why and what to do.
    """

    max_workers: int
    worker_timeout_seconds: float | None
    memory_limit_in_gib: float | None
    limits: Limits
    total_memory: int
    hardening: Hardening
    start_method: str
    preload: tuple[str, ...]

    def __init__(
        self,
        max_workers: int | Literal["auto"] | None = None,
        worker_timeout_seconds: float | None = None,
        memory_limit_in_gib: float | None = None,
        *,
        limits: Limits | None = None,
        total_memory: int | str | None = None,
        hardening: Hardening | None = None,
        backend: Literal["auto", "cgroup", "rlimit"] = "auto",
        start_method: Literal["fork", "forkserver"] = "fork",
        preload: Iterable[str] = (),
        _pass_through: bool = False,
        _grace_seconds: float = 0.0,
        _wait: Callable[[int, ProcessManager], None] | None = None,
        _says_begins: bool = False,
    ) -> None:
        self._parameters = Parameters(
            max_workers=max_workers,
            worker_timeout_seconds=worker_timeout_seconds,
            memory_limit_in_gib=memory_limit_in_gib,
            limits=limits,
            total_memory=total_memory,
            hardening=hardening,
            backend=backend,
            start_method=start_method,
            preload=preload,
            pass_through=_pass_through,
            grace_seconds=_grace_seconds,
            says_begins=_says_begins,
            stacklevel=2,
        )
        for name in _SET_BY_USERS:
            setattr(self, name, getattr(self._parameters, name))
        self.task_results: list[TaskResult] = []
        # Ctrl-C may come between any two bytecodes: see client/session.py for what follows from that.
        self._queue: deque[tuple[int, Work] | Iterator[Work]] = deque()
        self._drawn: deque[tuple[int, Work]] = deque()  # at most one, from the iterator at the head of the queue
        self._ready: deque[TaskResult] = deque()
        self._session: Session | None = None
        self._forgotten: weakref.finalize[Any, Any] | None = None
        self._numbers = itertools.count(1)
        self._owner = os.getpid()
        # For the command line, which waits for signals too.
        self._wait = _wait

    # --- queueing -----------------------------------------------------------------------------------

    def queue_task(self, task: Work) -> None:
        """Queue a task. Nothing starts before ``as_completed`` or the end of the block.

        Raises:
            TypeError: It is neither a ``Task`` nor a ``Command``.
            ValueError: Its memory limit does not fit under the total.
        """
        self._parameters.accept(check_task(task), stacklevel=2)
        self._queue.append((next(self._numbers), task))

    def queue_tasks(self, tasks: Iterable[Work]) -> None:
        """Queue tasks from an iterable, which is drawn from only as slots come free, in this thread.

        Raises:
            TypeError: It is not iterable; or, when it is drawn from, yields something else than a task.
        """
        self._queue.append(iter(tasks))

    # --- processing ---------------------------------------------------------------------------------

    def as_completed(self) -> Iterator[TaskResult]:
        """Yield each result as its task completes; more tasks may be queued meanwhile.

        ``task_results`` is not filled. Who leaves the loop early loses nothing: the rest is processed when
        the block is left, or by the next call.

        Raises:
            SandboxError: No supervisor can be started.
        """
        self._check_process()
        while True:
            self._feed()
            if self._session is not None and self._session.streams.calls:
                self._hand_on(self._session)
            elif self._ready:
                # Taken out and given away by one call of C: no signal handler finds a result that is nowhere.
                yield from islice(starmap(self._ready.popleft, repeat(())), 1)
            elif self._session is None:
                return
            elif self._session.unfinished:  # not so where an iterable had nothing (more) to give
                self._session.await_results(self._wait_for)

    @staticmethod
    def _hand_on(session: Session) -> None:
        """Call the user's code for streams of programs; not where everything is cancelled for what it raised."""
        if session.cancelled:
            session.streams.calls.clear()
        else:
            session.streams.make_calls()

    def start_tasks(self) -> None:
        """Process everything that is queued; ``task_results`` holds the results in order of completion.

        Raises:
            SandboxError: No supervisor can be started.
        """
        self.task_results = []
        self.task_results.extend(self.as_completed())

    def cancel(self) -> None:
        """End everything at once: running and queued tasks get CANCELLED results.

        Those come from ``as_completed`` or, when the block is left, in ``task_results``. Iterables given to
        ``queue_tasks`` are not drawn from any more.
        """
        submitted = set() if self._session is None else self._session.submitted()
        waiting = [*self._drawn, *(entry for entry in self._queue if isinstance(entry, tuple))]
        cancelled = [never_started(task) for number, task in waiting if number not in submitted]
        ready = deque((*self._ready, *cancelled))
        # No call between the three: either all of them happen or none.
        self._ready, self._queue, self._drawn = ready, deque(), deque()
        if self._session is not None:
            self._session.results = self._ready
            self._session.cancel()

    def report(self, path: str | os.PathLike[str]) -> None:
        """Write what ``task_results`` hold as a page with pictures (.html), as Markdown (.md) or as a table (.csv).

        Args:
            path: Of the file; its suffix says the format. A page needs the extra ``gwsandbox[report]``.

        Raises:
            SandboxError: The file cannot be written, its suffix is another, or a package is missing.
        """
        from gwsandbox.report.make import report_results  # noqa: PLC0415 - few callers need it

        report_results(self.task_results, self.limits, os.fspath(path))

    def _wait_for(self, descriptor: int) -> None:
        """Wait until a result may have come, in the way of the command line where it has one."""
        if self._wait is not None:
            self._wait(descriptor, self)

    def _send_signal(self, number: int) -> None:
        """Send a signal to the tasks that run: see ``ipc.channel.Signal``."""
        if self._session is not None:
            self._session.send_signal(number)

    def _running(self) -> list[RunningTask]:
        """The tasks whose time has begun and that have no result yet, the longest first."""
        return [] if self._session is None else list(self._session.running.values())

    def _feed(self) -> None:
        """Start a supervisor where there is work and none; give it its tasks; end it when it has none left."""
        session = self._session
        if session is not None and not session.unfinished and not self._ready:
            if session.stopped:
                self.cancel()
            is_over = session.cancelled or session.lost or not session.started
            if is_over or not (self._queue or self._drawn):
                self._close_session()
        if self._session is None and (self._queue or self._drawn):
            self._start_session()
        if self._session is not None and not self._session.cancelled:
            self._submit(self._session)

    def _submit(self, session: Session) -> None:
        """All that the fork brought along at once; of the rest only what can start soon."""
        while self._queue:
            entry = self._queue[0]
            if isinstance(entry, tuple):
                if not session.is_inherited(entry[0]) and not self._has_room(session):
                    break
                if not self._has_memory(session, entry):
                    break
                self._submit_once(session, *entry)
                self._queue.popleft()
            elif not self._has_room(session):
                break
            elif self._draw(entry):
                if not self._has_memory(session, self._drawn[0]):
                    break
                self._submit_once(session, *self._drawn[0])
                self._drawn.popleft()
            else:
                self._queue.popleft()
        session.flush()

    def _has_room(self, session: Session) -> bool:
        return session.unfinished + len(self._ready) < self.max_workers * (1 + _AHEAD_PER_WORKER)

    def _has_memory(self, session: Session, entry: tuple[int, Work]) -> bool:
        """Whether a task fits under the total; so does one that was submitted by a call that was interrupted."""
        return entry[0] == session.last_number or self._parameters.has_memory_for(entry[1], (session,))

    @staticmethod
    def _submit_once(session: Session, number: int, task: Work) -> None:
        """Submit a task, unless an interrupted call has done so already."""
        if number != session.last_number:
            session.submit(number, task)

    def _draw(self, tasks: Iterator[Work]) -> bool:
        """Have the next task of an iterable in ``_drawn``, with its number; False where there is none."""
        if not self._drawn:
            self._drawn.extend(islice(zip(self._numbers, tasks), 1))  # noqa: B905 - the numbers have no end
        if not self._drawn:
            return False
        try:
            self._parameters.accept(check_task(self._drawn[0][1]), stacklevel=2)
        except (TypeError, ValueError):
            self._drawn.clear()
            raise
        return True

    def _start_session(self) -> None:
        inherited_tasks = dict(entry for entry in self._queue if isinstance(entry, tuple))
        for name in _SET_BY_USERS:
            setattr(self._parameters, name, getattr(self, name))
        # Kept before it is started: whatever interrupts that, it is closed.
        self._session = self._parameters.session(inherited_tasks, self._ready)
        # Outside of a block nobody may close it. Then this ends what runs.
        self._forgotten = weakref.finalize(self, _close_forgotten, self._session, self._owner)
        self._forgotten.atexit = False  # the end of this process ends it too
        try:
            self._session.start()
        except CgroupError as error:
            self._close_session()
            self._parameters.degrade(error, stacklevel=4)
            self._start_session()
        except BaseException:
            self._close_session()
            raise

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
            if self._forgotten is not None:
                self._forgotten.detach()

    # --- the block ----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    @enters_uninterrupted
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Process the rest; or, where the block or that raised, cancel it and let the exception through."""
        try:  # first of all: before it, Ctrl-C would leave all as it is
            is_ours = os.getpid() == self._owner
            if is_ours and error is None and (self._session is not None or self._queue or self._ready):
                self.start_tasks()
        finally:
            try:
                self._abort()
            except BaseException:
                self._abort()  # a second Ctrl-C came as early as it can
                raise

    def _abort(self) -> None:
        """Cancel what is not finished, and wait until nothing is left of it; once more where that is interrupted."""
        try:
            self._finish_cancelled()
        except BaseException:
            self._finish_cancelled()
            raise

    def _finish_cancelled(self) -> None:
        if os.getpid() != self._owner:
            return  # a fork of the caller's own that unwinds: what runs is not its to end
        self.cancel()
        self.task_results.extend(self.as_completed())
        self._close_session()

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"this ProcessManager belongs to process {self._owner}, not to {os.getpid()}; make one of its own"
            )


def _close_forgotten(session: Session, owner: int) -> None:
    """End the run of a manager that nobody refers to any more; a fork of its process leaves it alone."""
    if os.getpid() == owner:
        session.close()


GlasswallProcessManager = ProcessManager
