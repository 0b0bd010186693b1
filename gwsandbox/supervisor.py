"""The supervisor: starts, watches, ends and judges every attempt of one run.

Theory of operation
===================

Five kinds of processes take part::

    caller ──socket── supervisor ──socket── zygote
       │                  │  └─ waits for ─┐   │ clone3
       └──fork── keeper ──┘                guest, guest, …   (one per task, each in a cell of its own)

* The **caller** may have threads, hold gigabytes, block for minutes or be killed, so it supervises nothing. It
  sends ``Order`` s, as many as there are slots and a few to come, and receives ``Report`` s.
* The **keeper** (``keeper.py``) only waits for the supervisor: it continues it if a guest has stopped it, and
  clears up if it was killed.
* The **supervisor** is single-threaded and has one epoll loop. It waits for the sockets, the guests' pidfds,
  their pipes, the "populated" event of their cgroups, the caller's pidfd, and the nearest deadline. Nothing is
  polled but what has no event: CPU time, and without cgroups memory.
* The **zygote** (``zygote.py``) forks the guests, into the cells that the supervisor has opened for them.
* A **guest** (``guest.py``) is a fresh process. It comes as far as the task's first instruction and waits there
  for its time, while others run. Its record (``transport.py``) goes into a memfd that is passed on to the
  caller unread.

Every signal is blocked here, so only SIGKILL ends a supervisor. It ends by itself when the caller has no more
orders (its end of the socket is shut down) or is dead; what still runs then is cancelled.

One attempt is ``_order_birth``, ``_born``, ``_begin``, and then the straight line of ``_attempt``: a generator
that yields the descriptor to wait for next. The verdict is given once, after death, by ``judge``: the reason
that was noted before a kill of ours comes first, then the kernel's counters, the wait status last.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import gc
import os
import pickle
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

from gwsandbox import kernel, transport
from gwsandbox.backend import Backend, Cell, Counters, limit_resources
from gwsandbox.errors import SandboxError
from gwsandbox.guest import Manner
from gwsandbox.judge import Delivery, Evidence, Reason, explain, judge
from gwsandbox.output import Budget, OutputPipe
from gwsandbox.protocol import Link, Order, Report
from gwsandbox.result import Enforcement, Outcome, Usage
from gwsandbox.task import Command, Task
from gwsandbox.zygote import LARGEST_WORK, Zygote

# Reports that the caller has not fetched hold memory and descriptors; past these no further guest is started.
_UNREAD_BYTES = 64 * 1024**2
_UNREAD_DESCRIPTORS = 32

# Guests that wait for a slot, and those that are being born for one: so many that a slot is never idle.
_AHEAD = 1
_BIRTH_SECONDS = 0.5  # after which we look whether somebody has stopped the zygote
_BIRTHS_WITHOUT_SUCCESS = 3  # zygotes that may be killed one after the other before we give up
_OOM_SCORE_RAISE = 500  # of 1000: before the user's own service, after whatever asked to be first

Steps = Generator[tuple[int, int], None, None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What a supervisor needs to know of its run.

    Args:
        max_workers: Guests at a time.
        caller: Pid of the caller.
        pass_through: Programs keep the caller's terminal, session and standard descriptors.
        trusted: Python calls hold the caller's descriptors; see ``engine.Settings``.
    """

    max_workers: int
    caller: int
    pass_through: bool = False
    trusted: bool = True


@dataclass(slots=True)
class Attempt:
    """One guest, from its start to its report."""

    order: Order
    is_command: bool
    cell: Cell
    result: int
    go: int
    outputs: list[OutputPipe]
    asked: dict[str, float]
    start_time: float = 0.0
    started: float = 0.0
    pid: int = 0
    pidfd: int = -1
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
        self._orders: deque[Order] = deque()
        self._attempts: dict[int, Attempt] = {}
        self._births: deque[Attempt] = deque()
        self._spares: deque[Attempt] = deque()
        self._zygote: Zygote | None = None
        self._zygotes_lost = 0
        self._birth_check: float | None = None
        self._oom_score = _raised_oom_score()
        self._manner = Manner(
            keep_terminal=config.pass_through,
            keep_descriptors=config.trusted,
            be_subreaper=backend.needs_subreaper,
            collect_garbage=gc.isenabled(),
        )
        self._handlers: dict[int, Callable[[], None]] = {}
        self._closing = False
        self._epoll = select.epoll()
        self._link_mask = 0

    def run(self) -> None:
        """Until the caller is done or gone."""
        # The caller's heap shall stay shared with it: a collection would write to every page.
        gc.disable()
        gc.freeze()
        if not self._config.pass_through:
            _read_nothing()
        self._start_zygote()
        self._watch(os.pidfd_open(self._config.caller), select.EPOLLIN, self._close_down)
        while True:
            self._fill_slots()
            self._update_link()
            if self._done():  # asked after the last report was sent: then nothing would wake us any more
                break
            self._order_births()
            for fd, _ in self._epoll.poll(self._seconds_to_wait()):
                # A handler may have closed a descriptor whose event is further down the list.
                if handler := self._handlers.get(fd):
                    handler()
            self._look_at_clocks()
        self._stop_zygote()
        # First all cgroups, then the end of the socket: who reads that finds nothing left.
        self._backend.destroy()
        self._link.close()

    def _done(self) -> bool:
        return self._closing and not (self._attempts or self._births or self._link.waiting_bytes)

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
        if self._birth_check is not None:
            moments.append(self._birth_check)
        return max(min(moments) - time.monotonic(), 0) if moments else None

    def _look_at_clocks(self) -> None:
        now = time.monotonic()
        if self._birth_check is not None and now >= self._birth_check and self._zygote is not None:
            self._zygote.wake()
            self._birth_check = now + _BIRTH_SECONDS
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
            for orders, descriptor in self._link.receive():
                if descriptor is not None:
                    orders = [orders[0]._replace(descriptor=descriptor)]  # noqa: PLW2901
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
            if order.descriptor is not None:
                os.close(order.descriptor)
            self._link.post(Report(order.number, Outcome.CANCELLED, "ended by the caller before it started"))
        self._orders.clear()
        while self._spares:
            self._begin(self._spares.popleft())
        for attempt in list(self._attempts.values()):
            attempt.end(Reason.CANCELLED)

    # --- births -------------------------------------------------------------------------------------

    def _start_zygote(self) -> None:
        ours = [self._link.fileno(), self._epoll.fileno(), *self._open_descriptors()]
        self._zygote = Zygote(self._brought, ours, self._manner)
        self._backend.adopt(self._zygote.pid, self._settle_births)
        self._watch(self._zygote.fileno(), select.EPOLLIN, self._born)

    def _stop_zygote(self) -> None:
        if self._zygote is not None:
            self._forget(self._zygote.fileno())
            self._zygote.close()
            self._zygote = None

    def _open_descriptors(self) -> Iterator[int]:
        """What the attempts of this moment hold; for a zygote that replaces a killed one."""
        for attempt in (*self._attempts.values(), *self._births, *self._spares):
            yield from (attempt.result, attempt.go, attempt.pidfd)
            for pipe in attempt.outputs:
                yield from (pipe.fd, pipe.guests_end)

    def _order_births(self) -> None:
        """Have as many guests born as there are free slots, and one more: while others run, the next one comes
        as far as the task's first instruction. A slot that comes free is busy again after one write.
        """
        wanted = self._config.max_workers - len(self._attempts) + _AHEAD
        while self._orders and len(self._births) + len(self._spares) < wanted and not self._is_clogged():
            order = self._orders.popleft()
            try:
                self._order_birth(order)
            except Exception as error:  # noqa: BLE001 - whatever stops one task must not stop the others
                self._link.post(_failure(order, error))

    def _is_clogged(self) -> bool:
        return self._link.waiting_bytes >= _UNREAD_BYTES or self._link.waiting_descriptors >= _UNREAD_DESCRIPTORS

    def _order_birth(self, order: Order) -> None:
        """Open a cell, and ask the zygote for a guest in it."""
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
                transport.make_room(result)
            attempt = Attempt(order, isinstance(task, Command), cell, result, go, [], asked)
            for pipe in self._output_pipes(attempt):
                undo.callback(pipe.close)
                attempt.outputs.append(pipe)
            self._send_order(attempt, task)
            undo.pop_all()
        self._births.append(attempt)
        if self._birth_check is None:
            self._birth_check = time.monotonic() + _BIRTH_SECONDS

    def _output_pipes(self, attempt: Attempt) -> Iterator[OutputPipe]:
        """For stdout and stderr, where the guest does not write to the caller's own."""
        budget = Budget(attempt.asked.get("output"))
        if attempt.is_command and not self._config.pass_through:
            targets: tuple[int | None, ...] = (None, None)
        else:
            targets = (1, 2) if "output" in attempt.asked else ()
        for target in targets:
            yield OutputPipe(budget, target)

    def _send_order(self, attempt: Attempt, task: Task | Command | bytes | None) -> None:
        with contextlib.ExitStack() as sent:
            work, descriptor = b"", attempt.order.descriptor
            if attempt.order.work is not None:
                work = task if isinstance(task, bytes) else pickle.dumps(task, protocol=5)
                if len(work) > LARGEST_WORK:
                    work, descriptor = b"", transport.store(work, "gwsandbox-task")
            if descriptor is not None:
                sent.callback(os.close, descriptor)
            stdin = None
            if isinstance(task, Command) and task.stdin is not None:
                stdin = transport.store(task.stdin, "gwsandbox-stdin")
                sent.callback(os.close, stdin)
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

    def _born(self) -> None:
        """The zygote answers: a guest waits for its time."""
        assert self._zygote is not None
        try:
            pid = self._zygote.answer()
        except EOFError:
            self._replace_zygote()
            return
        if pid is None:  # woken for an answer that was taken while we settled
            return
        attempt = self._births.popleft()
        self._birth_check = time.monotonic() + _BIRTH_SECONDS if self._births else None
        self._zygotes_lost = 0
        try:
            if pid < 0:
                raise SandboxError("fork guest", errno=-pid, remedy="see ulimit -u and the cgroup's pids.max")
            attempt.pid = pid
            attempt.pidfd = os.pidfd_open(pid)
            self._confine(attempt)
        except Exception as error:  # noqa: BLE001 - whatever stops one task must not stop the others
            self._bury(attempt, error)
            return
        self._spares.append(attempt)
        if self._closing:
            self._begin(self._spares.popleft())
            attempt.end(Reason.CANCELLED)

    def _settle_births(self) -> None:
        """Wait until every guest that the zygote was asked for is known: milliseconds."""
        while self._births and self._zygote is not None:
            poll = select.poll()
            poll.register(self._zygote.fileno(), select.POLLIN)
            if poll.poll(_BIRTH_SECONDS * 1000):
                self._born()
            else:
                self._zygote.wake()

    def _confine(self, attempt: Attempt) -> None:
        """What can be done from outside to a guest that waits."""
        for pipe in attempt.outputs:
            pipe.started()
        attempt.cell.started(attempt.pid, keeps_memory=not attempt.is_command)
        limit_resources(attempt.pid, attempt.asked)
        fd = os.open(f"/proc/{attempt.pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, self._oom_score)
        finally:
            os.close(fd)

    def _replace_zygote(self) -> None:
        """It was killed. Guests that it had not answered for wait for ever: end them, and start anew."""
        self._stop_zygote()
        self._zygotes_lost += 1
        self._birth_check = None
        unborn, self._births = self._births, deque()
        for attempt in unborn:
            self._bury(attempt, SandboxError("fork guest: the zygote process was killed"))
        if self._zygotes_lost < _BIRTHS_WITHOUT_SUCCESS:
            self._start_zygote()
            return
        while self._orders:
            error = SandboxError("fork guest: the zygote process was killed again and again")
            self._link.post(_failure(self._orders.popleft(), error))

    def _bury(self, attempt: Attempt, error: Exception) -> None:
        """End an attempt whose guest never had its time, or was never born, and report why."""
        attempt.cell.kill()
        if attempt.pid:
            os.kill(attempt.pid, signal.SIGKILL)
            os.waitpid(attempt.pid, 0)
        for fd in (attempt.result, attempt.go, attempt.pidfd):
            if fd >= 0:
                os.close(fd)
        for pipe in attempt.outputs:
            pipe.close()
        attempt.cell.close()
        self._link.post(_failure(attempt.order, error))

    # --- one attempt --------------------------------------------------------------------------------

    def _fill_slots(self) -> None:
        """Let waiting guests begin, while there are free slots."""
        while self._spares and len(self._attempts) < self._config.max_workers:
            self._begin(self._spares.popleft())

    def _begin(self, attempt: Attempt) -> None:
        """The task's time begins."""
        attempt.start_time, attempt.started = time.time(), time.monotonic()
        os.eventfd_write(attempt.go, 1)
        os.close(attempt.go)
        attempt.go = -1
        wall = attempt.asked.get("wall_seconds")
        attempt.deadline = None if wall is None else attempt.started + wall
        first = attempt.cell.first_check
        attempt.next_check = None if first is None else attempt.started + first
        attempt.steps = self._attempt(attempt)
        self._advance(attempt)

    def _advance(self, attempt: Attempt) -> None:
        """Take an attempt to the next thing that it waits for."""
        try:
            fd, mask = next(attempt.steps)
        except StopIteration:
            del attempt.proceed  # it refers to the attempt in turn, and here nobody collects cycles
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
            is_command=attempt.is_command,
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


def _raised_oom_score() -> bytes:
    with open("/proc/self/oom_score_adj", "rb") as file:
        return str(min(int(file.read()) + _OOM_SCORE_RAISE, 1000)).encode()


def _failure(order: Order, error: Exception) -> Report:
    """A failure of ours, as the task's report."""
    if not isinstance(error, SandboxError):
        error = SandboxError("start guest", value=f"{type(error).__name__}: {error}")
    return Report(order.number, Outcome.SANDBOX_ERROR, str(error), enforcement=Enforcement("none"), error=error)
