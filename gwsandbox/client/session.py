"""The caller's side of one run: starts a supervisor, gives it orders, turns its reports into results."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import socket
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from gwsandbox.backends.base import Backend
from gwsandbox.client.results import close_descriptor, make_result
from gwsandbox.ipc import call
from gwsandbox.ipc.birth import LARGEST_WORK
from gwsandbox.ipc.channel import Channel, Order, Report
from gwsandbox.model.errors import SandboxError, TransferError
from gwsandbox.model.options import RunOptions
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, Task
from gwsandbox.supervisor.bootstrap import PRELOADED, run_reaper

# Those of this process that have a supervisor.
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()

# Run by a clean interpreter in "forkserver" mode.
_FORKSERVER = "import sys; from gwsandbox.supervisor.bootstrap import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"

_PRELOAD_REMEDY = "see that the caller could import it, or leave it out of preload"


class Session:
    """One supervisor, from its start to its end.

    To be used by one thread. ``close`` must be called; it cancels what still runs, and comes back when nothing
    of the run is left.
    """

    def __init__(self, backend: Backend, options: RunOptions, inherited_tasks: dict[int, Task | Command]) -> None:
        """Start a supervisor.

        Args:
            backend: How limits are held.
            options: Of the run.
            inherited_tasks: Tasks, by number, that ``submit`` will order without their being pickled.

        Raises:
            SandboxError: It cannot be started.
        """
        self._backend = backend
        self._options = replace(options, caller=os.getpid(), collect_garbage=gc.isenabled())
        self._inherited_tasks = inherited_tasks if options.start_method == "fork" else {}
        self._unfinished: dict[int, Task | Command] = {}
        self._orders: list[Order] = []
        self._arrived: deque[TaskResult] = deque()
        self._lost = False
        self.cancelled = False
        with _standard_descriptors_open(), contextlib.ExitStack() as started, contextlib.ExitStack() as undo:
            caller_end, supervisor_end = socket.socketpair()
            undo.callback(caller_end.close)
            started.callback(supervisor_end.close)
            reader, writer = os.pipe()
            undo.callback(os.close, writer)
            started.callback(os.close, reader)
            if options.start_method == "fork":
                self._reaper = self._fork(supervisor_end, reader, {caller_end.fileno(), writer})
            else:
                self._reaper = self._spawn(supervisor_end, reader)
            undo.pop_all()
        self._channel = Channel(caller_end)
        _sessions.add(self)
        self._open_gate(writer, caller_end)

    # --- starting -----------------------------------------------------------------------------------

    def _open_gate(self, gate: int, caller_end: socket.socket) -> None:
        """Let a clean interpreter get ready, prepare the backend with the reaper's pid, and let the reaper go on."""
        try:
            if self._options.start_method != "fork":
                self._make_ready(gate, caller_end)
            _put(gate, (self._backend.prepare(self._reaper), self._options))
        except BaseException:
            with contextlib.suppress(ProcessLookupError):  # the caller's own code may have reaped it
                os.kill(self._reaper, signal.SIGKILL)
            self.close()
            raise
        finally:
            os.close(gate)

    def _make_ready(self, gate: int, caller_end: socket.socket) -> None:
        """Tell a clean interpreter what a fork would know, and wait until it has imported what it shall.

        So a mistake is told here, once, and not by each task; and an import that never ends can be interrupted.
        """
        preload = self._options.preload
        _put(gate, (os.getpid(), sys.path, os.environ.get("PYTHONPATH"), self._backend.name, preload))
        if preload:
            _check_preloaded(caller_end)

    def _descriptors(self) -> list[int]:
        """Those that it holds in the caller's process."""
        return [self._channel.fileno(), *self._backend.descriptors()]

    def _fork(self, supervisor_end: socket.socket, gate: int, own: set[int]) -> int:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, OSError, ValueError):
                stream.flush()  # or every guest would write again what is buffered here
        # Blocked until the child has seen to itself: a Ctrl-C that arrives in it belongs to the caller.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                for session in _sessions:  # other managers' in this process
                    own.update(session._descriptors())
                run_reaper(supervisor_end, gate, own, self._backend, self._inherited_tasks)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _spawn(self, supervisor_end: socket.socket, gate: int) -> int:
        import subprocess  # noqa: PLC0415 - it imports threading, which every later fork pays for

        process = subprocess.Popen(
            [sys.executable, "-c", _FORKSERVER, str(supervisor_end.fileno()), str(gate)],
            pass_fds=(supervisor_end.fileno(), gate),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        process.returncode = 0  # it is reaped by us: Popen would wait for it and warn
        return process.pid

    # --- orders -------------------------------------------------------------------------------------

    @property
    def unfinished(self) -> int:
        """How many tasks were submitted and have no result yet."""
        return len(self._unfinished) + len(self._arrived)

    def is_inherited(self, number: int) -> bool:
        """Whether this task came along with the fork."""
        return number in self._inherited_tasks

    def submit(self, number: int, task: Task | Command) -> None:
        """Order a task, to be sent by ``flush``. Whatever becomes of it, ``next_result`` gives its result."""
        limits = self._options.limits.overridden_by(task.limits)
        self._unfinished[number] = task
        try:
            work = None if self._inherited_tasks.pop(number, None) is not None else self._pack(task)
        except TransferError as error:
            del self._unfinished[number]
            self._arrived.append(
                make_result(task, Report(number, Outcome.FAILED, str(error), error=error), None, self._options)
            )
            return
        if isinstance(work, bytes) and len(work) > LARGEST_WORK:
            self.flush()  # in order
            self._post([Order(number, limits)], call.store(work, "gwsandbox-task"))
        else:
            self._orders.append(Order(number, limits, work))

    def _pack(self, task: Task | Command) -> bytes | Command:
        if isinstance(task, Command):
            return task
        return call.pack_task(task, by_value=self._options.start_method != "fork")

    def flush(self) -> None:
        """Send what was submitted."""
        orders, self._orders = self._orders, []
        if orders:
            self._post(orders, None)

    def _post(self, orders: list[Order], descriptor: int | None) -> None:
        self._channel.post(orders, descriptor)
        try:
            self._channel.flush()
        except OSError:  # it is gone: the next ``next_result`` says so
            self._channel.drop()

    # --- results ------------------------------------------------------------------------------------

    def next_result(self) -> TaskResult:
        """The next result; waits for one. To be called only while there are ``unfinished`` tasks."""
        while not self._arrived:
            self._receive()
        return self._arrived.popleft()

    def fileno(self) -> int:
        """The descriptor that can be read when ``results_now`` would give something, or would lose the session."""
        return self._channel.fileno()

    @property
    def lost(self) -> bool:
        """Whether the supervisor is gone: what was unfinished gets results that say so, and nothing runs any more."""
        return self._lost

    def results_now(self) -> list[TaskResult]:
        """What has come; does not wait where ``fileno`` can be read. May be empty."""
        self._receive()
        if self._lost:
            self._report_lost()
        found = list(self._arrived)
        self._arrived.clear()
        return found

    def _receive(self) -> None:
        if self._lost:
            self._report_lost()
            return
        try:
            messages = self._channel.receive()
        except EOFError:
            self._lost = True
            return
        for report, descriptor in messages:
            task = self._unfinished.pop(report.number, None)
            if task is not None:
                self._arrived.append(make_result(task, report, descriptor, self._options))
            else:
                close_descriptor(descriptor)

    def _report_lost(self) -> None:
        error = SandboxError(
            "the supervisor process ended before its time", remedy="see stderr, or the journal, for who killed it"
        )
        for number, task in self._unfinished.items():
            report = Report(number, Outcome.SANDBOX_ERROR, str(error), error=error)
            self._arrived.append(make_result(task, report, None, self._options))
        self._unfinished.clear()

    # --- ending -------------------------------------------------------------------------------------

    def cancel(self) -> None:
        """End everything that runs and all that waits; the results still come out of ``results``."""
        self.cancelled = True
        self._orders.clear()
        self._channel.end_of_orders()

    def close(self) -> None:
        """Cancel what is unfinished, and come back when no process or cgroup of the run is left."""
        self._channel.end_of_orders()
        try:
            while not self._lost:
                self._receive()
        finally:
            _sessions.discard(self)
            self._channel.close()
            # The caller's own code may have reaped it.
            with contextlib.suppress(ChildProcessError, ProcessLookupError):
                os.kill(self._reaper, signal.SIGCONT)  # a guest may have stopped it before it killed the supervisor
                os.waitpid(self._reaper, 0)
            self._backend.destroy()


def _put(gate: int, message: tuple[Any, ...]) -> None:
    """Write to the reaper. If it was killed already, the link says so."""
    with contextlib.suppress(BrokenPipeError), open(gate, "wb", closefd=False) as pipe:
        pipe.write(pickle.dumps(message, protocol=5))


def _check_preloaded(link: socket.socket) -> None:
    if link.recv(1) == PRELOADED:
        return
    with link.makefile("rb") as rest:
        told = rest.read()
    if not told:
        raise SandboxError("preload modules: the interpreter ended meanwhile", remedy=_PRELOAD_REMEDY)
    name, reason, trace = pickle.loads(told)
    error = SandboxError(f"preload modules: {reason}", value=name, remedy=_PRELOAD_REMEDY)
    error.add_note(trace)
    raise error


@contextlib.contextmanager
def _standard_descriptors_open() -> Iterator[None]:
    """Let 0, 1 and 2 be open for a while: where the caller has closed them, ours would be taken for them."""
    plugs = []
    try:
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            plugs.append(fd)
            os.set_inheritable(fd, True)
        os.close(fd)
        yield
    finally:
        for fd in plugs:
            os.close(fd)
