"""What is seen of a guest's processes where no cgroup counts for it: tasks, CPU time and memory, look by look.

Every figure is a lower bound of the truth, so that nobody is ended for what he did not use. What no look can see:
processes that live between two looks, files on a tmpfs that have a name, buffers of pipes and sockets.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from gwsandbox.backends.fork_memory import ForkMemory
from gwsandbox.linux import procfs


class Look(NamedTuple):
    """What was seen at one moment.

    Args:
        tasks: Processes and threads, zombies included.
        cpu: Seconds of CPU time that all of them have used so far, those that are gone included.
        memory: Bytes of RAM and swap; 0 where they were not asked for.
    """

    tasks: int
    cpu: float
    memory: float


class Sampler:
    """The looks at one guest.

    ``peak`` is the most memory that was seen, and ``data_peak`` the most bytes of one process that count against
    RLIMIT_DATA.

    Args:
        fork: What every guest has from its fork.
        pid: Of the guest's first process.
        keeps_memory: Whether that goes on as the fork that it was; a program does not.
    """

    def __init__(self, fork: ForkMemory, pid: int, *, keeps_memory: bool) -> None:
        self.peak = 0.0
        self.data_peak = 0
        self._fork = fork
        self._pid = pid
        self._keeps_memory = keeps_memory
        self._cpu_of_the_gone = 0.0
        self._cpu: dict[tuple[int, int], float] = {}

    def look(self, roots: Iterable[int], reaped_cpu: float, memory_limit: float | None, most_tasks: float) -> Look:
        """Look at the trees of processes below ``roots``.

        Args:
            roots: Pids.
            reaped_cpu: Seconds of CPU time of what was reaped by others than the guest's processes.
            memory_limit: Bytes; memory is looked at closely where it may be more. ``None``: it is not looked at.
            most_tasks: With more tasks than that, nothing else is looked at: a fork bomb grows faster than it can be
                walked.

        Raises:
            OSError: A file of /proc cannot be read, though its process is there.
        """
        found: dict[int, procfs.Process] = {}
        tasks = 0
        for pid in itertools.chain.from_iterable(map(procfs.tree, roots)):
            if (process := procfs.look(pid)) is not None:
                found[pid] = process
                tasks += process.threads
                if tasks > most_tasks:
                    return Look(tasks, 0.0, 0.0)
        memory = 0.0
        if memory_limit is not None:
            memory = self._memory(found, memory_limit)
            self.peak = max(self.peak, memory)
            self.data_peak = max([self.data_peak, *map(procfs.data, found)])
        return Look(tasks, self._cpu_seconds(found, reaped_cpu), memory)

    def _cpu_seconds(self, found: dict[int, procfs.Process], reaped: float) -> float:
        """The more of two lower bounds: what the living and the reaped processes used, and what was ever seen.

        A parent that ignores SIGCHLD waits for nobody, and the kernel forgets what its children used.
        """
        seen = {(pid, process.started): process.cpu for pid, process in found.items()}
        self._cpu_of_the_gone += sum(cpu for key, cpu in self._cpu.items() if key not in seen)
        self._cpu = seen
        counted = sum(process.cpu + process.waited_cpu for process in found.values())
        return max(counted + reaped, self._cpu_of_the_gone + sum(seen.values()))

    def _memory(self, found: dict[int, procfs.Process], limit: float) -> float:
        """The cheap way where its upper bound is below the limit, else the dear one."""
        first = found.get(self._pid)
        if first is not None and not self._keeps_memory and not first.executed:
            # What will be a program is still a fork of ours, with all of our memory.
            found = {pid: process for pid, process in found.items() if pid != self._pid}
        in_files = self._fork.files_of(found)
        resident = sum(process.resident for process in found.values()) - (self._fork.resident or 0) * self._keeps_memory
        if len(found) <= 1 and not in_files and resident <= limit:
            return max(resident, 0)
        shares = [procfs.shares(pid) for pid in found]
        mapped = sum(share.shared_memory for share in shares)
        forks = sum(not process.executed for process in found.values())
        ours = (self._fork.share or 0) * forks if self._keeps_memory else 0
        return max(sum(share.total for share in shares) - mapped - ours, 0) + max(mapped, in_files)
