"""One attempt: what the supervisor holds of a guest from its sandbox to its report."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

from gwsandbox.backends.base import Counters, Sandbox
from gwsandbox.ipc import record
from gwsandbox.ipc.channel import Order, Report
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.result import Outcome, Usage
from gwsandbox.model.verdict import Delivery, Evidence, Reason, explain, judge
from gwsandbox.supervisor.output import OutputPipe

Steps = Generator[tuple[int, int], None, None]
"""What is waited for, as descriptor and epoll mask, one after the other."""


@dataclass(slots=True)
class Attempt:
    """One guest.

    Args:
        order: What the caller asked for.
        is_command: Whether it is a program.
        sandbox: The walls around it.
        result: The result descriptor.
        start_event: The descriptor that tells the guest that its time begins.
        outputs: Pipes of its stdout and stderr, where we read them.
        requested: The limits that were asked for.
    """

    order: Order
    is_command: bool
    sandbox: Sandbox
    result: int
    start_event: int
    outputs: list[OutputPipe]
    requested: Mapping[str, float]
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
            self.sandbox.kill()
        elif any(pipe.pass_on() for pipe in self.outputs):
            # It is dead and its last words wait for a reader that does not come.
            for pipe in self.outputs:
                pipe.discard()
            self.proceed()

    def descriptors(self) -> list[int]:
        """All that it holds and has not closed."""
        found = [self.result, self.start_event, self.pidfd]
        for pipe in self.outputs:
            found += [pipe.fd, pipe.guests_end, pipe.store.fd]
        return [fd for fd in found if fd >= 0]

    def close(self) -> None:
        """Close what is open but the result descriptor."""
        for name in ("start_event", "pidfd"):
            if (fd := getattr(self, name)) >= 0:
                os.close(fd)
                setattr(self, name, -1)
        for pipe in self.outputs:
            pipe.close()


def report(
    attempt: Attempt, exit_code: int, end_time: float, usage: Usage, counters: Counters
) -> tuple[Report, int | None]:
    """The verdict on an attempt of which nothing lives any more, and the descriptor of what is large.

    That is its result descriptor, or one with what a program wrote, which is the caller's to close.
    """
    delivery, payload_bytes, is_whole = record.inspect(attempt.result)
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
    )
    outcome = judge(evidence)
    payload: bytes | tuple[bytes, bytes] = payload_bytes
    stored, large = (0, 0), None if is_whole else attempt.result
    if attempt.is_command and delivery is Delivery.NOTHING:
        payload = b"", b""
        if attempt.outputs:
            (stored_out, out), (stored_err, err) = [pipe.kept() for pipe in attempt.outputs]
            stored, payload = (stored_out, stored_err), (out, err)
            large = attempt.outputs[0].store.take()
    made = Report(
        attempt.order.number,
        outcome,
        explain(evidence, outcome, attempt.requested),
        delivery,
        exit_code,
        attempt.start_time,
        end_time,
        usage,
        attempt.sandbox.enforcement,
        payload,
        stored,
    )
    return made, large


def failure(order: Order, error: Exception) -> Report:
    """A failure of ours, as the task's report."""
    if not isinstance(error, SandboxError):
        error = SandboxError("start guest", value=f"{type(error).__name__}: {error}")
    return Report(order.number, Outcome.SANDBOX_ERROR, str(error), error=error)
