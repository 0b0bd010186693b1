"""The supervisor: starts, watches, ends and judges every attempt of one run.

Theory of operation
===================

Five kinds of processes take part::

    caller ──socket── supervisor ──socket── zygote
       │                  │  └─ waits for ─┐   │ clone3
       └──fork── reaper ──┘                guest, guest, …   (one per task, each in a sandbox of its own)

* The **caller** may have threads, hold gigabytes, block for minutes or be killed, so it supervises nothing. It
  sends ``Order`` s, as many as there are slots and a few to come, and receives ``Report`` s.
* The **reaper** (``reaper.py``) only waits for the supervisor: it continues it if a guest has stopped it, and
  clears up if it was killed.
* The **supervisor** is single-threaded and has one epoll loop. It waits for the sockets, the guests' pidfds,
  their pipes, the "populated" event of their cgroups, the caller's pidfd, and the nearest deadline. Nothing is
  polled but what has no event: CPU time, and without cgroups memory.
* The **zygote** (``zygote.py``) forks the guests, into the sandboxes that the supervisor has opened for them.
* A **guest** (``guest.py``) is a fresh process. It comes as far as the task's first instruction and waits there
  for its time, while others run. Its record (``transport.py``) goes into a memfd that is passed on to the
  caller unread.

Every signal is blocked here, so only SIGKILL ends a supervisor. It ends by itself when the caller has no more
orders (its end of the socket is shut down) or is dead; what still runs then is cancelled.

One attempt begins in the launcher (``launcher.py``), where its sandbox is opened and its guest born, and has its time
in the straight line of ``_attempt``: a generator that yields the descriptor to wait for next. The verdict is given
once, after death, by ``judge``: the reason that was noted before a kill of ours comes first, then the kernel's
counters, the wait status last.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import select
import sys
import time
from collections import deque

from gwsandbox.backends.base import Backend
from gwsandbox.ipc.channel import LOST, Channel, Order, Report
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.options import RunOptions
from gwsandbox.model.result import Outcome
from gwsandbox.model.task import Command, Task
from gwsandbox.model.verdict import Reason
from gwsandbox.supervisor.attempt import Attempt, Steps, failure, report
from gwsandbox.supervisor.event_loop import Loop
from gwsandbox.supervisor.launcher import Launcher
from gwsandbox.supervisor.output import OutputPipe

# Reports that the caller has not fetched hold memory and descriptors; past these no further guest is started.
_UNREAD_BYTES = 64 * 1024**2
_UNREAD_DESCRIPTORS = 32

# Guests that are ready, or being born, beyond the free slots: so many that a slot is never idle.
_AHEAD = 1


class Supervisor:
    """One run: see the module's text."""

    def __init__(
        self, link: Channel, backend: Backend, options: RunOptions, inherited_tasks: dict[int, Task | Command]
    ) -> None:
        """Take over this process.

        Args:
            link: The supervisor's end.
            backend: Prepared, in the caller's process.
            options: Of this run.
            inherited_tasks: Tasks that came along with the fork, by number.
        """
        open_files = resource.getrlimit(resource.RLIMIT_NOFILE)
        # Each guest takes up to ten descriptors here: the usual soft limit of 1024 is a hundred workers.
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files[1],) * 2)
        self._channel = link
        self._link_mask = 0
        self._backend = backend
        self._options = options
        self._loop = Loop()
        self._callers_end = -1
        self._launcher = Launcher(
            backend, inherited_tasks, options, self._loop, open_files=open_files, fail=self._fail, requeue=self._requeue
        )
        self._orders: deque[Order] = deque()
        self._attempts: dict[int, Attempt] = {}
        self._closing = False

    def run(self) -> None:
        """Until the caller is done or gone."""
        if not self._options.pass_through:
            _read_nothing()
        self._callers_end = os.pidfd_open(self._options.caller)
        self._loop.watch(self._callers_end, select.EPOLLIN, self._close_down)
        self._launcher.open([self._channel.fileno(), self._callers_end])
        while True:
            self._fill_slots()
            self._update_link()
            self._order_births()
            if self._channel.waiting_bytes:  # an order came to nothing: nothing else would wake us for its report
                self._update_link()
            if self._done():  # asked after the last report was sent: nothing would wake us any more
                break
            self._loop.turn(self._seconds_to_wait())
            self._check_deadlines()
        self._launcher.close()
        # First all cgroups, then the end of the socket: who reads that finds nothing left.
        self._backend.destroy()
        self._channel.close()

    def _done(self) -> bool:
        return self._closing and not (self._attempts or len(self._launcher) or self._channel.waiting_bytes)

    def _seconds_to_wait(self) -> float | None:
        moments = [moment for attempt in self._attempts.values() for moment in (attempt.deadline, attempt.next_check)]
        times = [moment for moment in (*moments, self._launcher.next_look) if moment is not None]
        return max(min(times) - time.monotonic(), 0) if times else None

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        self._launcher.look(now)
        for attempt in list(self._attempts.values()):
            if attempt.deadline is not None and now >= attempt.deadline:
                attempt.end(Reason.DEADLINE)
            if attempt.next_check is not None and now >= attempt.next_check:
                self._check(attempt, now)

    def _check(self, attempt: Attempt, now: float) -> None:
        try:
            check = attempt.sandbox.check()
        except Exception as error:  # noqa: BLE001 - a limit that cannot be held any more; the run goes on
            self._give_up(attempt, error)
            return
        attempt.next_check = None if check.after is None else now + check.after
        if check.reason is not None:
            attempt.end(check.reason)

    # --- the caller ---------------------------------------------------------------------------------

    def _handle_caller(self) -> None:
        try:
            self._channel.flush()
            for orders, descriptor in self._channel.receive():
                if descriptor == LOST:
                    self._fail(orders[0], SandboxError("receive task", errno=errno.EMFILE, remedy="raise ulimit -n"))
                elif descriptor is not None:
                    self._orders.append(orders[0]._replace(descriptor=descriptor))
                else:
                    self._orders.extend(orders)
        except (EOFError, OSError):
            self._close_down()

    def _update_link(self) -> None:
        """Send what is waiting, and be woken for what the socket does not take."""
        if self._channel.waiting_bytes:
            try:
                self._channel.flush()
            except OSError:
                self._close_down()
                self._channel.drop()
        mask = 0 if self._closing else select.EPOLLIN
        if self._channel.waiting_bytes:
            mask |= select.EPOLLOUT
        if mask != self._link_mask:
            # Not left registered for nothing: EPOLLHUP comes unasked, and would keep us awake.
            self._loop.forget(self._channel.fileno())
            if mask:
                self._loop.watch(self._channel.fileno(), mask, self._handle_caller)
            self._link_mask = mask

    def _is_clogged(self) -> bool:
        """Whether the caller has not fetched so much that nothing more shall be started."""
        return self._channel.waiting_bytes >= _UNREAD_BYTES or self._channel.waiting_descriptors >= _UNREAD_DESCRIPTORS

    def _fail(self, order: Order, error: Exception) -> None:
        self._channel.post(failure(order, error))

    def _cancel(self, order: Order) -> None:
        order.close()
        self._channel.post(Report(order.number, Outcome.CANCELLED, "ended by the caller before it started"))

    def _requeue(self, order: Order) -> None:
        """Its guest was lost before it could do anything: it is the next to be tried once more."""
        if self._closing:
            self._cancel(order)
        else:
            self._orders.appendleft(order)

    def _close_down(self) -> None:
        """The caller wants no more, or is gone: cancel what runs and what waits."""
        if self._closing:
            return
        self._closing = True
        while self._orders:
            self._cancel(self._orders.popleft())
        for attempt in list(self._attempts.values()):
            attempt.end(Reason.CANCELLED)

    # --- slots --------------------------------------------------------------------------------------

    def _order_births(self) -> None:
        """Have as many guests ready as there are free slots, and one more.

        While others run, the next one comes as far as the task's first instruction: a slot that comes free is
        busy again after one write.
        """
        wanted = self._options.max_workers - len(self._attempts) + _AHEAD
        while self._orders and len(self._launcher) < wanted and not self._is_clogged():
            if not self._launcher.has_zygote:
                running = [fd for attempt in self._attempts.values() for fd in attempt.descriptors()]
                waiting = [order.descriptor for order in self._orders if order.descriptor is not None]
                self._launcher.open([self._channel.fileno(), self._callers_end, *running, *waiting])
            self._launcher.order(self._orders.popleft())

    def _fill_slots(self) -> None:
        """Let waiting guests begin, while there are free slots."""
        spares = self._launcher.ready
        while spares and (self._closing or len(self._attempts) < self._options.max_workers):
            attempt = spares.popleft()
            self._begin(attempt)
            if self._closing:
                attempt.end(Reason.CANCELLED)

    def _begin(self, attempt: Attempt) -> None:
        """The task's time begins."""
        attempt.start_time, attempt.started = time.time(), time.monotonic()
        wall, first = attempt.requested.get("wall_seconds"), attempt.sandbox.first_check
        attempt.deadline = None if wall is None else attempt.started + wall
        attempt.next_check = None if first is None else attempt.started + first
        if not self._closing:  # else it is about to be killed, and shall have done nothing
            os.eventfd_write(attempt.start_event, 1)
        os.close(attempt.start_event)
        attempt.start_event = -1
        self._attempts[attempt.order.number] = attempt
        attempt.steps = self._attempt(attempt)
        self._advance(attempt)

    # --- one attempt --------------------------------------------------------------------------------

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
            self._loop.forget(fd)
            self._advance(attempt)

        attempt.proceed = proceed
        self._loop.watch(fd, mask, proceed)

    def _give_up(self, attempt: Attempt, error: Exception) -> None:
        """We failed in the middle of an attempt: nothing of it may live on, and the caller is told."""
        with contextlib.suppress(Exception):
            attempt.sandbox.kill()
        for fd in attempt.descriptors():
            self._loop.forget(fd)
        attempt.close()
        os.close(attempt.result)
        self._attempts.pop(attempt.order.number, None)
        self._fail(attempt.order, error)

    def _attempt(self, attempt: Attempt) -> Steps:
        """From the task's first instruction to the report."""
        for pipe in attempt.outputs:
            self._read_output(attempt, pipe)
        reaped = 0
        while not reaped:  # a stale event of a descriptor with the same number may wake us too early
            yield attempt.pidfd, select.EPOLLIN
            reaped, status, rusage = os.wait4(attempt.pid, os.WNOHANG)
        attempt.dead = True
        elapsed, end_time = time.monotonic() - attempt.started, time.time()
        while (left := attempt.sandbox.remaining()) is not None:
            attempt.sandbox.kill()
            yield left, select.EPOLLPRI | select.EPOLLIN
        for pipe in attempt.outputs:
            yield from self._drain_output(attempt, pipe)
        del self._attempts[attempt.order.number]
        self._fill_slots()  # the next one works while we take stock of this one
        usage, counters = attempt.sandbox.usage(elapsed, rusage)
        attempt.sandbox.close()
        made, large = report(attempt, os.waitstatus_to_exitcode(status), end_time, usage, counters)
        attempt.close()
        if large != attempt.result:
            os.close(attempt.result)
        self._channel.post(made, large)

    def _read_output(self, attempt: Attempt, pipe: OutputPipe) -> None:
        """Read what is there, and wait for more, or until what came can be passed on."""
        self._forget_output(pipe)
        more, exceeded = pipe.read()
        if exceeded:
            attempt.end(Reason.OUTPUT)
        if not more:
            return
        again = functools.partial(self._read_output, attempt, pipe)
        if pipe.pass_on() and pipe.target is not None:
            self._loop.watch(pipe.target, select.EPOLLOUT, again)
        else:
            self._loop.watch(pipe.fd, select.EPOLLIN, again)

    def _drain_output(self, attempt: Attempt, pipe: OutputPipe) -> Steps:
        """Nobody writes any more: read to the end, and pass all of it on."""
        self._forget_output(pipe)
        while True:
            _, exceeded = pipe.read(sys.maxsize)
            if exceeded and attempt.reason is None:
                attempt.reason = Reason.OUTPUT
            if pipe.pass_on() and pipe.target is not None:
                yield pipe.target, select.EPOLLOUT
            else:
                return  # if it has not ended now, somebody outside of the sandbox holds the other end

    def _forget_output(self, pipe: OutputPipe) -> None:
        self._loop.forget(pipe.fd)
        if pipe.target is not None:
            self._loop.forget(pipe.target)


def _read_nothing() -> None:
    """Let stdin be /dev/null, here and so in every guest."""
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(fd, 0)
    os.close(fd)
    # The caller's own object may hold bytes that it has read ahead.
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
