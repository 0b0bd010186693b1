"""The supervisor: starts, watches, ends and judges every attempt of one run.

Theory of operation
===================

Four kinds of processes take part::

    caller ──socket── supervisor ──clone3── guest, guest, …   (one per task, each in a cell of its own)
       └────fork──── keeper ──fork──┘

* The **caller** may have threads, hold gigabytes, block for minutes or be killed, so it supervises nothing. It
  sends ``Order`` s, as many as there are slots and a few to come, and receives ``Report`` s.
* The **keeper** (``keeper.py``) only waits for the supervisor: it continues it if a guest has stopped it, and
  clears up if it was killed.
* The **supervisor** is single-threaded and has one epoll loop. It waits for the socket, the guests' pidfds,
  their pipes, the "populated" event of their cgroups, the caller's pidfd, and the nearest deadline. Nothing is
  polled but what has no event: CPU time, and without cgroups memory.
* A **guest** (``guest.py``) is a fresh process, born in its cell. Its record (``transport.py``) goes into a
  memfd that is passed on to the caller unread.

Every signal is blocked here, so only SIGKILL ends a supervisor. It ends by itself when the caller has no more
orders (its end of the socket is shut down) or is dead; what still runs then is cancelled.

One attempt is the straight line of ``_attempt``: a generator that yields the descriptor to wait for next. The
verdict is given once, after death, by ``judge``: the reason that was noted before a kill of ours comes first,
then the kernel's counters, the wait status last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import gc
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

from gwsandbox import guest, kernel, transport
from gwsandbox.backend import Backend, Cell, Counters, rlimits
from gwsandbox.errors import SandboxError
from gwsandbox.judge import Delivery, Evidence, Reason, explain, judge
from gwsandbox.output import Budget, OutputPipe
from gwsandbox.protocol import Link, Order, Report
from gwsandbox.result import Enforcement, Outcome, Usage
from gwsandbox.task import Command, Task

# Reports that the caller has not fetched hold memory and descriptors; past these no further guest is started.
_UNREAD_BYTES = 64 * 1024**2
_UNREAD_DESCRIPTORS = 32

_CLONE3_REFUSED = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.E2BIG})

Steps = Generator[tuple[int, int], None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a supervisor needs to know of its run.

    Args:
        max_workers: Guests at a time.
        caller: Pid of the caller.
        pass_through: Programs keep the caller's terminal, session and standard descriptors.
    """

    max_workers: int
    caller: int
    pass_through: bool = False


@dataclass(slots=True)
class Attempt:
    """One guest, from its start to its report."""

    order: Order
    task: Task | Command | bytes
    cell: Cell
    result: int
    outputs: list[OutputPipe]
    asked: dict[str, float]
    start_time: float = 0.0
    started: float = 0.0
    pid: int = 0
    pidfd: int = -1
    go: int = -1
    born_inside: bool = False
    deadline: float | None = None
    next_check: float | None = None
    reason: Reason | None = None
    dead: bool = False
    steps: Steps = field(init=False)
    proceed: Callable[[], None] = field(init=False)

    def end(self, reason: Reason) -> None:
        """Note why, then kill. The first reason noted stands."""
        self.deadline = self.next_check = None
        if not self.dead:
            self.reason = self.reason or reason
            self.cell.kill()
        elif any(pipe.pass_on() for pipe in self.outputs):
            # It is dead and its last words wait for a reader that does not come.
            for pipe in self.outputs:
                pipe.discard()
            self.proceed()


class Supervisor:
    """One run: see the module's text."""

    def __init__(
        self, link: Link, backend: Backend, config: Config, brought: dict[int, Task | Command]
    ) -> None:
        """Take over this process.

        Args:
            link: The supervisor's end.
            backend: Prepared, in the caller's process.
            config: Of this run.
            brought: Tasks that came along with the fork, by number.
        """
        self._link = link
        self._backend = backend
        self._config = config
        self._brought = brought
        self._common = guest.look_around(link.fileno())
        self._orders: deque[Order] = deque()
        self._attempts: dict[int, Attempt] = {}
        self._spare: Attempt | None = None
        self._handlers: dict[int, Callable[[], None]] = {}
        self._closing = False
        self._clone3_works = True
        self._epoll = select.epoll()
        self._link_mask = 0

    def run(self) -> None:
        """Until the caller is done or gone."""
        # The caller's heap shall stay shared with it: a collection would write to every page.
        gc.disable()
        gc.freeze()
        if not self._config.pass_through:
            _read_nothing()
        caller = os.pidfd_open(self._config.caller)
        self._watch(caller, select.EPOLLIN, self._close_down)
        while not self._done():
            self._start_attempts()
            self._update_link()
            self._prepare_spare()
            for fd, _ in self._epoll.poll(self._seconds_to_wait()):
                # A handler may have closed a descriptor whose event is further down the list.
                if handler := self._handlers.get(fd):
                    handler()
            self._look_at_clocks()
        # First all cgroups, then the end of the socket: who reads that finds nothing left.
        self._backend.destroy()
        self._link.close()

    def _done(self) -> bool:
        return self._closing and not self._attempts and not self._orders and not self._link.waiting_bytes

    # --- waiting ------------------------------------------------------------------------------------

    def _watch(self, fd: int, mask: int, handler: Callable[[], None]) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def _forget(self, fd: int) -> None:
        # Not left to close(): a guest that is being born may hold a duplicate, and would keep it registered.
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def _seconds_to_wait(self) -> float | None:
        moments = [
            moment
            for attempt in self._attempts.values()
            for moment in (attempt.deadline, attempt.next_check)
            if moment is not None
        ]
        return max(min(moments) - time.monotonic(), 0) if moments else None

    def _look_at_clocks(self) -> None:
        now = time.monotonic()
        for attempt in list(self._attempts.values()):
            if attempt.deadline is not None and now >= attempt.deadline:
                attempt.end(Reason.DEADLINE)
            if attempt.next_check is not None and now >= attempt.next_check:
                check = attempt.cell.check(now - attempt.started)
                attempt.next_check = None if check.after is None else now + check.after
                if check.reason is not None:
                    attempt.end(check.reason)

    # --- the caller ---------------------------------------------------------------------------------

    def _talk(self) -> None:
        try:
            self._link.flush()
            for orders, _ in self._link.receive():
                self._orders.extend(orders)
        except (EOFError, OSError):
            self._close_down()

    def _update_link(self) -> None:
        """Send what is waiting, and be woken for what the socket does not take."""
        if self._link.waiting_bytes:
            try:
                self._link.flush()
            except OSError:
                self._close_down()
                self._link.drop()
        mask = 0 if self._closing else select.EPOLLIN
        if self._link.waiting_bytes:
            mask |= select.EPOLLOUT
        if mask != self._link_mask:
            # Not left registered for nothing: EPOLLHUP comes unasked, and would keep us awake.
            self._forget(self._link.fileno())
            if mask:
                self._watch(self._link.fileno(), mask, self._talk)
            self._link_mask = mask

    def _close_down(self) -> None:
        """The caller wants no more, or is gone: cancel what runs and what waits."""
        if self._closing:
            return
        self._closing = True
        for order in self._orders:
            self._link.post(Report(order.number, Outcome.CANCELLED, "ended by the caller before it started"))
        self._orders.clear()
        if self._spare is not None:
            self._begin(self._spare)
            self._spare = None
        for attempt in list(self._attempts.values()):
            attempt.end(Reason.CANCELLED)

    # --- one attempt --------------------------------------------------------------------------------

    def _start_attempts(self) -> None:
        """Fill the free slots; first with the spare guest, which only waits for its time."""
        while (
            (self._spare is not None or self._orders)
            and len(self._attempts) < self._config.max_workers
            and self._link.waiting_bytes < _UNREAD_BYTES
            and self._link.waiting_descriptors < _UNREAD_DESCRIPTORS
        ):
            attempt, self._spare = self._spare, None
            attempt = attempt or self._prepare(self._orders.popleft(), waits=False)
            if attempt is not None:
                self._begin(attempt)

    def _prepare_spare(self) -> None:
        """While others run, bring the next guest as far as the task's first instruction.

        The processor that waits for a guest to end would be idle otherwise, and a slot that comes free is busy
        again after one write.
        """
        while self._spare is None and self._orders and self._attempts:
            self._spare = self._prepare(self._orders.popleft(), waits=True)

    def _prepare(self, order: Order, *, waits: bool) -> Attempt | None:
        """Open a cell and put a guest into it; ``None``, and a report of why, where that fails."""
        try:
            task = order.work if order.work is not None else self._brought.pop(order.number)
            with contextlib.ExitStack() as undo:
                cell = self._backend.open(order.limits)
                undo.callback(cell.close)
                result = os.memfd_create("gwsandbox-result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
                undo.callback(os.close, result)
                asked = order.limits.asked()
                if "file_size" in asked:
                    transport.make_room(result)
                outputs = self._output_pipes(task, asked)
                for pipe in outputs:
                    undo.callback(pipe.close)
                attempt = Attempt(order, task, cell, result, outputs, asked)
                if waits:
                    attempt.go = os.eventfd(0, os.EFD_CLOEXEC)
                    undo.callback(os.close, attempt.go)
                self._fork(attempt)
                undo.pop_all()
        except Exception as error:  # noqa: BLE001 - whatever stops one task must not stop the others
            self._link.post(_failure(order, error))
            return None
        return attempt

    def _begin(self, attempt: Attempt) -> None:
        """The task's time begins."""
        attempt.start_time, attempt.started = time.time(), time.monotonic()
        if attempt.go >= 0:
            os.eventfd_write(attempt.go, 1)
            os.close(attempt.go)
        wall = attempt.asked.get("wall_seconds")
        attempt.deadline = None if wall is None else attempt.started + wall
        first = attempt.cell.first_check
        attempt.next_check = None if first is None else attempt.started + first
        attempt.steps = self._attempt(attempt)
        self._advance(attempt)

    def _output_pipes(self, task: Task | Command | bytes, asked: dict[str, float]) -> list[OutputPipe]:
        """For stdout and stderr, where the guest does not write to the caller's own."""
        budget = Budget(asked.get("output"))
        if isinstance(task, Command) and not self._config.pass_through:
            return [OutputPipe(budget, None), OutputPipe(budget, None)]
        return [OutputPipe(budget, 1), OutputPipe(budget, 2)] if "output" in asked else []

    def _fork(self, attempt: Attempt) -> None:
        stdin = _stdin_descriptor(attempt.task)
        try:
            attempt.pid, attempt.pidfd = self._clone(attempt)
            if attempt.pid == 0:
                guest.live(self._setup(attempt, stdin))
        finally:
            if stdin is not None:
                os.close(stdin)
        for pipe in attempt.outputs:
            pipe.started()
        attempt.cell.started(attempt.pid, keeps_memory=not isinstance(attempt.task, Command))

    def _clone(self, attempt: Attempt) -> tuple[int, int]:
        if self._clone3_works:
            attempt.born_inside = attempt.cell.cgroup is not None
            try:
                return kernel.clone3(attempt.cell.cgroup)
            except OSError as error:
                if error.errno not in _CLONE3_REFUSED:
                    raise
                self._clone3_works = False
        attempt.born_inside = False
        return kernel.fork()

    def _setup(self, attempt: Attempt, stdin: int | None) -> guest.Setup:
        stdout, stderr = [pipe.guests_end for pipe in attempt.outputs] or (None, None)
        return guest.Setup(
            task=attempt.task,
            cell=attempt.cell,
            born_inside=attempt.born_inside,
            result=attempt.result,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            keep_terminal=self._config.pass_through,
            rlimits=rlimits(attempt.asked),
            common=self._common,
            go=attempt.go if attempt.go >= 0 else None,
        )

    def _advance(self, attempt: Attempt) -> None:
        """Take an attempt to the next thing that it waits for."""
        try:
            fd, mask = next(attempt.steps)
        except StopIteration:
            return
        except Exception as error:  # noqa: BLE001 - our own failure; the run goes on
            self._give_up(attempt, error)
            return

        def proceed() -> None:
            self._forget(fd)
            self._advance(attempt)

        attempt.proceed = proceed
        self._watch(fd, mask, proceed)

    def _give_up(self, attempt: Attempt, error: Exception) -> None:
        """We failed in the middle of an attempt: nothing of it may live on, and the caller is told."""
        with contextlib.suppress(Exception):
            attempt.cell.kill()
        for fd in (attempt.pidfd, *(pipe.fd for pipe in attempt.outputs)):
            self._forget(fd)
        del self._attempts[attempt.order.number]
        self._link.post(_failure(attempt.order, error))

    def _attempt(self, attempt: Attempt) -> Steps:
        """From the guest's birth to its report."""
        self._attempts[attempt.order.number] = attempt
        for pipe in attempt.outputs:
            self._read_output(attempt, pipe)
        reaped = 0
        while not reaped:  # a stale event of a descriptor with the same number may wake us too early
            yield attempt.pidfd, select.EPOLLIN
            reaped, status, rusage = os.wait4(attempt.pid, os.WNOHANG)
        attempt.dead = True
        elapsed, end_time = time.monotonic() - attempt.started, time.time()
        os.close(attempt.pidfd)
        while (left := attempt.cell.left()) is not None:
            attempt.cell.kill()
            yield left, select.EPOLLPRI | select.EPOLLIN
        for pipe in attempt.outputs:
            yield from self._last_words(attempt, pipe)
        usage, counters = attempt.cell.usage(elapsed, rusage)
        attempt.cell.close()
        del self._attempts[attempt.order.number]
        self._report(attempt, os.waitstatus_to_exitcode(status), end_time, usage, counters)

    def _read_output(self, attempt: Attempt, pipe: OutputPipe) -> None:
        """Read what is there, and wait for more, or until what came can be passed on."""
        self._forget(pipe.fd)
        if pipe.target is not None:
            self._forget(pipe.target)
        more, exceeded = pipe.read()
        if exceeded:
            attempt.end(Reason.OUTPUT)
        if not more:
            return
        again = functools.partial(self._read_output, attempt, pipe)
        if pipe.pass_on() and pipe.target is not None:
            self._watch(pipe.target, select.EPOLLOUT, again)
        else:
            self._watch(pipe.fd, select.EPOLLIN, again)

    def _last_words(self, attempt: Attempt, pipe: OutputPipe) -> Steps:
        """Nobody writes any more: read to the end, and pass all of it on."""
        self._forget(pipe.fd)
        if pipe.target is not None:
            self._forget(pipe.target)
        while True:
            _, exceeded = pipe.read()
            if exceeded and attempt.reason is None:
                attempt.reason = Reason.OUTPUT
            if pipe.pass_on() and pipe.target is not None:
                yield pipe.target, select.EPOLLOUT
            else:
                return  # if it has not ended now, somebody outside of the cell holds the other end

    def _report(
        self,
        attempt: Attempt,
        exit_code: int,
        end_time: float,
        usage: Usage,
        counters: Counters,
    ) -> None:
        delivery, record, is_whole = transport.inspect(attempt.result)
        evidence = Evidence(
            exit_code=exit_code,
            delivery=delivery,
            is_command=isinstance(attempt.task, Command),
            reason=attempt.reason,
            oom_events=counters.oom_events,
            oom_kills=counters.oom_kills,
            oom_kills_local=counters.oom_kills_local,
            memory_refused=attempt.cell.memory_refusable,
            cpu_limited="cpu_seconds" in attempt.asked,
            file_size_limited="file_size" in attempt.asked,
        )
        outcome = judge(evidence)
        descriptor = None
        payload: bytes | tuple[bytes, bytes] = record
        if evidence.is_command and evidence.delivery is Delivery.NOTHING:
            stdout, stderr = [pipe.kept() for pipe in attempt.outputs] or (b"", b"")
            payload = (stdout, stderr)
        elif not is_whole:
            descriptor = attempt.result
            fcntl.fcntl(descriptor, kernel.F_ADD_SEALS, kernel.F_SEAL_ALL)
        for pipe in attempt.outputs:
            pipe.close()
        self._link.post(
            Report(
                attempt.order.number,
                outcome,
                explain(evidence, outcome, attempt.asked),
                evidence.delivery,
                exit_code,
                attempt.start_time,
                end_time,
                usage,
                attempt.cell.enforcement,
                payload,
            ),
            descriptor,
        )
        if descriptor is None:
            os.close(attempt.result)


def _read_nothing() -> None:
    """Let stdin be /dev/null, here and so in every guest."""
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(fd, 0)
    os.close(fd)
    # The caller's own object may hold bytes that it has read ahead.
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


def _stdin_descriptor(task: Task | Command | bytes) -> int | None:
    """What a program shall read, as a memfd: whole before it starts, and no pipe that could block us."""
    if not isinstance(task, Command) or task.stdin is None:
        return None
    fd = os.memfd_create("gwsandbox-stdin", os.MFD_CLOEXEC)
    view = memoryview(task.stdin)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _failure(order: Order, error: Exception) -> Report:
    """A failure of ours, as the task's report."""
    if not isinstance(error, SandboxError):
        error = SandboxError("start guest", value=f"{type(error).__name__}: {error}")
    return Report(order.number, Outcome.SANDBOX_ERROR, str(error), enforcement=Enforcement("none"), error=error)
