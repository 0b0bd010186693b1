"""The verdict: ``judge(evidence) -> Outcome``, and the sentence that explains it. Pure functions.

It is given once, when nothing of the guest lives any more. A whole record comes first: the function had returned or
raised, and what ended the guest later changes nothing of that. Then comes what was noted *before* our own kill, then
the kernel's counters, the wait status last: SIGKILL alone does not say which process sent it.

How the kernel counts (Documentation/admin-guide/cgroup-v2.rst, "memory.events"; commit b6bf9abb0aa4): ``oom``
counts in the group whose limit was reached, ``oom_kill`` in the groups that the victims belong to;
``memory.events`` includes descendants, ``memory.events.local`` does not.
"""

from __future__ import annotations

import enum
import os
import signal
from collections.abc import Mapping
from typing import NamedTuple

from gwsandbox.model.result import Outcome
from gwsandbox.model.text import format_size

GRACE_SECONDS = 2
"""Whole seconds that a guest has, after its function is done, for its threads, exit functions and last output."""

NEVER_STARTED = "ended by the caller before it started"
"""The detail of a task that was cancelled before its time began."""

RESULT_LOST = 113
"""Exit code of a guest that found its result descriptor closed or replaced when it wanted to write its record."""


class Reason(enum.Enum):
    """Why we ended a guest; noted before the kill, and the first one noted stands."""

    DEADLINE = Outcome.TIMED_OUT
    CPU_TIME = Outcome.CPU_TIME_EXCEEDED
    MEMORY = Outcome.OUT_OF_MEMORY
    OUTPUT = Outcome.OUTPUT_EXCEEDED
    PIDS = Outcome.KILLED
    CANCELLED = Outcome.CANCELLED


class Delivery(enum.Enum):
    """What came through the guest's result descriptor."""

    NOTHING = enum.auto()
    """No whole record: a program, or a guest that ended before it had a result."""
    VALUE = enum.auto()
    """The function returned."""
    RAISED = enum.auto()
    """The function raised."""
    NO_MEMORY = enum.auto()
    """The function raised MemoryError."""
    NOT_TRANSFERABLE = enum.auto()
    """The task, its value or its exception could not be pickled or unpickled."""
    NOT_EXECUTED = enum.auto()
    """The program could not be executed: not found, or not executable."""
    STEP_FAILED = enum.auto()
    """A step of ours before the task failed."""
    NO_ROOM = enum.auto()
    """The function is done, and a limit that we have inherited keeps us from sending back what it gave."""


class Evidence(NamedTuple):
    """Everything that a verdict rests on. Counters that were not measured are 0.

    Args:
        exit_code: Exit code, or minus the signal's number.
        delivery: What came through the result descriptor.
        is_command: A program: only its exit code says whether it succeeded.
        reason: Why we ended it, where we did.
        oom_events: ``oom`` of ``memory.events.local``: how often this task's own limit was reached in vain.
        oom_kills: ``oom_kill`` of ``memory.events``: victims in the guest, of nested groups too.
        oom_kills_local: ``oom_kill`` of ``memory.events.local``: victims in the leaf itself.
        memory_refused: A limit of ours on address space or data may have made an allocation fail.
        cpu_limited: A CPU-time limit was asked for (and so SIGXCPU is ours).
        asked_to_end: SIGTERM came first: the reason stands whatever exit code the guest chose then.
        file_size_limited: A file-size limit was asked for (and so SIGXFSZ is ours).
        refusal: What is known of allocations that a limit of ours has refused.
        killer: Who, outside of gwsandbox, has killed it, where that is known.
        total_memory: Bytes that all tasks may have together, where they reached that; else 0.
        write_errno: Why the record could not be written, as the guest noted, or not be taken over; 0: it could.
        unfinished: What the guest waited for when it was ended after its record was whole; "" where that is unknown.
    """

    exit_code: int
    delivery: Delivery = Delivery.NOTHING
    is_command: bool = False
    reason: Reason | None = None
    oom_events: int = 0
    oom_kills: int = 0
    oom_kills_local: int = 0
    memory_refused: bool = False
    cpu_limited: bool = False
    file_size_limited: bool = False
    asked_to_end: bool = False
    unfinished: str = ""
    refusal: str = ""
    killer: str = ""
    total_memory: int = 0
    write_errno: int = 0


_OWN_FATAL_SIGNALS = frozenset(
    {
        signal.SIGSEGV,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGILL,
        signal.SIGSYS,
        signal.SIGTRAP,
        signal.SIGXFSZ,
        signal.SIGXCPU,
    }
)


_ULIMITS = {"SIGXCPU": "-t", "SIGXFSZ": "-f"}


def judge(evidence: Evidence) -> Outcome:
    """How the task ended."""
    if evidence.delivery is Delivery.STEP_FAILED or evidence.delivery is Delivery.NO_ROOM:
        return Outcome.SANDBOX_ERROR
    if evidence.reason is Reason.OUTPUT:
        return Outcome.OUTPUT_EXCEEDED  # what it wrote was cut, however it ended
    ended_itself = evidence.exit_code >= 0
    own_oom = evidence.oom_events > 0 and evidence.oom_kills_local > 0
    # Where the kernel killed a descendant only, it may have returned for that.
    if _has_record(evidence) and not (own_oom and ended_itself):
        return _judge_record(evidence)
    if evidence.reason is not None and (evidence.asked_to_end or not ended_itself):
        return Outcome(evidence.reason.value)
    if own_oom:
        return Outcome.OUT_OF_MEMORY
    return _judge_exit(evidence) if ended_itself else _judge_signal(evidence)


def _has_record(evidence: Evidence) -> bool:
    """Whether the guest said what became of its function. A program says nothing, unless it could not be executed."""
    return evidence.delivery is not Delivery.NOTHING and not evidence.is_command


def _judge_record(evidence: Evidence) -> Outcome:
    if evidence.delivery is Delivery.NO_MEMORY and evidence.memory_refused:
        return Outcome.OUT_OF_MEMORY
    return Outcome.SUCCEEDED if evidence.delivery is Delivery.VALUE else Outcome.FAILED


def _judge_exit(evidence: Evidence) -> Outcome:
    return Outcome.SUCCEEDED if evidence.is_command and evidence.exit_code == 0 else Outcome.FAILED


def _judge_signal(evidence: Evidence) -> Outcome:
    number = -evidence.exit_code
    # Past the hard limit of RLIMIT_CPU the kernel sends SIGKILL, but SIGXCPU comes first.
    if number == signal.SIGXCPU and evidence.cpu_limited:
        return Outcome.CPU_TIME_EXCEEDED
    return Outcome.CRASHED if number in _OWN_FATAL_SIGNALS else Outcome.KILLED


def signal_name(exit_code: int) -> str:
    """The name of the signal that ended a process with this exit code, such as "SIGKILL"."""
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"


def explain(evidence: Evidence, outcome: Outcome, requested: Mapping[str, float]) -> str:  # noqa: C901, PLR0911 - a table
    """One sentence: what happened and, where that helps, what to do.

    Args:
        evidence: What the outcome rests on.
        outcome: What ``judge`` said.
        requested: The limits that were asked for, by name.
    """
    match outcome:
        case Outcome.TIMED_OUT:
            return (
                f"wall-clock limit of {requested.get('wall_seconds', 0):g} s reached; "
                "raise --timeout (wall_seconds) if the work needs longer"
            )
        case Outcome.CPU_TIME_EXCEEDED:
            return (
                f"CPU-time limit of {requested.get('cpu_seconds', 0):g} s used up; "
                "raise --cpu-time (cpu_seconds) if the work needs more"
            )
        case Outcome.OUT_OF_MEMORY:
            return _explain_memory(evidence, requested)
        case Outcome.OUTPUT_EXCEEDED:
            return (
                f"more than {format_size(requested.get('output', 0))} written to stdout and stderr; "
                "raise --output-limit (output) if that much is meant"
            )
        case Outcome.CRASHED:
            return _explain_crash(evidence, requested)
        case Outcome.KILLED:
            return _explain_kill(evidence, requested)
        case Outcome.CANCELLED:
            return "ended by the caller"
        case Outcome.FAILED:
            return _explain_failure(evidence, requested) + _refusal(evidence)
        case Outcome.SANDBOX_ERROR if evidence.delivery is Delivery.NO_ROOM:
            return "send value back: it is larger than the hard RLIMIT_FSIZE that gwsandbox inherited; raise ulimit -f"
        case Outcome.SUCCEEDED if evidence.exit_code:
            return f"the function returned, and {_explain_end(evidence, requested)}"
        case _:
            return ""


def _explain_memory(evidence: Evidence, requested: Mapping[str, float]) -> str:
    text = f"memory limit of {format_size(requested.get('memory', 0))} reached"
    if evidence.exit_code >= 0 and evidence.oom_kills_local:
        text += " by a descendant, which the kernel killed"
    elif evidence.delivery is Delivery.NO_MEMORY:
        text += ": an allocation was refused"
    return f"{text}; raise --memory (memory) if the work needs more{_refusal(evidence)}"


def _refusal(evidence: Evidence) -> str:
    return f"; {evidence.refusal}" if evidence.refusal else ""


def _explain_crash(evidence: Evidence, requested: Mapping[str, float]) -> str:
    name = signal_name(evidence.exit_code)
    if name == "SIGXFSZ" and evidence.file_size_limited:
        size = format_size(requested.get("file_size", 0))
        return f"ended by SIGXFSZ: a file grew to the limit of {size}; raise --file-size (file_size)"
    if name in _ULIMITS:
        return f"crashed with {name}: a limit was reached that the task or the caller has set (ulimit {_ULIMITS[name]})"
    return f"crashed with {name}{_refusal(evidence)}"


def _explain_kill(evidence: Evidence, requested: Mapping[str, float]) -> str:
    name = signal_name(evidence.exit_code)
    if evidence.reason is Reason.PIDS:
        return (
            f"more than {requested.get('pids', 0):g} processes and threads at a time; "
            "raise --pids (pids) if the work needs more"
        )
    if evidence.killer:
        return f"ended by {name}, sent by {evidence.killer}"
    if evidence.oom_kills_local and evidence.total_memory:
        return (
            f"killed by the OOM killer, as all tasks together reached total_memory of "
            f"{format_size(evidence.total_memory)}; give each a memory limit, so that only those start that fit"
        )
    if evidence.oom_kills_local:
        return (
            "killed by the OOM killer, and not for this task's own limit: an ancestor cgroup's memory.max "
            "or the host's memory was short; run fewer tasks at a time or give them lower limits"
        )
    if evidence.oom_kills:
        return f"ended by {name} after an OOM kill in a cgroup that the task made itself"
    return f"ended by {name}, sent by itself or from outside and not by gwsandbox"


def _explain_failure(evidence: Evidence, requested: Mapping[str, float]) -> str:
    later = f" (and {_explain_end(evidence, requested)})" if evidence.exit_code < 0 else ""
    match evidence.delivery:
        case Delivery.RAISED | Delivery.NO_MEMORY:
            return f"the function raised{later}"
        case Delivery.NOT_TRANSFERABLE:
            return f"its value could not be sent back{later}"
        case Delivery.NOT_EXECUTED:
            return "the program could not be executed"
        case _ if evidence.is_command:
            return f"exit code {evidence.exit_code}"
        case _ if evidence.exit_code == RESULT_LOST or evidence.write_errno:
            return _explain_loss(evidence.write_errno)
        case _:
            return f"exited with code {evidence.exit_code} before the function returned"


def _explain_loss(write_errno: int) -> str:
    if write_errno:
        why = f"{os.strerror(write_errno)} [errno {write_errno}]"
        return f"the function is done, and what it gave is lost: {why}; let it return less, or write a file"
    return (
        "the function is done, and what it gave is lost: the task had closed or replaced the descriptor of its "
        "result; let it close only what it has opened"
    )


def _explain_end(evidence: Evidence, requested: Mapping[str, float]) -> str:
    """What became of a guest whose record was whole, and that did not end by itself in the usual way."""
    match evidence.reason:
        case _ if evidence.exit_code > 0:
            return f"exited with code {evidence.exit_code} later"
        case Reason.DEADLINE:
            how = f"the wall-clock limit of {requested.get('wall_seconds', 0):g} s ended what it left"
        case Reason.CPU_TIME:
            how = f"the CPU-time limit of {requested.get('cpu_seconds', 0):g} s ended what it left"
        case Reason.MEMORY:
            how = f"the memory limit of {format_size(requested.get('memory', 0))} ended what it left"
        case Reason.PIDS:
            how = f"the limit of {requested.get('pids', 0):g} processes and threads ended what it left"
        case Reason.CANCELLED:
            how = "the caller ended what it left"
        case _ if evidence.exit_code == -signal.SIGALRM:
            # A guest that left nothing else says nothing, and flushes its streams.
            return f"what it left was ended after {GRACE_SECONDS} s: {evidence.unfinished or 'its last output'}"
        case _:
            how = f"{signal_name(evidence.exit_code)} ended what it left"
    return f"{how}: {evidence.unfinished}" if evidence.unfinished else how
