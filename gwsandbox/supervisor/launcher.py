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
from gwsandbox.guest.child import Manner
from gwsandbox.guest.zygote import LARGEST_WORK, Zygote
from gwsandbox.ipc import call, record
from gwsandbox.ipc.channel import Order
from gwsandbox.ipc.output_store import Store
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.task import Command, Task
from gwsandbox.supervisor.attempt import Attempt
from gwsandbox.supervisor.event_loop import Loop
from gwsandbox.supervisor.output import Budget, OutputPipe

_BIRTH_SECONDS = 0.5  # after which we look whether somebody has stopped the zygote
_LOST_IN_A_ROW = 3  # zygotes that are killed one after the other before we give up what they were to fork


class Nursery:
    """Opens cells, has guests born into them, and keeps those until a slot is free.

    ``fail`` is told of every order that comes to nothing, and ``give_back`` gets each that was lost with a zygote
    before its guest could do anything.
    """

    def __init__(
        self,
        backend: Backend,
        brought: Mapping[int, Task | Command],
        manner: Manner,
        loop: Loop,
        *,
        fail: Callable[[Order, Exception], None],
        give_back: Callable[[Order], None],
    ) -> None:
        self.spares: deque[Attempt] = deque()
        self.births: deque[Attempt] = deque()
        self.next_look: float | None = None
        self._backend = backend
        self._brought = brought
        self._manner = manner
        self._loop = loop
        self._fail = fail
        self._give_back = give_back
        self._zygote: Zygote | None = None
        self._lost = 0

    def __len__(self) -> int:
        """Guests that wait or are being born."""
        return len(self.spares) + len(self.births)

    # --- the zygote ---------------------------------------------------------------------------------

    def open(self, not_callers: list[int]) -> None:
        """Fork a zygote, which closes ``not_callers``."""
        here = [fd for attempt in (*self.births, *self.spares) for fd in attempt.descriptors()]
        ours = [self._loop.fileno(), *self._backend.descriptors(), *not_callers, *here]
        self._zygote = Zygote(self._brought, ours, self._manner)
        self._backend.adopt(self._zygote.pid, self.settle)
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

    def settle(self) -> None:
        """Wait until every guest that the zygote was asked for is known: milliseconds."""
        while self.births and self._zygote is not None:
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
        unborn, self.births = self.births, deque()
        for attempt in unborn:
            self._bury(attempt)
        for order in reversed([*(attempt.order for attempt in unborn), *unsent]):
            if self._lost < _LOST_IN_A_ROW:
                self._give_back(order)
            else:
                order.close()
                self._fail(order, SandboxError("fork guest: the zygote process was killed again and again"))

    @property
    def has_zygote(self) -> bool:
        return self._zygote is not None

    # --- births -------------------------------------------------------------------------------------

    def order(self, order: Order, *, pass_through: bool) -> None:
        """Open a cell for an order, and have a guest born into it."""
        try:
            attempt = self._prepare(order, pass_through=pass_through)
        except ConnectionError:  # the zygote was killed, and we hear of it here first
            self._zygote_lost(order)
            return
        except Exception as error:  # noqa: BLE001 - whatever stops one task must not stop the others
            order.close()
            self._fail(order, error)
            return
        self.births.append(attempt)
        if self.next_look is None:
            self.next_look = time.monotonic() + _BIRTH_SECONDS

    def _prepare(self, order: Order, *, pass_through: bool) -> Attempt:
        task = order.work if order.work is not None else self._brought.get(order.number)
        with contextlib.ExitStack() as undo:
            cell = self._backend.open(order.limits)
            undo.callback(cell.close)
            result = os.memfd_create("gwsandbox-result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            undo.callback(os.close, result)
            go = os.eventfd(0, os.EFD_CLOEXEC)
            undo.callback(os.close, go)
            asked = order.limits.asked()
            if "file_size" in asked:
                record.make_room(result)
            attempt = Attempt(order, isinstance(task, Command), cell, result, go, [], asked)
            for pipe in _output_pipes(attempt, pass_through=pass_through):
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
                    "go": attempt.go,
                    "cgroup": attempt.cell.cgroup,
                    "work": descriptor,
                    "stdin": stdin,
                    "stdout": stdout,
                    "stderr": stderr,
                },
                work=work,
                is_command=attempt.is_command,
                data_limit=attempt.cell.data_limit_at_exec if attempt.is_command else 0,
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
        attempt = self.births.popleft()
        self.next_look = time.monotonic() + _BIRTH_SECONDS if self.births else None
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
            self._bury(attempt)
            self._fail(attempt.order, error)
            return
        self.spares.append(attempt)

    def _confine(self, attempt: Attempt) -> None:
        """What can be done from outside to a guest that waits."""
        for pipe in attempt.outputs:
            pipe.started()
        attempt.cell.started(attempt.pid, keeps_memory=not attempt.is_command)
        limit_resources(attempt.pid, attempt.asked)

    def _bury(self, attempt: Attempt) -> None:
        """End an attempt whose guest never had its time, or was never born."""
        attempt.cell.kill()
        if attempt.pid:
            os.kill(attempt.pid, signal.SIGKILL)
            os.waitpid(attempt.pid, 0)
        attempt.close()
        os.close(attempt.result)
        attempt.cell.close()


def _output_pipes(attempt: Attempt, *, pass_through: bool) -> Iterator[OutputPipe]:
    """For stdout and stderr, where the guest does not write to the caller's own."""
    budget, store = Budget(attempt.asked.get("output")), Store()
    if attempt.is_command and not pass_through:
        targets: tuple[int | None, ...] = (None, None)
    else:
        targets = (1, 2) if "output" in attempt.asked else ()
    for number, target in enumerate(targets):
        yield OutputPipe(number, budget, store, target)
