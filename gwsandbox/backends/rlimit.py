"""The rlimit backend, for every host without a delegated cgroup v2: limits per process, and a look at the tree.

What it can hold, it holds by setrlimit(2); what needs the sum over a tree (memory, CPU time) by looking at
/proc: cheaply and often while a guest grows, seldom while it rests. Descendants are found by making each
guest's main process a subreaper, and the supervisor one above it: whatever daemonises away from a living guest
stays below it, and whatever a dead guest leaves comes to the supervisor, where it is killed.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Mapping

from gwsandbox.backends.base import Check, Counters, largest_process, lower
from gwsandbox.linux import procfs
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Enforcement, Usage
from gwsandbox.model.verdict import Reason

_HELD_BY = {
    "memory": "RLIMIT_DATA + sampling",
    "swap": "sampling",
    "cpu_seconds": "RLIMIT_CPU + sampling",
    "wall_seconds": "deadline + SIGKILL",
    "open_files": "RLIMIT_NOFILE",
    "file_size": "RLIMIT_FSIZE",
    "output": "supervisor",
    "pids": "RLIMIT_NPROC",
}
_DEGRADED = {
    "memory": "each process is held by RLIMIT_DATA, the sum over the tree and shared memory are only sampled",
    "swap": "counted with memory when that is sampled, not limited by itself",
    "cpus": "a share of CPUs needs the cpu controller of cgroup v2",
    "pids": "RLIMIT_NPROC counts all processes of the user, not those of this task",
}
_PIDS_AS_ROOT = "RLIMIT_NPROC does not bind root; the number of processes needs the pids controller of cgroup v2"

_REPORT_RESERVE = 16 * 1024**2
_FASTEST = 0.005  # seconds between two looks at a guest that grows towards its limit
_SLOWEST = 0.5  # and at one that rests
_GROWTH = 2 * 1024**3  # bytes per second that two cores can touch; decides how soon a limit can be reached


class ProcessTable:
    """What all sandboxes of one supervisor share.

    ``main`` are the guests' main processes. A fresh fork has mapped ``resident`` bytes, of which ``inherited``
    are its share, and ``data`` that count against RLIMIT_DATA: measured on the first guest, as that costs
    milliseconds and is the same for all.
    """

    def __init__(self) -> None:
        self.main: set[int] = set()
        self.resident: int | None = None
        self.data: int | None = None
        self.inherited: int | None = None
        self.has_births: Callable[[], bool] = lambda: False
        self._children = -1

    def descriptors(self) -> list[int]:
        return [self._children] if self._children >= 0 else []

    def orphans(self) -> list[int]:
        """Children of ours that no attempt started: what dead guests left. They may only die."""
        if self.has_births():  # one of them may be a guest that was just born and is not known yet
            return []
        return self.unknown()

    def unknown(self) -> list[int]:
        """Children of ours that are neither a guest that was ``born`` nor the zygote."""
        if self._children < 0:
            pid = os.getpid()
            self._children = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        return [pid for pid in map(int, self._list()) if pid not in self.main]

    def _list(self) -> list[bytes]:
        chunks, position = [], 0
        while chunk := os.pread(self._children, 65536, position):
            chunks.append(chunk)
            position += len(chunk)
        return b"".join(chunks).split()

    def born(self, pid: int, *, measure_share: bool) -> None:
        self.main.add(pid)
        if self.resident is None or self.data is None:
            self.resident, self.data = procfs.resident(pid), procfs.data(pid)
        if self.inherited is None and measure_share:
            self.inherited = procfs.proportional(pid)


class RlimitBackend:
    """Limits held by setrlimit(2) and by looking."""

    name = "rlimit"
    needs_subreaper = True
    may_refuse = False

    def __init__(self) -> None:
        self._table = ProcessTable()
        self._enforcements: dict[tuple[str, ...], Enforcement] = {}

    def prepare(self) -> str:
        """Nothing to get ready."""
        return ""

    def adopt_group(self, group: str) -> None:
        """Nothing to clear up but processes, which are the reaper's."""

    def adopt(self, zygote: int, has_births: Callable[[], bool]) -> None:
        self._table.main.add(zygote)
        self._table.has_births = has_births

    def awaits_births(self) -> bool:
        return self._table.has_births() and bool(self._table.unknown())

    def descriptors(self) -> list[int]:
        return self._table.descriptors()

    def open(self, limits: Limits) -> RlimitSandbox:
        requested = limits.requested()
        key = tuple(requested)
        if key not in self._enforcements:
            self._enforcements[key] = self._enforce(key)
        return RlimitSandbox(requested, self._enforcements[key], self._table)

    def _enforce(self, requested: tuple[str, ...]) -> Enforcement:
        names = [*requested, "swap"] if "memory" in requested else [*requested]
        held = {name: _HELD_BY[name] for name in names if name in _HELD_BY}
        degraded = {name: _DEGRADED[name] for name in names if name in _DEGRADED}
        if "pids" in requested and os.geteuid() == 0:
            del held["pids"]
            degraded["pids"] = _PIDS_AS_ROOT
        return Enforcement(self.name, held, degraded)

    def destroy(self) -> None:
        """There are no cgroups; the processes are the reaper's, as the nearest subreaper."""


class RlimitSandbox:
    """One attempt: its main process, and what comes from it."""

    cgroup = None

    def __init__(self, requested: Mapping[str, float], enforcement: Enforcement, family: ProcessTable) -> None:
        self.enforcement = enforcement
        self._requested = requested
        self.memory_refusable = "memory" in self._requested
        self.data_limit_at_exec = int(self._requested.get("memory", 0))
        self.first_check = _FASTEST if {"memory", "cpu_seconds"} & self._requested.keys() else None
        self._table = family
        self._pid = 0
        self._waiting = -1
        self._inherited = 0
        self._keeps_memory = False
        self._peak = 0
        self._looks = 0
        self._rest = _FASTEST
        self._orphans_cpu = [0.0, 0.0]

    def started(self, pid: int, *, keeps_memory: bool) -> None:
        self._pid = pid
        self._keeps_memory = keeps_memory
        self._table.born(pid, measure_share=keeps_memory and "memory" in self._requested)
        if (memory := self._requested.get("memory")) and keeps_memory:
            # The hard limit leaves room in which a MemoryError can be reported.
            lower(pid, resource.RLIMIT_DATA, (self._table.data or 0) + int(memory), _REPORT_RESERVE)
        if (pids := self._requested.get("pids")) and os.geteuid() != 0:
            lower(pid, resource.RLIMIT_NPROC, _processes_of_user() + int(pids))

    def check(self) -> Check:
        pids = list(procfs.tree(self._pid))
        if (limit := self._requested.get("cpu_seconds")) is not None:
            used = sum(map(procfs.cpu_seconds, pids))
            if used >= limit:
                return Check(Reason.CPU_TIME)
        after = None
        if (memory := self._requested.get("memory")) is not None:
            used_memory = self._memory(pids, memory)
            if used_memory > memory:
                return Check(Reason.MEMORY)
            after = self._next_look(used_memory, memory)
        if limit is not None:
            soon = max((limit - used) / (os.cpu_count() or 1), 0.01)
            after = soon if after is None else min(after, soon)
        return Check(after=after)

    def _memory(self, pids: list[int], limit: float) -> float:
        """Bytes that the tree uses; the dear way only where the cheap way's upper bound passes the limit."""
        # What the main process shares with us from the fork is not its own.
        used = sum(map(procfs.resident, pids)) - (self._table.resident or 0) * self._keeps_memory
        if used > limit or len(pids) > 1:
            used = sum(map(procfs.proportional, pids)) - (self._table.inherited or 0) * self._keeps_memory
        self._peak = max(self._peak, used)
        return used

    def _next_look(self, used: float, limit: float) -> float:
        """As soon as the limit can be reached; but ever more seldom while a guest rests."""
        grows = used > self._looks * 1.02
        self._looks = int(used)
        self._rest = _FASTEST if grows else min(self._rest * 2, _SLOWEST)
        return max(min((limit - used) / _GROWTH, _SLOWEST), self._rest)

    def pause(self) -> None:
        procfs.stop_tree(self._pid)

    def resume(self) -> None:
        procfs.continue_tree(self._pid)

    def kill(self) -> None:
        if not procfs.is_zombie(self._pid):
            procfs.kill_tree(self._pid)
        for pid in self._table.orphans():
            procfs.kill_tree(pid)

    def remaining(self) -> int | None:
        if self._waiting >= 0:
            os.close(self._waiting)
            self._waiting = -1
        for pid in self._table.orphans():
            reaped, _, rusage = os.wait4(pid, os.WNOHANG)
            if reaped:
                self._orphans_cpu[0] += rusage.ru_utime
                self._orphans_cpu[1] += rusage.ru_stime
            else:
                procfs.kill_tree(pid)
                self._waiting = os.pidfd_open(pid)
                return self._waiting
        return None

    def usage(self, wall_seconds: float, rusage: resource.struct_rusage) -> tuple[Usage, Counters]:
        peak, source = self._memory_peak(rusage)
        usage = Usage(
            wall_seconds=wall_seconds,
            cpu_user_seconds=rusage.ru_utime + self._orphans_cpu[0],
            cpu_system_seconds=rusage.ru_stime + self._orphans_cpu[1],
            memory_peak_bytes=peak,
            io_read_bytes=rusage.ru_inblock * 512,
            io_write_bytes=rusage.ru_oublock * 512,
            sources={
                "wall_seconds": "CLOCK_MONOTONIC",
                "cpu_user_seconds": "wait4",
                "cpu_system_seconds": "wait4",
                **({} if peak is None else {"memory_peak_bytes": source}),
                "io_read_bytes": "ru_inblock",
                "io_write_bytes": "ru_oublock",
            },
        )
        return usage, Counters()

    def _memory_peak(self, rusage: resource.struct_rusage) -> tuple[int | None, str]:
        own = largest_process(rusage, self._table.resident or 0, keeps_memory=self._keeps_memory) or 0
        if self._peak >= own > 0 or own <= 0 < self._peak:
            return int(self._peak), "sampled PSS of the tree"
        return (own, "ru_maxrss of the largest process") if own > 0 else (None, "")

    def close(self) -> None:
        if self._waiting >= 0:
            os.close(self._waiting)
        self._table.main.discard(self._pid)


def _processes_of_user() -> int:
    """Processes and threads of the real user, which is what RLIMIT_NPROC counts."""
    uid = os.getuid()
    count = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                count += len(os.listdir(f"/proc/{name}/task"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return count
