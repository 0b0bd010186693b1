"""What a report says, as the caller's ``TaskResult``: the guest's record is opened here, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gwsandbox.ipc import pickling, record
from gwsandbox.ipc.channel import Report
from gwsandbox.ipc.exception import FORGED, Raised
from gwsandbox.ipc.output_store import received
from gwsandbox.ipc.pickling import Buffer
from gwsandbox.model.errors import (
    CpuTimeExceeded,
    GuestCrashed,
    GuestFailed,
    GuestKilled,
    OutputExceeded,
    SandboxError,
    TaskCancelled,
    TransferError,
)
from gwsandbox.model.limits import GIB, Limits
from gwsandbox.model.options import RunOptions
from gwsandbox.model.result import NOT_STARTED, Enforcement, Outcome, TaskResult
from gwsandbox.model.task import Command, CommandOutput, Task
from gwsandbox.model.text import shorten_detail
from gwsandbox.model.verdict import NEVER_STARTED, Delivery

_BESIDE_THREADS = (
    "perhaps it waited for a lock: the caller was forked beside {} more threads, and what they held stays locked in a "
    "guest; start_method='forkserver' has none of them"
)

_EXCEPTIONS: dict[Outcome, type[Exception]] = {
    Outcome.FAILED: GuestFailed,
    Outcome.TIMED_OUT: TimeoutError,
    Outcome.CPU_TIME_EXCEEDED: CpuTimeExceeded,
    Outcome.OUT_OF_MEMORY: MemoryError,
    Outcome.OUTPUT_EXCEEDED: OutputExceeded,
    Outcome.CRASHED: GuestCrashed,
    Outcome.KILLED: GuestKilled,
    Outcome.CANCELLED: TaskCancelled,
}


def never_started(task: Task | Command) -> TaskResult:
    """The result of a task that was cancelled before a supervisor knew of it."""
    error = TaskCancelled(NEVER_STARTED)
    return TaskResult(task, success=False, exception=error, outcome=Outcome.CANCELLED, detail=NEVER_STARTED)


def make_result(
    task: Task | Command,
    report: Report,
    descriptor: int | None,
    options: RunOptions,
    held: Mapping[str, str] | None = None,
) -> TaskResult:
    """The result of a task.

    Args:
        task: What was asked for.
        report: What the supervisor says of it.
        descriptor: That came with the report, with the record in it; it stays open.
        options: Of the run.
        held: What holds the run's hardening, by mechanism.
    """
    report, value, exception = _open_payload(task, report, descriptor, options)
    if report.outcome is Outcome.TIMED_OUT and options.other_threads and isinstance(task, Task):
        report = report._replace(detail=f"{report.detail}; {_BESIDE_THREADS.format(options.other_threads)}")
    if report.outcome is not Outcome.SUCCEEDED and (exception is None or _overrules(report)):
        exception = _EXCEPTIONS.get(report.outcome, SandboxError)(report.detail)
    peak = report.usage.memory_peak_bytes
    return TaskResult(
        task=task,
        success=report.outcome is Outcome.SUCCEEDED,
        result=value,
        exception=exception,
        exit_code=report.exit_code,
        timeout_seconds=_shown("wall_seconds", task, options.limits, options.timeout_seconds),
        memory_limit_in_gib=_shown("memory", task, options.limits, options.memory_limit_in_gib),
        start_time=report.start_time,
        end_time=report.end_time,
        elapsed_time=report.usage.wall_seconds,
        timed_out=report.outcome is Outcome.TIMED_OUT,
        max_memory_used_in_gib=peak if peak is None else peak / GIB,
        out_of_memory=report.outcome is Outcome.OUT_OF_MEMORY,
        outcome=report.outcome,
        detail=report.detail,
        usage=report.usage,
        enforcement=_with_hardening(report.enforcement, held),
    )


def _with_hardening(enforcement: Enforcement, held: Mapping[str, str] | None) -> Enforcement:
    """What held the limits of a guest, with what all guests of the run have in common."""
    if not held or enforcement.backend == NOT_STARTED.backend:
        return enforcement
    return Enforcement(enforcement.backend, enforcement.limits, enforcement.degraded, held)


def _shown(name: str, task: Task | Command, limits: Limits, given: float | None) -> float | None:
    """A limit as the user wrote it; as it is where it was given by ``Limits``."""
    own: float | None = getattr(task.limits or Limits(), name)
    if own is None and given is not None:
        return given
    value: float | None = getattr(limits, name) if own is None else own
    return value / GIB if value and name == "memory" else value


def _overrules(report: Report) -> bool:
    """Whether the outcome says more than the exception that the guest sent."""
    return report.outcome not in {Outcome.FAILED, Outcome.SANDBOX_ERROR}


def _open_payload(
    task: Task | Command, report: Report, descriptor: int | None, options: RunOptions
) -> tuple[Report, Any, BaseException | None]:
    """What the guest sent: the report as it stands then, the value, the exception."""
    if isinstance(report.payload, tuple):
        return _open_output(report, report.payload, descriptor)
    nothing = CommandOutput(b"", b"") if isinstance(task, Command) else None
    if report.error is not None or not _is_wanted(report, descriptor, trusted=options.trusted):
        return report, nothing, report.error
    load = _loader(task, options)
    try:
        content = _read(report.payload, descriptor, load)
    except TransferError as error:
        if report.outcome is Outcome.SUCCEEDED:
            report = report._replace(outcome=Outcome.FAILED, detail=str(error))
        return report, nothing, error
    if report.delivery is Delivery.VALUE:
        return report, content, None
    if not isinstance(content, Raised):
        return report, nothing, TransferError(FORGED)
    if not _overrules(report):
        report = report._replace(detail=_with_text(report, content))
    return report, nothing, content.exception(load) if options.trusted else _stand_in(content, report)


def _loader(task: Task | Command, options: RunOptions) -> Callable[..., Any]:
    """What makes a value, or an exception, of what the guest wrote: where results are plain, no pickle."""
    if options.hardening.results == "pickle":
        return pickling.load
    from gwsandbox.ipc import plain  # noqa: PLC0415 - 10 ms, and most runs have pickles

    returns = task.returns if isinstance(task, Task) else ()

    def load(body: Buffer, _buffers: Sequence[Buffer] = ()) -> Any:
        return plain.decode(body, returns)

    return load


def _stand_in(raised: Raised, report: Report) -> BaseException | None:
    return None if report.outcome is Outcome.SANDBOX_ERROR else raised.stand_in()


def _open_output(
    report: Report, rest: tuple[bytes, bytes], descriptor: int | None
) -> tuple[Report, CommandOutput, BaseException | None]:
    """What a program wrote, of which the larger part may have come as a descriptor."""
    if descriptor is None:
        return report, CommandOutput(*rest), None
    try:
        _refuse_lost(descriptor)
        stdout, stderr = record.fitting(lambda: received(descriptor, report.stored, rest))
    except TransferError as error:
        detail = f"{report.detail}; {error}" if report.detail else str(error)
        outcome = Outcome.FAILED if report.outcome is Outcome.SUCCEEDED else report.outcome
        return report._replace(outcome=outcome, detail=detail), CommandOutput(b"", b""), error
    return report, CommandOutput(stdout, stderr), None


def _is_wanted(report: Report, descriptor: int | None, *, trusted: bool) -> bool:
    """Whether the record is to be opened: a value on success only, and where not trusted only one of bytes.

    Of an exception that is not trusted the texts are read, and it is not unpickled.
    """
    if report.delivery is Delivery.NOTHING:
        return False
    if report.delivery is not Delivery.VALUE:
        return report.outcome is not Outcome.SUCCEEDED
    if report.outcome is not Outcome.SUCCEEDED:
        return False
    return trusted or (descriptor is None and isinstance(report.payload, bytes) and record.is_bytes(report.payload))


def _read(payload: bytes | tuple[bytes, bytes], descriptor: int | None, load: Callable[..., Any]) -> Any:
    if descriptor is not None:
        _refuse_lost(descriptor)
        return record.read_descriptor(descriptor, load)
    assert isinstance(payload, bytes)
    return record.read_inline(payload, load)


def _refuse_lost(descriptor: int) -> None:
    if descriptor < 0:
        raise TransferError(
            f"result cannot be received: {os.strerror(-descriptor)} [errno {-descriptor}]; raise ulimit -n"
        )


def _with_text(report: Report, raised: Raised) -> str:
    text = shorten_detail(raised.describe())
    return f"{report.detail}: {text}" if report.detail else text
