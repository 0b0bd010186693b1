"""``TaskResult`` and what it is made of: ``Outcome``, ``Usage``, ``Enforcement``. Pure data."""

from __future__ import annotations

import enum
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from gwsandbox.model.task import Command, R, Task
from gwsandbox.model.text import shorten


class Outcome(enum.Enum):
    """How a task ended. One of them, once, and it never changes."""

    SUCCEEDED = "SUCCEEDED"
    """The function returned and its value arrived; a command: exit code 0."""
    FAILED = "FAILED"
    """It raised, left no result, or its exit code was not 0."""
    TIMED_OUT = "TIMED_OUT"
    """Ended at its wall-clock limit."""
    CPU_TIME_EXCEEDED = "CPU_TIME_EXCEEDED"
    """Ended at its CPU-time limit."""
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    """Ended at its own memory limit."""
    OUTPUT_EXCEEDED = "OUTPUT_EXCEEDED"
    """Ended at its output limit."""
    CRASHED = "CRASHED"
    """A fatal signal of its own ended it."""
    KILLED = "KILLED"
    """A signal from outside ended it, or an OOM kill by an ancestor or the host; the detail says which."""
    CANCELLED = "CANCELLED"
    """The caller ended it."""
    SANDBOX_ERROR = "SANDBOX_ERROR"
    """gwsandbox failed; never the guest's doing."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the guest and all its descendants used. ``None`` is "not measured", never 0.

    ``sources`` names for each measured field where its figure comes from, for example
    ``usage.sources["memory_peak_bytes"] == "memory.peak"``.

    Args:
        wall_seconds: From the guest's first instruction of the task to its death, in seconds of the monotonic clock.
        cpu_user_seconds: CPU time in user mode, of all processes and threads.
        cpu_system_seconds: CPU time in the kernel, likewise.
        memory_peak_bytes: Most memory at a time.
        swap_peak_bytes: Most swap at a time.
        pids_peak: Most processes and threads at a time.
        oom_kills: Processes that the OOM killer has ended.
        pids_limit_hits: Forks and threads that the limit has refused.
        io_read_bytes: Bytes that were read from block devices.
        io_write_bytes: Bytes that were written to block devices.
        memory_pressure_seconds: Time in which some process waited for memory.
        sources: Where each figure comes from, by the field's name.
    """

    wall_seconds: float | None = None
    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    memory_peak_bytes: int | None = None
    swap_peak_bytes: int | None = None
    pids_peak: int | None = None
    oom_kills: int | None = None
    pids_limit_hits: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    memory_pressure_seconds: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[Usage], tuple[Any, ...]]:
        # The default for frozen dataclasses with slots takes ten times as long, once per task.
        return Usage, _usage_values(self)


_usage_values = operator.attrgetter(*Usage.__slots__)


@dataclass(frozen=True, slots=True)
class Enforcement:
    """What held the limits that were asked for.

    Args:
        backend: "cgroup", "rlimit", or "none" where the task never started.
        limits: For each limit that was asked for, what held it: ``{"memory": "memory.max"}``.
        degraded: For each limit that is held less than fully, why.
        hardening: For each mechanism of ``Hardening`` that was asked for: "enforced", "partly: why" or "not: why".
    """

    backend: str
    limits: Mapping[str, str] = field(default_factory=dict)
    degraded: Mapping[str, str] = field(default_factory=dict)
    hardening: Mapping[str, str] = field(default_factory=dict)

    def __reduce__(self) -> tuple[type[Enforcement], tuple[Any, ...]]:
        return Enforcement, (self.backend, self.limits, self.degraded, self.hardening)

    def __getitem__(self, limit: str) -> str:
        """What holds ``limit``; KeyError where it was not asked for."""
        return self.limits[limit]


NOT_STARTED = Enforcement(backend="none")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TaskResult(Generic[R]):
    """How a task ended, what it gave and what it used. Every field is always present.

    ``start_time`` and ``end_time`` are the guest's, in seconds since the Epoch (``None`` where it never
    started); ``elapsed_time`` is in seconds of the monotonic clock. ``exception`` is ``None`` on success only.
    ``exit_code`` is minus the signal's number where a signal ended the guest, and ``None`` where it never
    started. ``detail`` says in one sentence what happened and, where that helps, what to do.
    """

    task: Task | Command
    success: bool
    result: R = None  # type: ignore[assignment] # None wherever the task has not succeeded
    exception: BaseException | None = None
    exit_code: int | None = None
    timeout_seconds: float | None = None
    memory_limit_in_gib: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    elapsed_time: float | None = None
    timed_out: bool = False
    max_memory_used_in_gib: float | None = None
    out_of_memory: bool = False
    outcome: Outcome = Outcome.SUCCEEDED
    detail: str = ""
    usage: Usage = Usage()
    enforcement: Enforcement = NOT_STARTED

    def __post_init__(self) -> None:
        if not self.success and self.outcome is Outcome.SUCCEEDED:
            object.__setattr__(self, "outcome", Outcome.FAILED)

    def __repr__(self) -> str:
        shown = [name for name in self.__slots__ if name not in {"usage", "enforcement"}]
        return f"TaskResult({', '.join(f'{name}={shorten(getattr(self, name))}' for name in shown)})"

    def _repr_html_(self) -> str:
        from gwsandbox.model.show import as_html  # noqa: PLC0415 - only notebooks ask for it

        return as_html(self)

    def __rich__(self) -> object:
        from gwsandbox.model.show import as_rich  # noqa: PLC0415 - only rich asks for it

        return as_rich(self)

    def _parts(self) -> tuple[object, ...]:
        return self.task, self.success, self.result, self.exception

    def __eq__(self, other: object) -> bool:
        return self._parts() == other._parts() if isinstance(other, TaskResult) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._parts())
