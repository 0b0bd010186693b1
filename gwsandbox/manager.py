"""``ProcessManager``: queue tasks, get results."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice, repeat, starmap
from types import TracebackType
from typing import Literal, Self

from gwsandbox.backends.choose import find_backend, rlimit_degrades, warn_degraded
from gwsandbox.backends.rlimit import RlimitBackend
from gwsandbox.client.session import RunningTask, Session
from gwsandbox.model.errors import CgroupError, TaskCancelled
from gwsandbox.model.hardening import Hardening, check_hardening
from gwsandbox.model.limits import GIB, LARGEST_SIZE, LONGEST_SECONDS, MOST_WORKERS, Limits, check_count, check_number
from gwsandbox.model.options import RunOptions
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, Task, check_limits
from gwsandbox.model.text import shorten

# Orders that a supervisor has beyond its slots, so that a slot that comes free is filled at once.
_AHEAD_PER_WORKER = 2

Work = Task | Command


class ProcessManager:
    """Runs each task in a process, and where the host allows it a cgroup, of its own.

    ::

        with ProcessManager(max_workers=4, worker_timeout_seconds=5, memory_limit_in_gib=1) as manager:
            for path in paths:
                manager.queue_task(Task(func=work, args=(path,)))
        for result in manager.task_results: ...

    or, inside of the block, ``for result in manager.as_completed(): ...``. To be used by one thread.

    Args:
        max_workers: Tasks at a time; ``None`` or 0: the logical CPUs that this process may use.
        worker_timeout_seconds: Wall-clock seconds of each task; ``None`` or 0: no limit.
        memory_limit_in_gib: GiB (1024**3 bytes) of memory of each task; ``None`` or 0: no limit.
        limits: Further limits of each task; the two above override its ``wall_seconds`` and ``memory``.
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
        CgroupError: ``backend="cgroup"``, and no delegated cgroup v2 can be had; says why and what mends it.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        worker_timeout_seconds: float | None = None,
        memory_limit_in_gib: float | None = None,
        *,
        limits: Limits | None = None,
        hardening: Hardening | None = None,
        backend: Literal["auto", "cgroup", "rlimit"] = "auto",
        start_method: Literal["fork", "forkserver"] = "fork",
        preload: Iterable[str] = (),
        _pass_through: bool = False,
        _grace_seconds: float = 0.0,
        _wait: Callable[[int, ProcessManager], None] | None = None,
        _says_begins: bool = False,
    ) -> None:
        if start_method not in {"fork", "forkserver"}:
            raise ValueError(f"start_method must be 'fork' or 'forkserver', not {start_method!r}")
        self.max_workers = _workers(max_workers)
        self.worker_timeout_seconds = _plain(worker_timeout_seconds, "worker_timeout_seconds")
        self.memory_limit_in_gib = _plain(memory_limit_in_gib, "memory_limit_in_gib")
        self.limits = _limits(limits, self.worker_timeout_seconds, self.memory_limit_in_gib)
        self.hardening = _existing_user(check_hardening(hardening))
        self.start_method = start_method
        if self.hardening.needs_clean_interpreter and not _pass_through:  # with which there are programs only
            self.start_method = "forkserver"
        self.preload = _module_names(preload, self.start_method)
        self.task_results: list[TaskResult] = []
        self._backend, self._refused = find_backend(backend)
        self._warn_if_degraded(self.limits, stacklevel=3)
        self._may_degrade = backend == "auto"
        # Ctrl-C may come between any two bytecodes: see client/session.py for what follows from that.
        self._queue: deque[tuple[int, Work] | Iterator[Work]] = deque()
        self._drawn: deque[tuple[int, Work]] = deque()  # at most one, from the iterator at the head of the queue
        self._ready: deque[TaskResult] = deque()
        self._session: Session | None = None
        self._numbers = itertools.count(1)
        self._owner = os.getpid()
        # For the command line: the program keeps the caller's terminal, session and standard descriptors; it gets
        # SIGTERM so many seconds before it is killed; and the command line waits for signals too.
        self._pass_through = _pass_through
        self._grace_seconds = _grace_seconds
        self._wait = _wait
        self._says_begins = _says_begins

    # --- queueing -----------------------------------------------------------------------------------

    def queue_task(self, task: Work) -> None:
        """Queue a task. Nothing starts before ``as_completed`` or the end of the block.

        Raises:
            TypeError: It is neither a ``Task`` nor a ``Command``.
        """
        self._queue.append((next(self._numbers), _check_task(task)))
        self._warn_of(task)

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
            if self._ready:
                # Taken out and given away by one call of C: no signal handler finds a result that is nowhere.
                yield from islice(starmap(self._ready.popleft, repeat(())), 1)
            elif self._session is None:
                return
            elif self._session.unfinished:  # not so where an iterable had nothing (more) to give
                self._session.await_results(self._wait_for)

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
        cancelled = [_cancelled(task) for number, task in waiting if number not in submitted]
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
                self._submit_once(session, *entry)
                self._queue.popleft()
            elif not self._has_room(session):
                break
            elif self._draw(entry):
                self._submit_once(session, *self._drawn[0])
                self._drawn.popleft()
            else:
                self._queue.popleft()
        session.flush()

    def _warn_of(self, task: Work) -> None:
        """Warn where this is the first task with a limit of its own that is held less than fully."""
        if self._refused is not None and task.limits is not None and task.limits.requested():
            self._warn_if_degraded(task.limits, stacklevel=4)

    def _warn_if_degraded(self, limits: Limits, *, stacklevel: int) -> None:
        """Warn once, unless ``limits`` are some, and each of them is held fully."""
        if self._refused is not None and (not limits.requested() or rlimit_degrades(limits)):
            refused, self._refused = self._refused, None
            warn_degraded(refused, stacklevel=stacklevel)

    def _has_room(self, session: Session) -> bool:
        return session.unfinished + len(self._ready) < self.max_workers * (1 + _AHEAD_PER_WORKER)

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
            self._warn_of(_check_task(self._drawn[0][1]))
        except TypeError:
            self._drawn.clear()
            raise
        return True

    def _start_session(self) -> None:
        inherited_tasks = dict(entry for entry in self._queue if isinstance(entry, tuple))
        options = RunOptions(
            max_workers=self.max_workers,
            limits=self.limits,
            start_method=self.start_method,
            timeout_seconds=self.worker_timeout_seconds,
            memory_limit_in_gib=self.memory_limit_in_gib,
            pass_through=self._pass_through,
            says_begins=self._says_begins,
            grace_seconds=self._grace_seconds,
            preload=self.preload,
            hardening=self.hardening,
        )
        # Kept before it is started: whatever interrupts that, it is closed.
        self._session = Session(self._backend, options, inherited_tasks, self._ready)
        try:
            self._session.start()
        except CgroupError as error:
            self._close_session()
            if not self._may_degrade:
                raise
            self._backend, self._refused = RlimitBackend(), error
            self._warn_if_degraded(self.limits, stacklevel=5)
            self._start_session()
        except BaseException:
            self._close_session()
            raise

    def _close_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    # --- the block ----------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Process the rest; or, where the block or that raised, cancel it and let the exception through."""
        if os.getpid() != self._owner:
            return  # a fork of the caller's own that unwinds: what runs is not its to end
        try:
            if error is None and (self._session is not None or self._queue or self._ready):
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
        self.cancel()
        self.task_results.extend(self.as_completed())
        self._close_session()

    def _check_process(self) -> None:
        if os.getpid() != self._owner:
            raise RuntimeError(
                f"this ProcessManager belongs to process {self._owner}, not to {os.getpid()}; make one of its own"
            )


def _check_task(task: object) -> Work:
    if not isinstance(task, Task | Command):
        raise TypeError(f"a task must be a Task or a Command, not {type(task).__name__}: {shorten(task)}")
    return task


def _cancelled(task: Work) -> TaskResult:
    detail = "ended by the caller before it started"
    return TaskResult(task, success=False, exception=TaskCancelled(detail), outcome=Outcome.CANCELLED, detail=detail)


def _workers(max_workers: int | None) -> int:
    number = check_count(0 if max_workers is None else max_workers, "max_workers")
    if number > MOST_WORKERS:
        raise ValueError(f"max_workers of {number} is more than any machine can run at a time ({MOST_WORKERS})")
    return number or len(os.sched_getaffinity(0))


def _existing_user(hardening: Hardening) -> Hardening:
    if hardening.user not in {None, "slot"}:
        import pwd  # noqa: PLC0415 - of no other use

        try:
            pwd.getpwnam(str(hardening.user))
        except KeyError:
            raise ValueError(f"hardening has user={hardening.user!r}, and there is no such user") from None
    return hardening


def _module_names(preload: Iterable[str], start_method: str) -> tuple[str, ...]:
    if isinstance(preload, str):
        raise TypeError(f"preload must be names of modules, as in preload=({preload!r},), and not one str")
    names = tuple(preload)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"preload must be names of modules, not {type(name).__name__}: {shorten(name)}")
        if not all(part.isidentifier() for part in name.split(".")):
            raise ValueError(f"preload has {name!r}, which is no name of a module")
    if names and start_method != "forkserver":
        raise ValueError(
            "preload goes with start_method='forkserver'; with 'fork' guests have what the caller has imported"
        )
    return names


def _plain(number: float | None, name: str) -> float | None:
    return None if number is None else check_number(number, name)


def _limits(limits: Limits | None, timeout: float | None, memory_in_gib: float | None) -> Limits:
    """All limits as one; the two that existing scripts give by position are named in errors as they know them."""
    memory = None
    if memory_in_gib is not None:
        in_bytes = memory_in_gib * GIB
        if 0 < in_bytes < 1 or in_bytes > LARGEST_SIZE:
            raise ValueError(f"memory_limit_in_gib of {memory_in_gib!r} is no size that a machine has")
        memory = int(in_bytes)
    if timeout is not None and timeout > LONGEST_SECONDS:
        raise ValueError(f"worker_timeout_seconds of {timeout!r} is more than 31 years; the unit is seconds")
    return (check_limits(limits) or Limits()).overridden_by(Limits(wall_seconds=timeout, memory=memory))


GlasswallProcessManager = ProcessManager
