"""What the supervisor asks of a backend: a sandbox per attempt, and four verbs on it.

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
    """The kernel's out-of-memory counters of one sandbox; see ``judge.Evidence`` for their meaning."""

    oom_events: int = 0
    oom_kills: int = 0
    oom_kills_local: int = 0


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
        """Look at what no event of the kernel tells: CPU time, and without cgroups memory."""

    def pause(self) -> None:
        """Stop every process in the sandbox until ``resume``."""

    def resume(self) -> None:
        """Let the processes go on."""

    def kill(self) -> None:
        """Kill every process in the sandbox; returns at once. Safe to call again, and after all are dead."""

    def remaining(self) -> int | None:
        """Descriptor to wait on while processes are left in the sandbox, or ``None`` when none is.

        It is to be waited on for EPOLLPRI (cgroup.events) or EPOLLIN (a pidfd); whoever waits asks again.
        """

    def usage(self, wall_seconds: float, rusage: resource.struct_rusage) -> tuple[Usage, Counters]:
        """What the guest used; to be called once, when nothing is left of it."""

    def close(self) -> None:
        """Release everything of the sandbox. Nothing may live in it any more."""


class Backend(Protocol):
    """How limits are held on this host."""

    name: str
    needs_subreaper: bool
    """Whether descendants can only be found by being handed to the nearest subreaper."""

    may_refuse: bool
    """Whether ``prepare`` may fail on a host where others succeed: the caller then waits to hear of it."""

    def prepare(self) -> str:
        """Once per run, in the reaper's process: get ready to open sandboxes.

        Returns:
            What ``adopt_group`` needs in the caller's process.

        Raises:
            SandboxError: The kernel or systemd refused.
        """

    def adopt_group(self, group: str) -> None:
        """In the caller's process: what ``prepare`` made there, for ``destroy`` where the reaper is killed."""

    def adopt(self, zygote: int, has_births: Callable[[], bool]) -> None:
        """In the supervisor: there is a new zygote.

        Args:
            zygote: Pid of a child that is no guest, and is to live.
            has_births: Whether the zygote may have forked a guest that was not ``started`` yet.
        """

    def awaits_births(self) -> bool:
        """Whether it cannot tell a guest that was just born from what a dead one left, until it was ``started``."""

    def descriptors(self) -> list[int]:
        """Those that it holds in this process, sandboxes not counted: no guest is to have them."""

    def open(self, limits: Limits) -> Sandbox:
        """Make a sandbox that holds ``limits``, before there is a process to put into it."""

    def destroy(self) -> None:
        """Kill and remove whatever cgroups are left of this run. Waits until done; safe to call again."""


def largest_process(rusage: resource.struct_rusage, forked: int, *, keeps_memory: bool) -> int | None:
    """Bytes of the largest process of a tree, without what it shared with us at the fork; ``None``: cannot be told.

    ``ru_maxrss`` counts what a fork shares, and survives exec: of a program it tells something only where it is
    more than that.

    Args:
        rusage: From waiting for the tree's first process.
        forked: Bytes that a fresh fork has mapped.
        keeps_memory: Whether it went on as the fork that it was.
    """
    largest = rusage.ru_maxrss * 1024
    return largest - forked * keeps_memory if largest > forked else None


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


def lower(pid: int, number: int, soft: int, reserve: int = 0) -> None:
    """Set a limit of a process, with a hard limit ``reserve`` above; but neither above the host's own."""
    _, ceiling = resource.prlimit(pid, number)
    hard = soft + reserve
    if ceiling != resource.RLIM_INFINITY:
        soft, hard = min(soft, ceiling), min(hard, ceiling)
    resource.prlimit(pid, number, (soft, hard))
