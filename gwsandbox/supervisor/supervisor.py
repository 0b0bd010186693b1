"""The supervisor: starts, watches, ends and judges every attempt of one run.

Theory of operation
===================

Five kinds of processes take part::

    caller ──socket── supervisor ──socket── zygote
       │                  │  └─ waits for ─┐   │ clone3
       └──fork── reaper ──┘                guest, guest, …   (one per task, each in a sandbox of its own)

* The **caller** may have threads, hold gigabytes, block for minutes or be killed, so it supervises nothing. It
  sends ``Order`` s, as many as there are slots and a few to come, and receives ``Report`` s (``caller_link.py``).
* The **reaper** (``reaper.py``) only waits for the supervisor: it continues it if a guest has stopped it, and
  clears up if it was killed.
* The **supervisor** is single-threaded and has one epoll loop. It waits for the sockets, the guests' pidfds,
  their pipes, the "populated" event of their cgroups, the caller's pidfd, and the nearest deadline. Nothing is
  polled but what has no event: CPU time, and without cgroups memory.
* The **zygote** (``guest/zygote.py``) forks the guests, into the sandboxes that the supervisor has opened for them.
  Where guests see only what they are given, both are in a PID namespace (``guest/pid_namespace.py``), whose first
  process reaps what is left there. The supervisor is outside, and their parent all the same.
* A **guest** (``guest/child.py``) is a fresh process. It comes as far as the task's first instruction and waits there
  for its time, while others run. Its record (``ipc/record.py``) goes into a memfd that is passed on to the
  caller unread.

Every signal is blocked here, so only SIGKILL ends a supervisor. It ends by itself when the caller has no more
orders (its end of the socket is shut down) or is dead; what still runs then is cancelled.

One attempt begins in the launcher (``launcher.py``), where its sandbox is opened and its guest born, and has its time
in the straight line of ``_attempt``: a generator that yields the descriptor to wait for next. The verdict is given
once, after death, by ``judge``: the reason that was noted before a kill of ours comes first, then the kernel's
counters, the wait status last.

What may fail
=============

The loop never blocks: no send, no wait for a peer that somebody may have stopped. A pidfd announces a death:
an end-of-file says nothing while another process holds the other end. What a failing step costs:

===============================================  ===================================================================
step                                             where it fails
===============================================  ===================================================================
watch caller and children, open the event loop   the run ends; ``Ended`` says step and errno to the caller
send a report                                    "not now" is tried again; a caller that is gone ends the run
fork the zygote, open a sandbox, ask for a       "not now" (EMFILE, EAGAIN, ENOMEM, …): the order waits, and fewer
guest, fork it, confine it                       guests live for a while; otherwise the task is a SANDBOX_ERROR
look at a running guest                          "not now" is tried again soon; otherwise that task is given up
kill, wait for what is left, read its usage      tried with the reserve of descriptors; then that task is given up
give up a task: kill, reap, remove its sandbox   tried again until it is done, at the latest at the end of the run
raise the zygote's OOM score                     nothing; it is optional
===============================================  ===================================================================
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import time
from collections.abc import Callable, Mapping

from gwsandbox.backends.base import Backend
from gwsandbox.ipc.channel import Begun, Cancel, Confined, Ended, Order
from gwsandbox.ipc.channel_end import Channel
from gwsandbox.linux import syscalls, systemd_scope
from gwsandbox.linux.errnos import is_not_now
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.hardening import ENFORCED
from gwsandbox.model.options import RunOptions
from gwsandbox.model.task import Command, Task
from gwsandbox.model.verdict import Reason
from gwsandbox.supervisor.attempt import Attempt, Steps, report
from gwsandbox.supervisor.caller_link import CallerLink
from gwsandbox.supervisor.event_loop import EventLoop
from gwsandbox.supervisor.guest_signals import GuestSignals
from gwsandbox.supervisor.launcher import Launcher
from gwsandbox.supervisor.output import OutputPipe
from gwsandbox.supervisor.reserve import Reserve
from gwsandbox.supervisor.throttle import Throttle

# Guests that are ready, or being born, beyond the free slots: so many that a slot is never idle.
_AHEAD = 1

_CHECK_AGAIN_SECONDS = 0.05  # until a guest is looked at again that could not be looked at
_DEATH_SECONDS = 60.0  # that a guest may take to die of SIGKILL: it may wait for a disk
_CLEAR_SECONDS = 10.0  # that abandoned attempts have at the end of the run, before the backend removes all


class Supervisor:
    """One run: see the module's text."""

    def __init__(
        self, channel: Channel, backend: Backend, options: RunOptions, inherited_tasks: Mapping[int, Task | Command]
    ) -> None:
        """Take over this process.

        Args:
            channel: The supervisor's end of the socket.
            backend: Prepared.
            options: Of this run.
            inherited_tasks: Tasks that came along with the fork, by number.
        """
        self._reserve = Reserve()
        self._backend = backend
        self._options = options
        self._loop = EventLoop()
        self._throttle = Throttle(options.max_workers + _AHEAD)
        self._launcher = Launcher(
            backend,
            inherited_tasks,
            options,
            self._loop,
            self._reserve,
            refuse=self._refuse,
            requeue=self._requeue,
            note_confinement=self._note_confinement,
        )
        self._attempts: dict[int, Attempt] = {}
        self._stops = -1  # can be read when SIGTERM has come
        self._unwanted: set[int] = set()  # orders that were cancelled while their guests were born or waited
        self._signals = GuestSignals(self._attempts)
        self._link = CallerLink(
            channel,
            options.caller,
            self._loop,
            self._reserve,
            closed=self._close_down,
            signalled=self._signals.send,
            cancelled=self._cancel,
        )

    def run(self) -> None:
        """Until the caller is done or gone."""
        self._link.watch()
        self._loop.watch(self._backend.watch_children(), select.EPOLLIN, self._backend.child_died)
        if self._backend.in_scope:
            # systemd stops a scope by a signal to all processes in it, us among them, and takes its cgroup away.
            self._stops = syscalls.signalfd([signal.SIGTERM])
            self._loop.watch(self._stops, select.EPOLLIN, self._stop)
        with contextlib.suppress(OSError):  # tried again once there is an order
            self._open_zygote()
        while True:
            self._begin_ready()
            self._order_births()
            self._link.update()
            if self._done():  # asked after the last report was sent: nothing would wake us any more
                break
            self._loop.turn(self._seconds_to_wait())
            self._check_times()
        self._clear_up()

    def _done(self) -> bool:
        return self._link.is_closed and not (self._attempts or len(self._launcher) or self._link.has_reports)

    def _clear_up(self) -> None:
        deadline = time.monotonic() + _CLEAR_SECONDS
        while self._launcher.abandoned and time.monotonic() < deadline:
            self._loop.turn(self._seconds_to_wait())
            self._launcher.look(time.monotonic())
        self._launcher.close()
        # First all cgroups, then the end of the socket: once the caller reads that, nothing is left.
        self._reserve.use(self._backend.destroy)
        self._link.close()

    def _seconds_to_wait(self) -> float | None:
        moments = [self._launcher.next_look, *self._link.moments()]
        if self._link.orders:
            moments.append(self._throttle.next_change)
        is_paused = self._signals.is_paused
        for attempt in self._attempts.values():
            if not is_paused:
                moments += attempt.deadline, attempt.next_check
            if attempt.ended_at is not None:
                moments.append(attempt.ended_at + _DEATH_SECONDS)
        times = [moment for moment in moments if moment is not None]
        return max(min(times) - time.monotonic(), 0) if times else None

    def _check_times(self) -> None:
        now = time.monotonic()
        self._link.look(now)
        self._launcher.look(now)
        self._throttle.relax(now)
        for attempt in list(self._attempts.values()):
            self._guard(attempt, functools.partial(self._check_attempt, attempt, now))

    def _check_attempt(self, attempt: Attempt, now: float) -> None:
        counts = not self._signals.is_paused
        if counts and attempt.deadline is not None and now >= attempt.deadline:
            self._end_in_time(attempt, now)
        if counts and attempt.next_check is not None and now >= attempt.next_check:
            self._look_at(attempt, now)
        if attempt.ended_at is not None and now >= attempt.ended_at + _DEATH_SECONDS:
            raise SandboxError("end guest: it does not die of SIGKILL", value=str(attempt.pid))

    def _look_at(self, attempt: Attempt, now: float) -> None:
        try:
            check = self._reserve.use(attempt.sandbox.check)
        except (OSError, MemoryError) as error:
            attempt.patience.bear(error)  # else a limit that cannot be held any more; the run goes on
            attempt.next_check = now + _CHECK_AGAIN_SECONDS
            return
        attempt.patience.renew()
        attempt.next_check = None if check.after is None else now + check.after
        if check.reason is not None:
            self._end(attempt, check.reason)

    def _end_in_time(self, attempt: Attempt, now: float) -> None:
        """The deadline is reached: SIGTERM first, where the caller asks for that."""
        if self._options.grace_seconds and attempt.reason is None and not attempt.dead:
            attempt.ask_to_end(Reason.DEADLINE, now + self._options.grace_seconds)
        else:
            self._end(attempt, Reason.DEADLINE)

    def _end(self, attempt: Attempt, reason: Reason) -> None:
        self._reserve.use(functools.partial(attempt.end, reason))

    # --- the run as a whole -------------------------------------------------------------------------

    def _close_down(self) -> None:
        """The caller wants no more, or is gone: cancel what runs."""
        self._signals.forget_pause()
        for attempt in list(self._attempts.values()):
            self._guard(attempt, functools.partial(self._end, attempt, Reason.CANCELLED))

    def _cancel(self, cancel: Cancel) -> None:
        """The caller wants some tasks no more: those that have begun end now, the others before they begin."""
        self._unwanted |= self._launcher.waiting().intersection(cancel.numbers)
        for number in cancel.numbers if cancel.begun else ():
            if (attempt := self._attempts.get(number)) is not None:
                self._guard(attempt, functools.partial(self._end, attempt, Reason.CANCELLED))

    def _stop(self) -> None:
        """Where it is systemd that sends SIGTERM: cancel what runs, and let the caller start nothing more."""
        if not systemd_scope.is_manager(syscalls.sender_of_signal(self._stops)):
            return
        self._loop.forget(self._stops)
        if not self._link.is_closed:
            self._link.say(Ended(SandboxError("run tasks: systemd has stopped their scope"), stopped=True))
            self._link.close_down()

    def _note_confinement(self, held: dict[str, str]) -> None:
        """Send the caller what holds the run's hardening; where that is too little, nothing is run."""
        required = self._options.hardening.require & self._options.hardening.mechanisms()
        missing = [name for name in sorted(required) if held.get(name) != ENFORCED]
        if not missing:
            self._link.say(Confined(held))
            return
        why = "; ".join(f"{name} ({held.get(name, 'not: the zygote process ended')})" for name in missing)
        remedy = "leave out of Hardening(require=…) what you can do without"
        self._link.say(Ended(SandboxError("harden run", value=why, remedy=remedy)))
        self._link.close_down()

    # --- orders that cannot be started --------------------------------------------------------------

    def _alive(self) -> int:
        return len(self._attempts) + len(self._launcher) + self._launcher.dying

    def _refuse(self, order: Order, error: Exception) -> None:
        """An order cannot be started: it waits where others may give back what is wanting, else its task fails."""
        if is_not_now(error) and not self._link.is_closed:
            self._throttle.shrink(len(self._attempts) + len(self._launcher.ready), time.monotonic())
            if not self._throttle.is_hopeless:
                self._requeue(order)
                return
        self._unwanted.discard(order.number)
        self._link.fail(order, error)

    def _requeue(self, order: Order) -> None:
        """Its guest could not do anything yet: it is the next to be tried once more."""
        if self._link.is_closed or order.number in self._unwanted:
            self._unwanted.discard(order.number)
            self._link.cancel(order)
        else:
            self._link.orders.appendleft(order)

    # --- slots --------------------------------------------------------------------------------------

    def _open_zygote(self) -> None:
        running = [fd for attempt in self._attempts.values() for fd in attempt.descriptors()]
        stops = [self._stops] if self._stops >= 0 else []
        self._launcher.open([*self._link.descriptors(), *running, *stops])

    def _order_births(self) -> None:
        """Have as many guests ready as there are free slots, and one more.

        While others run, the next one comes as far as the task's first instruction: a slot that comes free is
        busy again after one write.
        """
        while self._link.orders and self._wants_guest():
            order = self._link.orders.popleft()
            if order.descriptor is not None and order.descriptor < 0:
                why = SandboxError("receive task", errno=-order.descriptor, remedy="raise ulimit -n")
                self._link.fail(order, why)
                continue
            try:
                if not self._launcher.has_zygote:
                    self._open_zygote()
            except Exception as error:  # noqa: BLE001 - it may be had later
                self._refuse(order, error)
                continue
            self._launcher.order(order)

    def _wants_guest(self) -> bool:
        if self._launcher.is_blocked or self._link.is_clogged:
            return False
        if self._throttle.is_paused or self._alive() >= self._throttle.allowed:
            return False
        return len(self._attempts) + len(self._launcher) < self._options.max_workers + _AHEAD

    def _begin_ready(self) -> None:
        """Let waiting guests begin, while there are free slots."""
        ready = self._launcher.ready
        if self._unwanted:
            for attempt in [attempt for attempt in ready if attempt.order.number in self._unwanted]:
                ready.remove(attempt)
                self._admit(attempt)
        slots = 0 if self._signals.is_paused else self._options.max_workers
        while ready and (self._link.is_closed or len(self._attempts) < slots):
            self._admit(ready.popleft())

    def _admit(self, attempt: Attempt) -> None:
        self._attempts[attempt.order.number] = attempt
        self._guard(attempt, functools.partial(self._begin, attempt))

    def _begin(self, attempt: Attempt) -> None:
        """The task's time begins; one that nobody wants any more ends before it has done anything."""
        is_unwanted = self._link.is_closed or attempt.order.number in self._unwanted
        self._unwanted.discard(attempt.order.number)
        self._throttle.succeeded()
        attempt.start_time, attempt.started = time.time(), time.monotonic()
        wall, first = attempt.requested.get("wall_seconds"), attempt.sandbox.first_check
        attempt.deadline = None if wall is None else attempt.started + wall
        attempt.next_check = None if first is None else attempt.started + first
        if not is_unwanted:
            self._reserve.use(functools.partial(os.eventfd_write, attempt.start_event, 1))
            if self._options.says_begins:
                with contextlib.suppress(OSError, MemoryError):  # a row of a display is not worth an attempt
                    self._link.say(Begun(attempt.order.number, attempt.pid, attempt.started))
        attempt.steps = self._attempt(attempt)
        self._advance(attempt)
        if is_unwanted:
            self._end(attempt, Reason.CANCELLED)

    # --- one attempt --------------------------------------------------------------------------------

    def _guard(self, attempt: Attempt, step: Callable[[], None]) -> None:
        """Do something for an attempt. Whatever fails is the end of that attempt, and of nothing else."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - our own failure; the run goes on
            self._give_up(attempt, error)

    def _advance(self, attempt: Attempt) -> None:
        """Take an attempt to the next thing that it waits for."""
        try:
            fd, mask = next(attempt.steps)
        except StopIteration:
            attempt.proceed = None  # it refers to the attempt in turn, and here nobody collects cycles
            return

        def proceed() -> None:
            self._loop.forget(fd)
            self._guard(attempt, functools.partial(self._advance, attempt))

        attempt.proceed = proceed
        self._reserve.use(functools.partial(self._loop.watch, fd, mask, proceed))

    def _give_up(self, attempt: Attempt, error: Exception) -> None:
        """We failed in the middle of an attempt: nothing of it may live on, and the caller gets a report."""
        if self._attempts.pop(attempt.order.number, None) is None:
            return  # given up already, by a step further inside
        for fd in attempt.descriptors():
            self._loop.forget(fd)
        attempt.proceed = None
        self._link.fail(attempt.order, error)
        self._launcher.abandon(attempt)

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
        yield from attempt.await_emptiness(self._reserve)
        for pipe in attempt.outputs:
            yield from attempt.drain(pipe, self._loop)
        del self._attempts[attempt.order.number]
        self._begin_ready()  # the next one works while we take stock of this one
        self._attempts[attempt.order.number] = attempt
        usage, counters = attempt.take_stock(self._reserve, elapsed, rusage)
        exit_code = os.waitstatus_to_exitcode(status)
        made, large = self._reserve.use(functools.partial(report, attempt, exit_code, end_time, usage, counters))
        with contextlib.suppress(Exception):  # the result stands; at the end of the run the backend removes the rest
            self._reserve.use(attempt.sandbox.close)
        self._launcher.release(attempt)
        attempt.close()
        if large != attempt.result:
            os.close(attempt.result)
        attempt.result = -1
        del self._attempts[attempt.order.number]
        self._link.report(made, large)

    def _read_output(self, attempt: Attempt, pipe: OutputPipe) -> None:
        """Read what is there, and wait for more, or until what came can be passed on."""
        pipe.forget(self._loop)
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
