"""Where guests are forked and wait for their time: the supervisor's dealings with its zygote."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import pickle
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping

from gwsandbox.backends.base import Backend, limit_resources
from gwsandbox.ipc import call, record
from gwsandbox.ipc.birth import LARGEST_WORK
from gwsandbox.ipc.channel import STDERR, STDIN, STDOUT, Order, Packet
from gwsandbox.linux.errnos import Patience, is_not_now
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.options import RunOptions
from gwsandbox.model.task import Command, Task
from gwsandbox.supervisor.attempt import Attempt
from gwsandbox.supervisor.event_loop import EventLoop
from gwsandbox.supervisor.output import output_pipes
from gwsandbox.supervisor.reserve import Reserve
from gwsandbox.supervisor.zygote_process import ZygoteProcess, not_born

_BIRTH_SECONDS = 0.5  # after which the zygote is continued, in case somebody has stopped it
_BIRTH_LIMIT = 20.0  # seconds after which a zygote that answers nothing is killed
_LATER_SECONDS = 0.02  # until a request is tried again that the kernel has no memory for
_CLEAR_SECONDS = 0.002, 0.5  # until what is left of an attempt is looked at again: at first, and at the most
_SEND_SECONDS = 5.0  # that the kernel may have no memory for a request
_STUCK_SECONDS = 10.0  # after which what does not go away holds back no further guest
_LOST_IN_A_ROW = 3  # zygotes that die one after the other before what they were to fork is given up


class Launcher:
    """Opens sandboxes, has guests born into them, and keeps those until a slot is free.

    Args:
        backend: How limits are held.
        inherited_tasks: Tasks that came along with the fork, by number.
        options: Of the run.
        loop: The supervisor's.
        reserve: The supervisor's.
        refuse: Gets each order that cannot be started, with the reason.
        requeue: Gets each order that was lost with a zygote before its guest could do anything.
        note_confinement: Gets what holds the run's hardening, by mechanism.
    """

    def __init__(
        self,
        backend: Backend,
        inherited_tasks: Mapping[int, Task | Command],
        options: RunOptions,
        loop: EventLoop,
        reserve: Reserve,
        *,
        refuse: Callable[[Order, Exception], None],
        requeue: Callable[[Order], None],
        note_confinement: Callable[[dict[str, str]], None],
    ) -> None:
        self.ready: deque[Attempt] = deque()
        self.starting: deque[Attempt] = deque()
        self.abandoned: list[Attempt] = []
        self._held: tuple[Attempt, Packet] | None = None
        self._backend = backend
        self._inherited_tasks = inherited_tasks
        self._options = options
        self._loop, self._reserve = loop, reserve
        self._refuse, self._requeue = refuse, requeue
        self._note_confinement = note_confinement
        self._is_confined = False
        self._zygote: ZygoteProcess | None = None
        self._inits: list[int] = []
        self._slots: set[int] = set()
        self._lost = 0
        self._next_wake: float | None = None
        self._birth_deadline = 0.0
        self._next_clearing: float | None = None
        self._clear_after = _CLEAR_SECONDS[0]
        self._waits_for_room = False
        self._send_patience = Patience(_SEND_SECONDS)

    def __len__(self) -> int:
        """Guests that wait or are being born."""
        return len(self.ready) + len(self.starting) + (self._held is not None)

    # --- the zygote ---------------------------------------------------------------------------------

    @property
    def has_zygote(self) -> bool:
        """Whether there is one, alive as far as is known."""
        return self._zygote is not None

    def open(self, not_callers: list[int]) -> None:
        """Fork a zygote, which closes ``not_callers`` and what is the launcher's.

        Raises:
            OSError: The kernel refused.
        """
        here = [fd for attempt in self.attempts() for fd in attempt.descriptors()]
        zygote = ZygoteProcess(
            self._inherited_tasks,
            [self._loop.fileno(), *self._backend.descriptors(), *not_callers, *here],
            self._options,
            limits=self._reserve.inherited_limits,
        )
        try:
            self._loop.watch(zygote.fileno(), select.EPOLLIN, self.take_answers)
            self._loop.watch(zygote.pidfd, select.EPOLLIN, self._zygote_died)
        except OSError:
            self._loop.forget(zygote.fileno())
            zygote.close()
            raise
        self._zygote = zygote
        self._waits_for_room = False
        if zygote.init:
            self._inits.append(zygote.init)
        self._backend.adopt(zygote.pid, zygote.init, self.has_births)

    @property
    def zygote_pid(self) -> int:
        """Pid of the zygote; 0 where there is none."""
        return 0 if self._zygote is None else self._zygote.pid

    def attempts(self) -> list[Attempt]:
        """All attempts that are the launcher's."""
        held = [] if self._held is None else [self._held[0]]
        return [*self.starting, *self.ready, *self.abandoned, *held]

    def waiting(self) -> set[int]:
        """Numbers of the orders whose guests wait or are being born."""
        held = [] if self._held is None else [self._held[0]]
        return {attempt.order.number for attempt in (*self.starting, *self.ready, *held)}

    @property
    def dying(self) -> int:
        """Attempts that come to nothing and are about to go away; 0 where one of them has not gone for long."""
        is_stuck = any(attempt.abandoned_at < time.monotonic() - _STUCK_SECONDS for attempt in self.abandoned)
        return 0 if is_stuck else len(self.abandoned)

    def has_births(self) -> bool:
        """Whether the zygote may have forked a guest that is not known yet."""
        return bool(self.starting)

    def close(self) -> None:
        """End the zygote, and its PID namespaces with all that is in them. Waits until it is dead."""
        self._close_zygote()
        for init in self._inits:
            os.kill(init, signal.SIGKILL)
        while self._inits:  # each ends when all of its namespace are dead and reaped, in whatever order
            pid, _ = os.waitpid(-1, 0)
            self._inits = [init for init in self._inits if init != pid]

    def _close_zygote(self) -> None:
        if self._zygote is not None:
            zygote, self._zygote = self._zygote, None
            self._loop.forget(zygote.fileno())
            self._loop.forget(zygote.pidfd)
            zygote.close()

    def _zygote_died(self) -> None:
        """Its pidfd says so. What it answered before is still to be read."""
        self.take_answers()
        zygote = self._zygote
        self._close_zygote()
        if not self._is_confined and self._options.hardening.require:
            self._note_confinement({})  # the caller waits for it
        self._lose_births(0 if zygote is None else zygote.failure_errno)

    def _lose_births(self, why: int) -> None:
        """Guests that the zygote had not answered for would wait for ever: others take their place.

        Args:
            why: The errno that ended it, or 0.
        """
        self._lost += 1
        self._next_wake = None
        unborn = [*self.starting]
        self.starting.clear()
        if self._held is not None:
            unborn.append(self._held[0])
            self._held = None
        for attempt in reversed(unborn):
            order, attempt.order = attempt.order, attempt.order.without_descriptors()
            self.abandon(attempt)
            if self._lost < _LOST_IN_A_ROW:
                self._requeue(order)
            else:
                step = "fork guest: the zygote process ended again and again"
                self._refuse(order, SandboxError(step, errno=why))

    # --- moments ------------------------------------------------------------------------------------

    @property
    def next_look(self) -> float | None:
        """The monotonic moment at which ``look`` is to be called, in seconds."""
        wake, clearing = self._next_wake, self._next_clearing
        if wake is None or clearing is None:
            return wake if clearing is None else clearing
        return min(wake, clearing)

    def look(self, now: float) -> None:
        """To be called when ``next_look`` has come."""
        if self._next_clearing is not None and now >= self._next_clearing:
            self._clear()
        if self._next_wake is None or now < self._next_wake or self._zygote is None:
            return
        self._next_wake = now + _BIRTH_SECONDS
        if self._held is not None:
            self._send_held()
        if now >= self._birth_deadline:
            self._zygote.kill()  # its pidfd announces its death
        else:
            self._zygote.wake()

    def _expect_answers(self) -> None:
        now = time.monotonic()
        self._next_wake = now + _BIRTH_SECONDS
        self._birth_deadline = now + _BIRTH_LIMIT

    # --- births -------------------------------------------------------------------------------------

    @property
    def is_blocked(self) -> bool:
        """Whether a request waits for room in the zygote's socket, and no further one can be made."""
        return self._held is not None

    def order(self, order: Order) -> None:
        """Open a sandbox for an order, and have a guest born into it."""
        try:
            attempt, packet = self._prepare(order)
        except Exception as error:  # noqa: BLE001 - whatever stops one task must not stop the others
            self._refuse(order, error)
            return
        self._held = attempt, packet
        self._send_held()

    def _send_held(self) -> None:
        """Send the request that waits, if the zygote's socket takes it."""
        if self._zygote is None or self._held is None:
            return
        attempt, packet = self._held
        try:
            refused = self._zygote.send(packet)
        except BrokenPipeError:
            return  # its pidfd announces its death, and then the order is tried once more
        except OSError as error:
            self._held = None
            self.abandon(attempt)
            self._refuse(attempt.order, error)
            return
        self._watch_zygote(for_room=refused == errno.EAGAIN)
        if not refused:
            self._held = None
            attempt.asked()
            self.starting.append(attempt)
        if self._next_wake is None:
            self._expect_answers()
            self._send_patience.renew()
        if refused not in {0, errno.EAGAIN}:
            self._send_later(attempt, refused)

    def _send_later(self, attempt: Attempt, refused: int) -> None:
        """The kernel has no memory for the request now. What lasts for seconds does not pass: then the order fails."""
        try:
            self._send_patience.bear(OSError(refused, os.strerror(refused)))
        except OSError as error:
            self._held = None
            self.abandon(attempt)
            self._refuse(attempt.order, SandboxError("ask zygote for guest", value=str(error)))
        else:
            self._next_wake = time.monotonic() + _LATER_SECONDS

    def _watch_zygote(self, *, for_room: bool) -> None:
        """Wait for answers, and for room in the socket where a request waits for it."""
        if self._zygote is None or for_room is self._waits_for_room:
            return
        self._waits_for_room = for_room
        self._loop.forget(self._zygote.fileno())
        mask = select.EPOLLIN | (select.EPOLLOUT if for_room else 0)
        handler = self._room_or_answers if for_room else self.take_answers
        self._loop.watch(self._zygote.fileno(), mask, handler)

    def _room_or_answers(self) -> None:
        self.take_answers()
        self._send_held()

    def _prepare(self, order: Order) -> tuple[Attempt, Packet]:
        """The attempt, and the request that the zygote is to get."""
        task = self._inherited_tasks.get(order.inherited) if order.inherited else order.work
        with contextlib.ExitStack() as undo:
            sandbox = self._backend.open(order.limits)
            undo.callback(sandbox.close)
            result = record.create()
            undo.callback(os.close, result)
            start_event = os.eventfd(0, os.EFD_CLOEXEC)
            undo.callback(os.close, start_event)
            requested = order.limits.requested()
            if "file_size" in requested or self._reserve.limits_file_size:
                record.make_room(result)
            attempt = Attempt(order, isinstance(task, Command), sandbox, result, start_event, [], requested)
            attempt.slot = self._take_slot()
            undo.callback(self.release, attempt)
            attempt.room_is_limited = self._reserve.limits_room
            undo.callback(attempt.asked)
            limit, targets = requested.get("output"), self._targets(attempt)
            for pipe in output_pipes(limit, targets):
                undo.callback(pipe.close)
                attempt.outputs.append(pipe)
            packet = self._request(attempt, task)
            undo.pop_all()
        return attempt, packet

    def _targets(self, attempt: Attempt) -> tuple[int | None, ...]:
        """Where its output goes: to the caller's pipes or its own descriptors, or ``None`` where it is kept."""
        if attempt.order.streams & STDOUT:
            return attempt.order.end(STDOUT), attempt.order.end(STDERR)
        if attempt.is_command and not self._options.pass_through:
            return None, None
        return (1, 2) if "output" in attempt.requested else ()

    def _request(self, attempt: Attempt, task: Task | Command | bytes | None) -> Packet:
        order, stdin = attempt.order, None
        work, descriptor = order.work or b"", order.descriptor
        if order.streams & STDIN:
            stdin = order.end(STDIN)
        elif isinstance(task, Command) and isinstance(task.stdin, bytes):
            stdin = call.store(task.stdin, "gwsandbox-stdin", attempt.sending)
            os.lseek(stdin, 0, os.SEEK_SET)
        if isinstance(work, Command):
            work = pickle.dumps((work.argv, work.cwd, work.env), protocol=5)
        if len(work) > LARGEST_WORK:
            descriptor = call.store(work, "gwsandbox-task", attempt.sending)
            work = b""
        stdout, stderr = [pipe.guests_end for pipe in attempt.outputs] or (None, None)
        assert self._zygote is not None
        return self._zygote.request(
            order.inherited,
            {
                "result": attempt.result,
                "start_event": attempt.start_event,
                "cgroup": attempt.sandbox.cgroup,
                "work": descriptor,
                "stdin": stdin,
                "stdout": stdout,
                "stderr": stderr,
            },
            slot=attempt.slot,
            work=work,
            is_command=attempt.is_command,
            data_limit=attempt.sandbox.data_limit_at_exec if attempt.is_command else 0,
        )

    def _take_slot(self) -> int:
        """The lowest number that no living guest has."""
        slot = next(number for number in itertools.count() if number not in self._slots)
        self._slots.add(slot)
        return slot

    def release(self, attempt: Attempt) -> None:
        """Nothing of an attempt lives any more: its slot is another's."""
        self._slots.discard(attempt.slot)

    def take_answers(self) -> None:
        """Read what the zygote has answered: each answer is a guest that waits for its time."""
        while self._zygote is not None:
            pid = self._zygote.answer()
            if isinstance(pid, dict):
                self._is_confined = True
                self._note_confinement(pid)
                continue
            if pid is None or not self.starting:
                return
            attempt = self.starting.popleft()
            self._lost = 0
            if self.starting or self._held is not None:
                self._expect_answers()
            else:
                self._next_wake = None
            self._accept(attempt, pid)

    def _accept(self, attempt: Attempt, pid: int) -> None:
        order = attempt.order
        try:
            if pid < 0:
                raise not_born(-pid)  # noqa: TRY301 - as the others
            attempt.pid = pid
            attempt.pidfd = self._reserve.use(functools.partial(os.pidfd_open, pid))
            for pipe in attempt.outputs:
                pipe.started()
            self._reserve.use(functools.partial(self._confine, attempt))
        except Exception as error:  # noqa: BLE001 - whatever stops one task must not stop the others
            attempt.order = order.without_descriptors()
            self.abandon(attempt)
            self._refuse(order, error)
            return
        attempt.born()
        self.ready.append(attempt)

    @staticmethod
    def _confine(attempt: Attempt) -> None:
        """Do what can be done from outside to a guest that waits."""
        attempt.sandbox.started(attempt.pid, keeps_memory=not attempt.is_command)
        limit_resources(attempt.pid, attempt.requested)

    # --- attempts that come to nothing --------------------------------------------------------------

    def abandon(self, attempt: Attempt) -> None:
        """End an attempt of which nothing is wanted any more, in the middle of whatever it was doing."""
        attempt.close_all()
        attempt.abandoned_at = time.monotonic()
        self.abandoned.append(attempt)
        self._clear_after = _CLEAR_SECONDS[0]
        self._clear()

    def _clear(self) -> None:
        """Take away what is left of abandoned attempts. What does not go now is looked at again."""
        left = []
        for attempt in self.abandoned:
            try:
                gone = self._reserve.use(attempt.is_cleared)
            except ChildProcessError:
                attempt.dead, gone = True, False
            except Exception as error:  # noqa: BLE001 - at the end of the run the backend removes all
                gone = attempt.dead and not is_not_now(error)
            if gone:
                self.release(attempt)
            else:
                left.append(attempt)
        self.abandoned = left
        self._next_clearing = time.monotonic() + self._clear_after if left else None
        self._clear_after = min(self._clear_after * 2, _CLEAR_SECONDS[1])
