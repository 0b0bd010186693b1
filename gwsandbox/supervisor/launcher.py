"""Where guests are born and wait for their time: the supervisor's dealings with its zygote."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

from gwsandbox.backends.base import Backend, limit_resources
from gwsandbox.ipc import call, record
from gwsandbox.ipc.birth import LARGEST_WORK
from gwsandbox.ipc.channel import Order
from gwsandbox.ipc.output_store import Store
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.options import RunOptions
from gwsandbox.model.task import Command, Task
from gwsandbox.supervisor.attempt import Attempt
from gwsandbox.supervisor.event_loop import Loop
from gwsandbox.supervisor.output import Budget, OutputPipe
from gwsandbox.supervisor.zygote_process import ZygoteProcess

_BIRTH_SECONDS = 0.5  # after which we look whether somebody has stopped the zygote
_LOST_IN_A_ROW = 3  # zygotes that are killed one after the other before we give up what they were to fork


class Launcher:
    """Opens sandboxes, has guests born into them, and keeps those until a slot is free.

    ``fail`` is told of every order that comes to nothing, and ``requeue`` gets each that was lost with a zygote
    before its guest could do anything.
    """

    def __init__(
        self,
        backend: Backend,
        inherited_tasks: Mapping[int, Task | Command],
        options: RunOptions,
        loop: Loop,
        *,
        open_files: tuple[int, int],
        fail: Callable[[Order, Exception], None],
        requeue: Callable[[Order], None],
    ) -> None:
        self.ready: deque[Attempt] = deque()
        self.starting: deque[Attempt] = deque()
        self.next_look: float | None = None
        self._backend = backend
        self._inherited_tasks = inherited_tasks
        self._options = options
        self._open_files = open_files
        self._loop = loop
        self._fail = fail
        self._requeue = requeue
        self._zygote: ZygoteProcess | None = None
        self._lost = 0

    def __len__(self) -> int:
        """Guests that wait or are being born."""
        return len(self.ready) + len(self.starting)

    # --- the zygote ---------------------------------------------------------------------------------

    def open(self, not_callers: list[int]) -> None:
        """Fork a zygote, which closes ``not_callers``."""
        here = [fd for attempt in (*self.starting, *self.ready) for fd in attempt.descriptors()]
        ours = [self._loop.fileno(), *self._backend.descriptors(), *not_callers, *here]
        self._zygote = ZygoteProcess(
            self._inherited_tasks,
            ours,
            self._options,
            open_files=self._open_files,
            be_subreaper=self._backend.needs_subreaper,
        )
        self._backend.adopt(self._zygote.pid, self.await_births)
        self._loop.watch(self._zygote.fileno(), select.EPOLLIN, self._answered)

    def close(self) -> None:
        """End the zygote."""
        if self._zygote is not None:
            self._loop.forget(self._zygote.fileno())
            self._zygote.close()
            self._zygote = None

    def look(self, now: float) -> None:
        """To be called when ``next_look`` has come: a birth takes long, and somebody may have stopped the zygote."""
        if self.next_look is not None and now >= self.next_look and self._zygote is not None:
            self._zygote.wake()
            self.next_look = now + _BIRTH_SECONDS

    def await_births(self) -> None:
        """Wait until every guest that the zygote was asked for is known: milliseconds."""
        while self.starting and self._zygote is not None:
            poll = select.poll()
            poll.register(self._zygote.fileno(), select.POLLIN)
            if poll.poll(_BIRTH_SECONDS * 1000):
                self._answered()
            else:
                self._zygote.wake()

    def _zygote_lost(self, *unsent: Order) -> None:
        """It was killed. Guests that it had not answered for would wait for ever: others take their place."""
        self.close()
        self._lost += 1
        self.next_look = None
        unborn, self.starting = self.starting, deque()
        for attempt in unborn:
            self._abandon(attempt)
        for order in reversed([*(attempt.order for attempt in unborn), *unsent]):
            if self._lost < _LOST_IN_A_ROW:
                self._requeue(order)
            else:
                order.close()
                self._fail(order, SandboxError("fork guest: the zygote process was killed again and again"))

    @property
    def has_zygote(self) -> bool:
        return self._zygote is not None

    # --- births -------------------------------------------------------------------------------------

    def order(self, order: Order) -> None:
        """Open a sandbox for an order, and have a guest born into it."""
        try:
            attempt = self._prepare(order)
        except ConnectionError:  # the zygote was killed, and we hear of it here first
            self._zygote_lost(order)
            return
        except Exception as error:  # noqa: BLE001 - whatever stops one task must not stop the others
            order.close()
            self._fail(order, error)
            return
        self.starting.append(attempt)
        if self.next_look is None:
            self.next_look = time.monotonic() + _BIRTH_SECONDS

    def _prepare(self, order: Order) -> Attempt:
        task = order.work if order.work is not None else self._inherited_tasks.get(order.number)
        with contextlib.ExitStack() as undo:
            sandbox = self._backend.open(order.limits)
            undo.callback(sandbox.close)
            result = os.memfd_create("gwsandbox-result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, result)
            start_event = os.eventfd(0, os.EFD_CLOEXEC)
            undo.callback(os.close, start_event)
            requested = order.limits.requested()
            if "file_size" in requested:
                record.make_room(result)
            attempt = Attempt(order, isinstance(task, Command), sandbox, result, start_event, [], requested)
            for pipe in _output_pipes(attempt, pass_through=self._options.pass_through):
                undo.callback(pipe.close)
                attempt.outputs.append(pipe)
            self._send(attempt, task)
            undo.pop_all()
        return attempt

    def _send(self, attempt: Attempt, task: Task | Command | bytes | None) -> None:
        with contextlib.ExitStack() as sent:
            work, descriptor, stdin = attempt.order.work or b"", attempt.order.descriptor, None
            if isinstance(task, Command) and task.stdin is not None:
                stdin = call.store(task.stdin, "gwsandbox-stdin")
                sent.callback(os.close, stdin)
            if isinstance(work, Command):
                work = pickle.dumps((work.argv, work.cwd, work.env), protocol=5)
            if len(work) > LARGEST_WORK:
                descriptor = call.store(work, "gwsandbox-task")
                sent.callback(os.close, descriptor)
                work = b""
            stdout, stderr = [pipe.guests_end for pipe in attempt.outputs] or (None, None)
            assert self._zygote is not None
            self._zygote.order_birth(
                attempt.order.number,
                {
                    "result": attempt.result,
                    "start_event": attempt.start_event,
                    "cgroup": attempt.sandbox.cgroup,
                    "work": descriptor,
                    "stdin": stdin,
                    "stdout": stdout,
                    "stderr": stderr,
                },
                work=work,
                is_command=attempt.is_command,
                data_limit=attempt.sandbox.data_limit_at_exec if attempt.is_command else 0,
            )

    def _answered(self) -> None:
        """The zygote answers: a guest waits for its time."""
        assert self._zygote is not None
        try:
            pid = self._zygote.answer()
        except EOFError:
            self._zygote_lost()
            return
        if pid is None:  # woken for an answer that was taken while we settled
            return
        attempt = self.starting.popleft()
        self.next_look = time.monotonic() + _BIRTH_SECONDS if self.starting else None
        self._lost = 0
        attempt.order.close()
        try:
            if pid < 0:
                raise SandboxError(  # noqa: TRY301 - as the others
                    "fork guest", errno=-pid, remedy="see ulimit -u and the cgroup's pids.max"
                )
            attempt.pid = pid
            attempt.pidfd = os.pidfd_open(pid)
            self._confine(attempt)
        except Exception as error:  # noqa: BLE001 - whatever stops one task must not stop the others
            self._abandon(attempt)
            self._fail(attempt.order, error)
            return
        self.ready.append(attempt)

    def _confine(self, attempt: Attempt) -> None:
        """What can be done from outside to a guest that waits."""
        for pipe in attempt.outputs:
            pipe.started()
        attempt.sandbox.started(attempt.pid, keeps_memory=not attempt.is_command)
        limit_resources(attempt.pid, attempt.requested)

    def _abandon(self, attempt: Attempt) -> None:
        """End an attempt whose guest never had its time, or was never born."""
        attempt.sandbox.kill()
        if attempt.pid:
            os.kill(attempt.pid, signal.SIGKILL)
            os.waitpid(attempt.pid, 0)
        attempt.close()
        os.close(attempt.result)
        attempt.sandbox.close()


def _output_pipes(attempt: Attempt, *, pass_through: bool) -> Iterator[OutputPipe]:
    """For stdout and stderr, where the guest does not write to the caller's own."""
    budget, store = Budget(attempt.requested.get("output")), Store()
    if attempt.is_command and not pass_through:
        targets: tuple[int | None, ...] = (None, None)
    else:
        targets = (1, 2) if "output" in attempt.requested else ()
    for number, target in enumerate(targets):
        yield OutputPipe(number, budget, store, target)
