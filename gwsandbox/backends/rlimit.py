"""The rlimit backend, for every host without a delegated cgroup v2: limits per process, and a look at the tree.

What it can hold, it holds by setrlimit(2); what needs the sum over a tree (memory, CPU time, processes) by looking at
/proc: cheaply and often while a guest grows, seldom while it rests. What leaves the tree, because its parent died or
because it was cloned as a sibling, comes to the supervisor with its attempt's mark (``orphans.py``).

RLIMIT_DATA counts what a process reserves, used or not: stacks of threads, the heap of a virtual machine. So it
stands far above the limit, as the last stop of what grows faster than anybody can look.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import resource
import signal
from collections.abc import Mapping
from typing import NamedTuple

from gwsandbox.backends import marks
from gwsandbox.backends.base import Check, Counters, lower, said_of_ceilings
from gwsandbox.backends.descendants import BackendWithOrphans, SandboxWithOrphans
from gwsandbox.backends.fork_memory import ForkMemory
from gwsandbox.backends.orphans import Orphans
from gwsandbox.backends.sampling import Look, Sampler
from gwsandbox.linux import confine, priority, procfs
from gwsandbox.linux.errnos import is_not_now
from gwsandbox.model.limits import GIB, Limits
from gwsandbox.model.result import Enforcement, Usage
from gwsandbox.model.text import format_size
from gwsandbox.model.verdict import Reason

_HELD_BY = {
    "memory": "RLIMIT_DATA + sampling",
    "swap": "sampling",
    "cpu_seconds": "RLIMIT_CPU + sampling",
    "wall_seconds": "deadline + SIGKILL",
    "open_files": "RLIMIT_NOFILE",
    "file_size": "RLIMIT_FSIZE",
    "output": "supervisor",
    "pids": "RLIMIT_NPROC + sampling",
}
_DEGRADED = {
    "memory": (
        "the sum over the tree is sampled, so it can pass the limit for a moment; files on a tmpfs and buffers of "
        "pipes and sockets are not seen; whether a program that failed by itself was refused memory, past "
        "RLIMIT_DATA {stop} further on, cannot be known"
    ),
    "swap": "counted with memory when that is sampled, not limited by itself",
    "cpu_seconds": (
        "the sum over the tree is sampled, so what a process used that its parent did not wait for is counted up to "
        "the last look at it"
    ),
    "cpus": "a share of CPUs needs the cpu controller of cgroup v2",
    "pids": (
        "RLIMIT_NPROC counts all processes of the user, not those of this task; these are sampled, and the task is "
        "ended when there are more"
    ),
}
_PIDS_AS_ROOT = "RLIMIT_NPROC does not bind root: processes are sampled, and the task is ended when there are more"
_NOT_KILLABLE = "a process of the task has become another user's, whom this one may not kill"

_REPORT_RESERVE = 16 * 1024**2  # bytes for what follows a MemoryError
_FASTEST = 0.005  # seconds between two looks at a guest that grows towards its limit
_SLOWEST = 0.5  # and at one that rests
_SLOWEST_FORKS = 0.2  # and where nothing but these looks limits the number of its processes
_BUSY = 0.05  # and where several processes use CPU time that is limited
_GROWTH = 2 * GIB  # bytes per second that two cores can touch; decides how soon a limit can be reached
_MOST_TASKS = 1 << 16  # of a guest for which no limit was asked
_NOTHING_SEEN = Look(0, 0.0, 0.0)
_REFUSED = 0.9  # of RLIMIT_DATA: a process that came so far may well have been refused more


def _room_to_reserve() -> int:
    """Bytes between a memory limit and RLIMIT_DATA.

    A Java machine reserves 1/64 of the host's memory for its first heap; hundreds of threads 8 MiB each.
    """
    return GIB + os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 16


class _Plan(NamedTuple):
    """How the limits of an attempt are held; the same for all attempts with these limits.

    Args:
        enforcement: What holds them.
        data_limit: RLIMIT_DATA in bytes, or the hard limit that this process has inherited where that is less; 0: none.
        is_root: Whether guests are root's, whom RLIMIT_NPROC does not bind.
    """

    enforcement: Enforcement
    data_limit: int
    is_root: bool


_TOTAL_MEMORY = "tasks start only as their memory limits fit under it, and nothing holds what they take together"


class RlimitBackend(BackendWithOrphans):
    """Limits held by setrlimit(2) and by looking."""

    name = "rlimit"
    may_refuse = False
    in_scope = False

    def __init__(self) -> None:
        super().__init__()
        self._room = _room_to_reserve()
        self._has_total = False
        self._plans: dict[tuple[tuple[str, float], ...], _Plan] = {}

    def prepare(self, total_memory: int = 0) -> str:
        """See that there is something to look at, and let no guest become a user whom we may not kill.

        Raises:
            SandboxError: There is no /proc, or one of another PID namespace.
        """
        procfs.check_mount()
        self._has_total = total_memory > 0
        if os.geteuid():
            confine.no_new_privs()
        return ""

    def adopt_group(self, group: str) -> None:
        """Nothing to clear up but processes, which are the reaper's."""

    def open(self, limits: Limits) -> RlimitSandbox:
        requested = limits.requested()
        key = tuple(requested.items())
        if key not in self._plans:
            self._plans[key] = self._plan(requested)
        return RlimitSandbox(requested, self._plans[key], fork=self._fork, orphans=self._orphans)

    def _plan(self, requested: Mapping[str, float]) -> _Plan:
        data_limit, memory = 0, requested.get("memory")
        if memory is not None:
            data_limit = int(memory) + self._room
            _, ceiling = resource.getrlimit(resource.RLIMIT_DATA)
            if ceiling != resource.RLIM_INFINITY:
                data_limit = min(data_limit, ceiling)
        return _Plan(self._enforce(requested), data_limit, os.geteuid() == 0)

    def _enforce(self, requested: Mapping[str, float]) -> Enforcement:
        names = [*requested, "swap"] if "memory" in requested else [*requested]
        held = {name: _HELD_BY[name] for name in names if name in _HELD_BY}
        degraded = {name: _DEGRADED[name].format(stop=format_size(self._room)) for name in names if name in _DEGRADED}
        if "pids" in requested and os.geteuid() == 0:
            held["pids"] = "sampling"
            degraded["pids"] = _PIDS_AS_ROOT
        if self._has_total:
            held["total_memory"], degraded["total_memory"] = "admission", _TOTAL_MEMORY
        for name, said in said_of_ceilings(requested).items():
            held[name] += said
        return Enforcement(self.name, held, degraded)

    def destroy(self) -> None:
        """There are no cgroups; the processes are the reaper's, as the nearest subreaper."""


class RlimitSandbox(SandboxWithOrphans):
    """One attempt: its main process, and what comes from it."""

    cgroup = None

    def __init__(
        self,
        requested: Mapping[str, float],
        plan: _Plan,
        *,
        fork: ForkMemory,
        orphans: Orphans,
    ) -> None:
        self._fork = fork
        self._orphans = orphans
        self.enforcement, self._data_limit, self._is_root = plan
        self._requested = requested
        self._memory = requested.get("memory")
        self.memory_refusable = self._memory is not None
        self.data_limit_at_exec = self._data_limit
        self.first_check = _FASTEST if {"memory", "cpu_seconds", "pids"} & requested.keys() else None
        self._sampler: Sampler  # from the start on
        self._before = _NOTHING_SEEN
        self._rest = _FASTEST

    def started(self, pid: int, *, keeps_memory: bool) -> None:
        self._pid, self._keeps_memory = pid, keeps_memory
        self._mark = self._orphans.enrol(pid, marks.pack(self._requested))
        self._sampler = Sampler(self._fork, pid, keeps_memory=keeps_memory)
        self._fork.measure(pid, keeps_memory=keeps_memory)
        if self._memory is not None and keeps_memory:
            self._fork.measure_share(pid)
            # The hard limit leaves room in which a MemoryError can be reported.
            self._data_limit += self._fork.data or 0
            lower(pid, resource.RLIMIT_DATA, self._data_limit, _REPORT_RESERVE)
        if (pids := self._requested.get("pids")) and not self._is_root:
            lower(pid, resource.RLIMIT_NPROC, procfs.tasks_of_user(os.getuid()) + int(pids))

    # --- looking -----------------------------------------------------------------------------------------

    def check(self) -> Check:
        most_tasks = self._requested.get("pids", _MOST_TASKS)
        with priority.urgent() if "pids" in self._requested else contextlib.nullcontext():
            roots = self._orphans.roots(self._pid, self._mark)
            look = self._sampler.look(roots, sum(self._orphans.cpu(self._mark)), self._memory, most_tasks)
        reason = self._passed(look)
        return Check(reason) if reason else Check(after=self._next_look(look))

    def _passed(self, look: Look) -> Reason | None:
        """The limit that the guest is past."""
        requested = self._requested
        if look.tasks > requested.get("pids", look.tasks):
            return Reason.PIDS
        if look.cpu >= requested.get("cpu_seconds", look.cpu + 1):
            return Reason.CPU_TIME
        if self._memory is not None and look.memory > self._memory:
            return Reason.MEMORY
        return None

    def _next_look(self, look: Look) -> float:
        """Seconds: as soon as a limit can be reached, but ever more seldom while a guest rests."""
        before, self._before = self._before, look
        grows = look.memory > before.memory * 1.02 or look.tasks > before.tasks
        self._rest = _FASTEST if grows else min(self._rest * 2, _SLOWEST)
        after = self._rest
        if self._memory is not None:
            after = max(min((self._memory - look.memory) / _GROWTH, _SLOWEST), after)
        if "pids" in self._requested and self._is_root:
            after = min(after, _SLOWEST_FORKS)
        if "cpu_seconds" in self._requested:
            left = (self._requested["cpu_seconds"] - look.cpu) / (os.cpu_count() or 1)
            # What several processes use is counted up to the last look at each.
            is_busy = look.tasks > 1 and look.cpu > before.cpu
            after = min(after, max(min(left, _BUSY if is_busy else left), 0.01))
        return after

    # --- ending ------------------------------------------------------------------------------------------

    def pause(self) -> None:
        for root in self._orphans.roots(self._pid, self._mark):
            procfs.stop_tree(root)

    def resume(self) -> None:
        for root in self._orphans.roots(self._pid, self._mark):
            procfs.continue_tree(root)

    def kill(self) -> None:
        with priority.urgent():
            self._kill()

    def _kill(self) -> None:
        for root in self._orphans.roots(self._pid, self._mark):
            if root == self._pid:  # not reaped, so that its number is no other's
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(root, signal.SIGKILL)  # one call, which no fork escapes
            try:
                procfs.kill_tree(root)
            except PermissionError:
                self._admit_not_killable()
            except OSError as error:
                if not is_not_now(error):
                    raise
            finally:  # its children come to us then, to be killed with the next call
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(root, signal.SIGKILL)

    def _admit_not_killable(self) -> None:
        held_by_killing = {"wall_seconds", "cpu_seconds", "memory", "pids", "output"} & self._requested.keys()
        degraded = {**self.enforcement.degraded, **dict.fromkeys(held_by_killing, _NOT_KILLABLE)}
        self.enforcement = dataclasses.replace(self.enforcement, degraded=degraded)

    def usage(self, wall_seconds: float, rusage: resource.struct_rusage) -> tuple[Usage, Counters]:
        user, system = self._orphans.cpu(self._mark)
        peak, source = self._memory_peak(rusage)
        usage = Usage(
            wall_seconds=wall_seconds,
            cpu_user_seconds=rusage.ru_utime + user,
            cpu_system_seconds=rusage.ru_stime + system,
            memory_peak_bytes=peak,
            io_read_bytes=rusage.ru_inblock * 512,
            io_write_bytes=rusage.ru_oublock * 512,
            sources={
                "wall_seconds": "CLOCK_MONOTONIC",
                "cpu_user_seconds": "wait4",
                "cpu_system_seconds": "wait4",
                "memory_peak_bytes": source,
                "io_read_bytes": "ru_inblock",
                "io_write_bytes": "ru_oublock",
            },
        )
        return usage, Counters(refusal=self._refusal())

    def _memory_peak(self, rusage: resource.struct_rusage) -> tuple[int | None, str]:
        own = self._fork.largest_process(rusage, keeps_memory=self._keeps_memory) or 0
        if self._sampler.peak >= own and self._sampler.peak > 0:
            return int(self._sampler.peak), "sampled sum of the tree"
        if own > 0:
            return own, "ru_maxrss of the largest process"
        return None, "not measured: ru_maxrss of a program is at least that of the process that it was forked of"

    def _refusal(self) -> str:
        """What is known of allocations that failed."""
        reserved = self._sampler.data_peak
        if not self._data_limit or reserved < _REFUSED * self._data_limit:
            return ""
        return (
            f"a process had reserved {format_size(reserved)} of the {format_size(self._data_limit)} that RLIMIT_DATA "
            "allows, so it may have been refused more, which counts as reserved, used or not"
        )

    def close(self) -> None:
        self._orphans.dismiss(self._pid, self._mark)
        if self._waiting >= 0:
            os.close(self._waiting)
