"""The cgroup backend: a fresh leaf per attempt, its limits written before there is a process to put in it.

Facts about the files are from Documentation/admin-guide/cgroup-v2.rst of the kernel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import resource
from collections.abc import Mapping
from typing import NamedTuple

from gwsandbox.backends import marks
from gwsandbox.backends.base import Check, Counters
from gwsandbox.backends.cgroup import files, run_group, subtree
from gwsandbox.backends.descendants import SandboxWithOrphans
from gwsandbox.backends.fork_memory import ForkMemory
from gwsandbox.backends.orphans import Orphans
from gwsandbox.linux import procfs
from gwsandbox.model.errors import CgroupError
from gwsandbox.model.result import Enforcement, Usage
from gwsandbox.model.verdict import Reason

# What systemd-oomd leaves on a cgroup that it kills (src/oom/oomd-util.c), and how the verdict names it.
_OOMD_MARK = "user.oomd_ooms"
_OOMD = "systemd-oomd, as an ancestor cgroup or the host was short of memory; see journalctl -u systemd-oomd"
_CPU_PERIOD = 100_000  # microseconds; the kernel's own default


class Place(NamedTuple):
    """Where a leaf is.

    Args:
        path: Its absolute path.
        name: Its name in the run group.
        folder: Its descriptor.
        above: That of the run group, which outlives it.
    """

    path: str
    name: str
    folder: int
    above: int
    total_memory: int = 0


class Leaf(SandboxWithOrphans):
    """The cgroup of one attempt."""

    memory_refusable = False
    data_limit_at_exec = 0

    def __init__(
        self,
        place: Place,
        requested: Mapping[str, float],
        enforcement: Enforcement,
        *,
        fork: ForkMemory,
        orphans: Orphans,
    ) -> None:
        self.path = place.path
        self.enforcement = enforcement
        self.cgroup = place.folder
        self._place = place
        self._requested = requested
        self._fork = fork
        self._orphans = orphans
        self._events = -1
        self._ooms_of_group = _ooms(place.above) if place.total_memory else 0
        self._cpu_limit = requested.get("cpu_seconds")
        self.first_check = None if self._cpu_limit is None else self._cpu_limit / (os.cpu_count() or 1)

    def write_limits(self) -> None:
        """Before there is a process.

        Raises:
            CgroupError: The kernel refused one, or has no file for it.
        """
        requested = self._requested
        if memory := requested.get("memory"):
            # First oom.group and swap, so that there is no instant in which only half of it holds.
            self._write_optional("memory.oom.group", "1")  # Linux 4.19
            swap = int(requested.get("swap", 0))
            # Without swap accounting (swapaccount=0) there is no such file.
            if not self._write_optional("memory.swap.max", str(swap)) and _swap_is_on():
                self._refuse_swap()
            self._write("memory.max", str(int(memory)))
        if pids := requested.get("pids"):
            self._write("pids.max", str(int(pids)))
        if (cpus := requested.get("cpus")) and "cpus" not in self.enforcement.degraded:
            self._write("cpu.max", f"{int(cpus * _CPU_PERIOD)} {_CPU_PERIOD}")

    def _refuse_swap(self) -> None:
        if files.read("memory.max", self.cgroup) is None:
            return  # writing that says so better
        raise CgroupError(
            "limit swap: this kernel has swap but does not account it",
            path=f"{self.path}/memory.swap.max",
            remedy="boot with swapaccount=1, or swapoff -a",
        )

    def _write_optional(self, name: str, value: str) -> bool:
        return files.write_if_there(name, value, self.cgroup, "write limit", self.path)

    def _write(self, name: str, value: str) -> None:
        try:
            files.write(name, value, self.cgroup, "write limit", self.path)
        except CgroupError as error:
            if error.errno == errno.ENOENT:
                group, controller = os.path.dirname(self.path), name.partition(".")[0]
                error.step = f"write limit: the {controller} controller was taken away from the run group"
                error.remedy = f"give it back: echo +{controller} >{group}/cgroup.subtree_control"
            raise

    def started(self, pid: int, *, keeps_memory: bool) -> None:
        self._pid, self._keeps_memory = pid, keeps_memory
        self._mark = self._orphans.enrol(pid, marks.pack(self._requested))
        if self._fork.resident is None:
            if self._read("memory.peak"):
                self._fork.resident = 0
            else:
                self._fork.measure(pid, keeps_memory=keeps_memory)

    def check(self) -> Check:
        """CPU time has no event: look when it can be used up at the earliest, all CPUs burning."""
        if self._cpu_limit is None:
            return Check()
        left = self._cpu_limit - files.parse_flat(files.read("cpu.stat", self.cgroup)).get("usage_usec", 0) / 1e6
        if left <= 0:
            return Check(Reason.CPU_TIME)
        return Check(after=max(left / (os.cpu_count() or 1), 0.01))

    def pause(self) -> None:
        files.write("cgroup.freeze", "1", self.cgroup, "pause", self.path)

    def resume(self) -> None:
        files.write("cgroup.freeze", "0", self.cgroup, "resume", self.path)

    def kill(self) -> None:
        try:
            run_group.kill(self.cgroup, self.path)
        finally:  # root, and the owner of another cgroup, may have moved processes out of the leaf
            for pid in self._orphans.of(self._mark):
                procfs.kill_tree(pid)

    def remaining(self) -> int | None:
        try:
            if self._events < 0:
                self._events = files.open_file("cgroup.events", os.O_RDONLY, self.cgroup)
            # Read through the descriptor that is waited on: a change after this read wakes the waiter.
            if b"populated 1" in os.pread(self._events, 4096, 0):
                return self._events
        except OSError as error:
            if error.errno not in files.GONE:  # in which case somebody has removed it
                raise
        return super().remaining()

    def usage(self, wall_seconds: float, rusage: resource.struct_rusage) -> tuple[Usage, Counters]:
        figures: dict[str, int | float] = {"wall_seconds": wall_seconds}
        sources = {"wall_seconds": "CLOCK_MONOTONIC"}

        def note(field: str, value: float | None, source: str) -> None:
            if value is not None:
                figures[field], sources[field] = value, source

        if cpu := files.parse_flat(self._read("cpu.stat")):
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
        self._admit_loss({"memory": not events, "pids": hits is None})
        return Usage(**figures, sources=sources), self._counters(events)  # type: ignore[arg-type]

    def _read(self, name: str) -> str | None:
        return files.read(name, self.cgroup)

    def _admit_loss(self, lost: Mapping[str, bool]) -> None:
        """Say which limits were there when the guest started and were not when it ended."""
        degraded = {
            name: f"the {name} controller was taken away above the leaf, or the leaf itself, while the guest ran"
            for name, is_lost in lost.items()
            if is_lost and name in self._requested
        }
        if degraded:
            degraded = {**self.enforcement.degraded, **degraded}
            self.enforcement = dataclasses.replace(self.enforcement, degraded=degraded)

    def _memory_peak(self, rusage: resource.struct_rusage) -> tuple[int | None, str]:
        if (text := self._read("memory.peak")) is not None:
            return files.parse_number(text), "memory.peak"
        is_old = self._read("memory.events") is not None
        why = "no memory.peak before Linux 5.19" if is_old else "the memory controller is not in the leaf"
        if files.parse_flat(self._read("memory.events.local")).get("max"):
            return int(self._requested["memory"]), f"memory.max was reached ({why})"
        largest = self._fork.largest_process(rusage, keeps_memory=self._keeps_memory)
        return largest, f"ru_maxrss of the largest process ({why})"

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
            return Counters(killer=_OOMD if self._was_killed_by_oomd() else "")
        local = self._read("memory.events.local")
        # Before Linux 5.2 there is no local file; the hierarchical one is right unless the task nests groups.
        own = events if local is None else files.parse_flat(local)
        together = self._place.total_memory
        if not (together and _ooms(self._place.above) > self._ooms_of_group):
            together = 0
        return Counters(own.get("oom", 0), events.get("oom_kill", 0), own.get("oom_kill", 0), total_memory=together)

    def _was_killed_by_oomd(self) -> bool:
        with contextlib.suppress(OSError):  # ENODATA: it was not, or systemd is older than 248
            return os.getxattr(self.cgroup, _OOMD_MARK) not in {b"", b"0"}
        return False

    def close(self) -> None:
        self._orphans.dismiss(self._pid, self._mark)
        for fd in (self._events, self._waiting, self.cgroup):
            if fd >= 0:
                os.close(fd)
        subtree.remove(self._place.name, self._place.above, self.path)


def _ooms(group: int) -> int:
    """How often the limit of a group itself was reached in vain."""
    return files.parse_flat(files.read("memory.events.local", group)).get("oom", 0)


def _swap_is_on() -> bool:
    with contextlib.suppress(FileNotFoundError), open("/proc/swaps", encoding="utf-8") as file:
        return len(file.readlines()) > 1
    return False
