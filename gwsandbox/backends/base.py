"""What the supervisor asks of a backend: a sandbox per attempt, and a few verbs on it.

A backend knows how limits are held and measured, and nothing about tasks.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Enforcement, Usage
from gwsandbox.model.verdict import Reason


class Counters(NamedTuple):
    """What the backend knows of a guest's end; see ``verdict.Evidence`` for the meaning of the kernel's counters."""

    oom_events: int = 0
    oom_kills: int = 0
    oom_kills_local: int = 0
    refusal: str = ""
    """What is known of allocations that a limit of ours has refused."""
    killer: str = ""
    """Who, outside of gwsandbox, has killed the guest, where that is known."""
    total_memory: int = 0
    """Bytes that all guests of the run may have together, where they reached that while this one lived."""


class Check(NamedTuple):
    """What a look at a running sandbox gave: a reason to end it, and when to look again.

    ``after`` is in seconds; ``None`` is never.
    """

    reason: Reason | None = None
    after: float | None = None


class Sandbox(Protocol):
    """An opened instance of a backend: the walls around one attempt."""

    enforcement: Enforcement
    memory_refusable: bool
    """Whether a limit of ours can make an allocation fail inside the guest (RLIMIT_DATA)."""
    data_limit_at_exec: int
    """RLIMIT_DATA of a program, in bytes; 0 is none."""
    first_check: float | None
    """Seconds from the guest's start to the first ``check``; ``None`` where none is needed."""

    @property
    def cgroup(self) -> int | None:
        """Descriptor of the cgroup that the guest is to be born in, or ``None``."""

    def started(self, pid: int, *, keeps_memory: bool) -> None:
        """The guest's main process was born as ``pid`` and waits for its time.

        Args:
            pid: Of the guest.
            keeps_memory: Whether it keeps the memory of the fork; a program does not.
        """

    def check(self) -> Check:
        """Look at what no event of the kernel announces: CPU time, and without cgroups memory."""

    def pause(self) -> None:
        """Stop every process in the sandbox until ``resume``."""

    def resume(self) -> None:
        """Let the processes go on."""

    def kill(self) -> None:
        """Kill every process of the attempt, wherever it is; does not wait.

        Safe to call again, and after all are dead.
        """

    def remaining(self) -> int | None:
        """Descriptor to wait on while processes are left in the sandbox, or ``None`` when none is.

        It is to be waited on for EPOLLPRI (cgroup.events) or EPOLLIN (a pidfd); after the event, ask again.
        """

    def usage(self, wall_seconds: float, rusage: resource.struct_rusage) -> tuple[Usage, Counters]:
        """What the guest used; to be called once, when nothing is left of it."""

    def close(self) -> None:
        """Release everything of the sandbox. Nothing may live in it any more."""


class Backend(Protocol):
    """How limits are held on this host."""

    name: str
    in_scope: bool
    """Whether ``prepare`` has put the reaper into a scope of its own, which systemd may be asked to stop."""
    may_refuse: bool
    """Whether ``prepare`` may fail on a host where others succeed: the caller then waits for the answer."""

    def prepare(self, total_memory: int = 0) -> str:
        """Once per run, in the reaper's process: get ready to open sandboxes.

        Args:
            total_memory: Bytes that all guests together may have; 0 is no such limit.

        Returns:
            What ``adopt_group`` needs in the caller's process.

        Raises:
            SandboxError: The kernel or systemd refused.
        """

    def adopt_group(self, group: str) -> None:
        """In the caller's process: what ``prepare`` made there, for ``destroy`` where the reaper is killed."""

    def watch_children(self) -> int:
        """Once, in the supervisor, which is a subreaper: a descriptor that can be read when a child has died.

        Then call ``child_died``.
        """

    def child_died(self) -> None:
        """Reap what no attempt waits for: orphans of guests, and siblings that guests have cloned."""

    def adopt(self, zygote: int, init: int, has_births: Callable[[], bool]) -> None:
        """In the supervisor: there is a new zygote.

        Args:
            zygote: Pid of a child that is no guest, and is to live.
            init: Pid of the first process of the zygote's PID namespace; 0 where it has none of its own.
            has_births: Whether the zygote may have forked a guest that was not yet ``started``.
        """

    def descriptors(self) -> list[int]:
        """Those that it holds in this process, sandboxes not counted: no guest is to have them."""

    def open(self, limits: Limits) -> Sandbox:
        """Make a sandbox that holds ``limits``, before there is a process to put into it."""

    def destroy(self) -> None:
        """Kill and remove whatever cgroups are left of this run. Waits until done; safe to call again."""


def limit_resources(pid: int, limits: Mapping[str, float]) -> None:
    """Set the limits that setrlimit(2) holds on every backend, for a process that waits for its time."""
    if "open_files" in limits:
        lower(pid, resource.RLIMIT_NOFILE, int(limits["open_files"]))
    if "file_size" in limits:
        lower(pid, resource.RLIMIT_FSIZE, int(limits["file_size"]))
    if "cpu_seconds" in limits:
        # Whole seconds only, so rounded up: the exact limit is held by the supervisor's own look at the clock.
        # One second more until SIGKILL, for processes that ignore SIGXCPU.
        lower(pid, resource.RLIMIT_CPU, int(-(-limits["cpu_seconds"] // 1)), 1)


_BY_RLIMIT = {
    "memory": ("RLIMIT_DATA", resource.RLIMIT_DATA),
    "pids": ("RLIMIT_NPROC", resource.RLIMIT_NPROC),
    "open_files": ("RLIMIT_NOFILE", resource.RLIMIT_NOFILE),
    "file_size": ("RLIMIT_FSIZE", resource.RLIMIT_FSIZE),
    "cpu_seconds": ("RLIMIT_CPU", resource.RLIMIT_CPU),
}


def said_of_ceilings(limits: Mapping[str, float]) -> dict[str, str]:
    """What to add to the names of what holds ``limits``, where this process inherited lower hard limits.

    Nobody but root can raise those, so they hold too.
    """
    said = {}
    for limit, (name, number) in _BY_RLIMIT.items():
        _, ceiling = resource.getrlimit(number)
        if limit in limits and ceiling != resource.RLIM_INFINITY and ceiling < limits[limit]:
            said[limit] = f" ({name} of {ceiling}, the caller's own hard limit, is lower)"
    return said


def lower(pid: int, number: int, soft: int, reserve: int = 0) -> None:
    """Set a limit of a process, with a hard limit ``reserve`` above; but neither above the host's own."""
    _, ceiling = resource.prlimit(pid, number)
    hard = soft + reserve
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.prlimit(pid, number, (soft, hard))
