"""The cgroup backend: a fresh leaf per attempt, its limits written before there is a process to put in it.

Facts about the files are from Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Mapping

from gwsandbox.backends.base import Check, Counters, largest_process
from gwsandbox.backends.cgroup import files, run_group
from gwsandbox.linux import procfs
from gwsandbox.model.errors import CgroupError
from gwsandbox.model.result import Enforcement, Usage
from gwsandbox.model.verdict import Reason

_CPU_PERIOD = 100_000  # microseconds; the kernel's own default


class ForkMemory:
    """``resident`` bytes that a fresh fork has mapped; measured once, and only where the kernel tells no peak."""

    resident: int | None = None


class Leaf:
    """The cgroup of one attempt."""

    memory_refusable = False
    data_limit_at_exec = 0

    def __init__(
        self, path: str, folder: int, requested: Mapping[str, float], enforcement: Enforcement, fork: ForkMemory
    ) -> None:
        self.path = path
        self.enforcement = enforcement
        self.cgroup = folder
        self._requested = requested
        self._fork = fork
        self._keeps_memory = False
        self._events = -1
        self._cpu_limit = requested.get("cpu_seconds")
        self.first_check = None if self._cpu_limit is None else self._cpu_limit / (os.cpu_count() or 1)

    def write_limits(self) -> None:
        requested = self._requested
        if memory := requested.get("memory"):
            # First oom.group and swap, so that there is no instant in which only half of it holds.
            self._write("memory.oom.group", "1")
            swap = int(requested.get("swap", 0))
            # Without swap accounting (swapaccount=0) there is no such file.
            if not self._write("memory.swap.max", str(swap)) and _swap_is_on():
                raise CgroupError(
                    "limit swap: this kernel has swap but does not account it",
                    path=f"{self.path}/memory.swap.max",
                    remedy="boot with swapaccount=1, or swapoff -a",
                )
            self._write("memory.max", str(int(memory)))
        if pids := requested.get("pids"):
            self._write("pids.max", str(int(pids)))
        if (cpus := requested.get("cpus")) and "cpus" not in self.enforcement.degraded:
            self._write("cpu.max", f"{int(cpus * _CPU_PERIOD)} {_CPU_PERIOD}")

    def _write(self, name: str, value: str) -> bool:
        return files.write(name, value, self.cgroup, "write limit", self.path)

    def started(self, pid: int, *, keeps_memory: bool) -> None:
        self._keeps_memory = keeps_memory
        if self._fork.resident is None:
            self._fork.resident = 0 if self._read("memory.peak") else procfs.resident(pid)

    def check(self) -> Check:
        """CPU time has no event: look when it can be used up at the earliest, all CPUs burning."""
        if self._cpu_limit is None:
            return Check()
        left = self._cpu_limit - files.parse_flat(files.read("cpu.stat", self.cgroup)).get("usage_usec", 0) / 1e6
        if left <= 0:
            return Check(Reason.CPU_TIME)
        return Check(after=max(left / (os.cpu_count() or 1), 0.01))

    def pause(self) -> None:
        self._write("cgroup.freeze", "1")

    def resume(self) -> None:
        self._write("cgroup.freeze", "0")

    def kill(self) -> None:
        run_group.kill(self.cgroup, self.path)

    def remaining(self) -> int | None:
        if self._events < 0:
            self._events = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.cgroup)
        # Read through the descriptor that is waited on: a change after this read wakes the waiter.
        return self._events if b"populated 1" in os.pread(self._events, 4096, 0) else None

    def usage(self, wall_seconds: float, rusage: resource.struct_rusage) -> tuple[Usage, Counters]:
        figures: dict[str, int | float] = {"wall_seconds": wall_seconds}
        sources = {"wall_seconds": "CLOCK_MONOTONIC"}

        def note(field: str, value: float | None, source: str) -> None:
            if value is not None:
                figures[field], sources[field] = value, source

        cpu = files.parse_flat(files.read("cpu.stat", self.cgroup))
        note("cpu_user_seconds", cpu["user_usec"] / 1e6, "cpu.stat")
        note("cpu_system_seconds", cpu["system_usec"] / 1e6, "cpu.stat")
        note("memory_peak_bytes", *self._memory_peak(rusage))
        note("swap_peak_bytes", *self._swap_peak())
        hits = files.parse_flat(self._read("pids.events")).get("max")
        note("pids_peak", *self._pids_peak(hits))
        note("pids_limit_hits", hits, "pids.events")
        events = files.parse_flat(self._read("memory.events"))
        note("oom_kills", events.get("oom_kill"), "memory.events")
        if bytes_moved := files.parse_io(self._read("io.stat")):
            note("io_read_bytes", bytes_moved[0], "io.stat")
            note("io_write_bytes", bytes_moved[1], "io.stat")
        note("memory_pressure_seconds", files.parse_pressure(self._read("memory.pressure")), "memory.pressure")
        return Usage(**figures, sources=sources), self._counters(events)  # type: ignore[arg-type]

    def _read(self, name: str) -> str | None:
        return files.read(name, self.cgroup)

    def _memory_peak(self, rusage: resource.struct_rusage) -> tuple[int | None, str]:
        if (text := self._read("memory.peak")) is not None:
            return files.parse_number(text), "memory.peak"
        if files.parse_flat(self._read("memory.events.local")).get("max"):
            return int(self._requested["memory"]), "memory.max was reached (no memory.peak before Linux 5.19)"
        largest = largest_process(rusage, self._fork.resident or 0, keeps_memory=self._keeps_memory)
        return largest, "ru_maxrss of the largest process (no memory.peak before Linux 5.19)"

    def _pids_peak(self, hits: int | None) -> tuple[int | None, str]:
        if (text := self._read("pids.peak")) is None and hits:
            return int(self._requested["pids"]), "pids.max was reached (no pids.peak before Linux 6.1)"
        return files.parse_number(text), "pids.peak"

    def _swap_peak(self) -> tuple[int | None, str]:
        if "memory" in self._requested and not self._requested.get("swap"):
            return 0, "memory.swap.max=0"
        return files.parse_number(self._read("memory.swap.peak")), "memory.swap.peak"

    def _counters(self, events: dict[str, int]) -> Counters:
        if not any(events.get(name) for name in ("oom", "oom_kill")):
            return Counters()
        local = self._read("memory.events.local")
        # Before Linux 5.2 there is no local file; the hierarchical one is right unless the task nests groups.
        own = events if local is None else files.parse_flat(local)
        return Counters(own.get("oom", 0), events.get("oom_kill", 0), own.get("oom_kill", 0))

    def close(self) -> None:
        if self._events >= 0:
            os.close(self._events)
        os.close(self.cgroup)
        try:
            os.rmdir(self.path)
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
                raise CgroupError("remove leaf", path=self.path, errno=error.errno or 0) from error
            run_group.destroy(self.path)


def _swap_is_on() -> bool:
    with contextlib.suppress(FileNotFoundError), open("/proc/swaps", encoding="utf-8") as file:
        return len(file.readlines()) > 1
    return False
