"""One attempt: what the supervisor holds of a guest from its sandbox to its report."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import select
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from gwsandbox.backends.base import Counters, Sandbox
from gwsandbox.ipc import record
from gwsandbox.ipc.channel import Order, Report
from gwsandbox.linux import procfs
from gwsandbox.linux.errnos import Patience, errno_of, is_not_now
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.result import Outcome, Usage
from gwsandbox.model.verdict import RESULT_LOST, Delivery, Evidence, Reason, explain, judge
from gwsandbox.supervisor.event_loop import EventLoop
from gwsandbox.supervisor.output import OutputPipe
from gwsandbox.supervisor.reserve import Reserve

Steps = Generator[tuple[int, int], None, None]
"""What is waited for, one after the other: a descriptor and an epoll mask."""


@dataclass(slots=True, eq=False, repr=False)
class Attempt:
    """One guest.

    Args:
        order: What the caller asked for.
        is_command: Whether it is a program.
        sandbox: The walls around it.
        result: The result descriptor.
        start_event: The descriptor that says to the guest that its time begins.
        outputs: Pipes of its stdout and stderr, where we read them.
        requested: The limits that were asked for, by name.
        sending: Descriptors that are needed until the zygote has been asked for the guest.
        asked_to_end: Whether it had SIGTERM at its deadline.
        ended_at: Monotonic moment of the first kill, in seconds.
        abandoned_at: And that since which nothing is wanted of it but to go away; 0 where there is none.
        room_is_limited: Whether this process's own RLIMIT_FSIZE limits the record.
        slot: A number that no other living guest has, from 0.
        patience: With looks at the guest that the kernel refuses.
    """

    order: Order
    is_command: bool
    sandbox: Sandbox
    result: int
    start_event: int
    outputs: list[OutputPipe]
    requested: Mapping[str, float]
    sending: deque[int] = field(default_factory=deque)
    start_time: float = 0.0
    started: float = 0.0
    pid: int = 0
    pidfd: int = -1
    deadline: float | None = None
    next_check: float | None = None
    ended_at: float | None = None
    abandoned_at: float = 0.0
    room_is_limited: bool = False
    slot: int = 0
    patience: Patience = field(default_factory=Patience)
    reason: Reason | None = None
    asked_to_end: bool = False
    dead: bool = False
    steps: Steps = field(init=False)
    proceed: Callable[[], None] | None = None

    def end(self, reason: Reason) -> None:
        """Note why, then kill. The first reason noted stands."""
        self.deadline = self.next_check = None
        if not self.dead:
            self.reason = self.reason or reason
            self.kill()
        elif any(pipe.pass_on() for pipe in self.outputs):
            # It is dead and its last output waits for a reader that does not come.
            for pipe in self.outputs:
                pipe.discard()
            if self.proceed is not None:
                self.proceed()

    def ask_to_end(self, reason: Reason, deadline: float) -> None:
        """Note why, and send SIGTERM; at ``deadline``, a moment of the monotonic clock, the guest is killed."""
        self.reason, self.asked_to_end, self.deadline = reason, True, deadline
        procfs.signal_group(self.pid, signal.SIGTERM)
        procfs.signal_group(self.pid, signal.SIGCONT)  # a stopped process answers no signal

    def shift(self, seconds: float) -> None:
        """Move its moments: it was paused so long."""
        self.started += seconds
        self.deadline = None if self.deadline is None else self.deadline + seconds
        self.next_check = None if self.next_check is None else self.next_check + seconds

    def kill(self) -> None:
        """Kill all that is in the sandbox, and the guest itself, which another process may have moved out."""
        if self.ended_at is None:
            self.ended_at = time.monotonic()
        self.kill_guest()
        self.sandbox.kill()

    def kill_guest(self) -> None:
        """Kill the guest's first process, which is a child of ours."""
        with contextlib.suppress(ProcessLookupError):
            if self.pidfd >= 0:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            elif self.pid and not self.dead:
                os.kill(self.pid, signal.SIGKILL)  # nobody else reaps it, so the pid is still its own

    def await_emptiness(self, reserve: Reserve) -> Steps:
        """Kill what the guest's first process left, until nothing lives in the sandbox any more."""
        while True:
            remaining = reserve.use(self.sandbox.remaining)
            if remaining is None:
                return
            reserve.use(self.kill)
            yield remaining, select.EPOLLPRI | select.EPOLLIN

    def take_stock(self, reserve: Reserve, elapsed: float, rusage: resource.struct_rusage) -> tuple[Usage, Counters]:
        """What the guest used. A failure here loses no result: a guest may have removed the leaf."""
        try:
            return reserve.use(functools.partial(self.sandbox.usage, elapsed, rusage))
        except Exception as error:  # noqa: BLE001 - as said
            sources = {"wall_seconds": "CLOCK_MONOTONIC", "memory_peak_bytes": f"not read: {error}"}
            return Usage(wall_seconds=elapsed, sources=sources), Counters()

    def drain(self, pipe: OutputPipe, loop: EventLoop) -> Steps:
        """Nobody writes any more: read to the end, and pass all of it on."""
        pipe.forget(loop)
        while True:
            _, exceeded = pipe.read(sys.maxsize)
            if exceeded and self.reason is None:
                self.reason = Reason.OUTPUT
            if pipe.pass_on() and self.order.streams and self.reason is not None:
                pipe.keep_rest()  # its slot is wanted: what the caller does not take now comes with the report
            elif pipe.pass_on() and pipe.target is not None:
                yield pipe.target, select.EPOLLOUT
            else:
                return  # if it has not ended now, somebody outside of the sandbox holds the other end

    def is_cleared(self) -> bool:
        """Take away what is left of an attempt that comes to nothing; whether all of it is gone. Never waits."""
        self.kill_guest()
        if self.pid and not self.dead:
            self.dead = os.waitpid(self.pid, os.WNOHANG)[0] != 0
        self.kill()
        if self.pid and not self.dead:
            return False
        self.dead = True
        if self.sandbox.remaining() is not None:
            return False
        self.sandbox.close()
        return True

    def asked(self) -> None:
        """The zygote has been asked for the guest, so it has what it needs of us."""
        while self.sending:
            os.close(self.sending.popleft())

    def has_begun(self) -> bool:
        """Whether the guest has taken the start event, after which only the task itself writes a record."""
        poll = select.poll()
        poll.register(self.start_event, select.POLLIN)
        return not poll.poll(0)

    def born(self) -> None:
        """The guest exists, and has all that came with the order."""
        if self.order.descriptor is not None:
            self.order.close()
            self.order = self.order.without_descriptors()

    def descriptors(self) -> list[int]:
        """All that it holds and has not closed."""
        found = [self.result, self.start_event, self.pidfd, *self.sending]
        for pipe in self.outputs:
            found += pipe.descriptors()
        return [fd for fd in found if fd >= 0]

    def close(self) -> None:
        """Close what is open but the result descriptor."""
        self.asked()
        for name in ("start_event", "pidfd"):
            if (fd := getattr(self, name)) >= 0:
                setattr(self, name, -1)
                os.close(fd)
        for pipe in self.outputs:
            pipe.close()

    def close_all(self) -> None:
        """Close all that is open: no result is wanted of it."""
        self.close()
        if self.result >= 0:
            fd, self.result = self.result, -1
            os.close(fd)


def report(
    attempt: Attempt, exit_code: int, end_time: float, usage: Usage, counters: Counters
) -> tuple[Report, int | None]:
    """The verdict on an attempt of which nothing lives any more, and the descriptor of what is large.

    That is its result descriptor, or one with what a program wrote, which is the caller's to close.

    Raises:
        OSError: "Not now": it can be asked for again.
    """
    unfinished = record.read_unfinished(attempt.result) if exit_code < 0 else ""
    write_errno = record.why_lost(attempt.result) if exit_code == RESULT_LOST else 0
    try:
        delivery, payload, stored, large = _delivered(attempt)
    except PermissionError as error:  # the guest has sealed it
        delivery, payload, stored, large, write_errno = Delivery.NOTHING, b"", (0, 0), None, errno_of(error)
    except OSError as error:
        if is_not_now(error):
            raise
        return _unread(attempt, error, exit_code, end_time, usage), None
    evidence = Evidence(
        exit_code=exit_code,
        delivery=delivery,
        is_command=attempt.is_command,
        reason=attempt.reason,
        oom_events=counters.oom_events,
        oom_kills=counters.oom_kills,
        oom_kills_local=counters.oom_kills_local,
        memory_refused=attempt.sandbox.memory_refusable,
        cpu_limited="cpu_seconds" in attempt.requested,
        file_size_limited="file_size" in attempt.requested,
        asked_to_end=attempt.asked_to_end,
        unfinished=unfinished,
        refusal=counters.refusal,
        killer=counters.killer,
        total_memory=counters.total_memory,
        write_errno=write_errno,
    )
    outcome = judge(evidence)
    detail, held = explain(evidence, outcome, attempt.requested), attempt.sandbox.enforcement
    times = attempt.start_time, end_time
    made = Report(attempt.order.number, outcome, detail, delivery, exit_code, *times, usage, held, payload, stored)
    return made, large


# What a guest has delivered, its bytes, how many bytes of each stream are stored, and the descriptor of what is large.
_Delivered = tuple[Delivery, bytes | tuple[bytes, bytes], tuple[int, int], int | None]


def _delivered(attempt: Attempt) -> _Delivered:
    """What is to be passed on of what the guest has written."""
    delivery, payload, is_whole = record.inspect(attempt.result)
    forged = delivery is Delivery.STEP_FAILED and attempt.has_begun()  # no step of ours, but the task, wrote that
    if forged or (delivery is Delivery.NO_ROOM and not attempt.room_is_limited):  # there was room
        delivery, payload, is_whole = Delivery.NOTHING, b"", True
    large = None if is_whole else attempt.result
    if not attempt.is_command or delivery is not Delivery.NOTHING:
        return delivery, payload, (0, 0), large
    if not attempt.outputs:
        return delivery, (b"", b""), (0, 0), large
    (stored_out, out), (stored_err, err) = [pipe.kept() for pipe in attempt.outputs]
    return delivery, (out, err), (stored_out, stored_err), attempt.outputs[0].store.take()


def _unread(attempt: Attempt, error: OSError, exit_code: int, end_time: float, usage: Usage) -> Report:
    """The report of an attempt whose record cannot be read, or not be kept from being changed."""
    made = failure(attempt.order, SandboxError("take over result", errno=error.errno or 0, remedy=_TAKE_OVER))
    return made._replace(
        exit_code=exit_code,
        start_time=attempt.start_time,
        end_time=end_time,
        usage=usage,
        enforcement=attempt.sandbox.enforcement,
    )


_TAKE_OVER = "see that nobody outside of the sandbox holds the task's result"
_REMEDIES = {
    errno.EFBIG: "raise ulimit -f, which counts files in memory too",
    errno.EMFILE: "raise ulimit -n",
    errno.ENFILE: "raise fs.file-max",
    errno.EAGAIN: "see ulimit -u and the cgroup's pids.max",
    errno.ENOMEM: "run fewer tasks at a time, or give this process more memory",
}


def failure(order: Order, error: Exception) -> Report:
    """A failure of ours, as the task's report."""
    if not isinstance(error, SandboxError):
        number, path = errno_of(error), getattr(error, "filename", None)
        error = SandboxError(
            "supervise guest",
            path=str(path or ""),
            value="" if number else f"{type(error).__name__}: {error}",
            errno=number,
            remedy=_REMEDIES.get(number, ""),
        )
    return Report(order.number, Outcome.SANDBOX_ERROR, str(error), error=error)
