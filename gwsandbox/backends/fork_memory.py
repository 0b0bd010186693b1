"""The memory that guests have from their fork alone, and that is so no use of theirs."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterable

from gwsandbox.linux import procfs

_NEW_IN_A_GUEST = 4 * 1024**2  # bytes: more than what a guest maps between its birth and exec, and its zygote has not


class ForkMemory:
    """The memory that every guest of a run has from its fork alone; measured once, as it is the same for all.

    Attributes:
        zygote: Pid of the process that guests are forked of.
        resident: Bytes that a fresh fork has mapped; ``None`` before the first guest, as the others.
        data: Bytes of it that count against RLIMIT_DATA.
        share: Bytes of it that are its own share of what all forks have mapped (PSS).
        program: Bytes up to which ``ru_maxrss`` of a program may be that of the fork which became the program.
    """

    def __init__(self) -> None:
        self.zygote = 0
        self.resident: int | None = None
        self.data: int | None = None
        self.share: int | None = None
        self.program: int | None = None
        self._files: frozenset[tuple[int, int]] | None = None
        self._devices: frozenset[int] = frozenset()

    def measure(self, pid: int, *, keeps_memory: bool) -> None:
        """Look at a guest that was just born, where nothing like it was looked at yet.

        Without a descriptor or memory to do it with, the next guest is looked at.
        """
        with contextlib.suppress(OSError):
            if self.resident is None or self.data is None:
                self.resident, self.data = procfs.resident(pid), procfs.data(pid)
            if self.program is None and not keeps_memory:
                # The guest's own figure still grows, as it comes to touch what the zygote has mapped already.
                self.program = max(self.resident, procfs.resident(self.zygote)) + _NEW_IN_A_GUEST

    def measure_share(self, pid: int) -> None:
        """As ``measure``, and at the price of milliseconds where the caller has gigabytes."""
        with contextlib.suppress(OSError):
            if self.share is None:
                self.share = procfs.proportional(pid)

    def files_of(self, pids: Iterable[int]) -> int:
        """Bytes of the nameless files in memory that processes have open, and did not get from the zygote."""
        if self._files is None:
            self._files = frozenset(procfs.nameless_files(self.zygote))
            self._devices = frozenset(procfs.memory_devices())
        found: dict[tuple[int, int], int] = {}
        for pid in pids:
            found |= procfs.nameless_files(pid)
        return sum(size for key, size in found.items() if key not in self._files and key[0] in self._devices)

    def largest_process(self, rusage: resource.struct_rusage, *, keeps_memory: bool) -> int | None:
        """Bytes of the largest process of a tree, without what it shared with us at the fork.

        ``ru_maxrss`` counts what a fork shares, and survives exec: of a program it says something only where it is
        more than that. ``None`` where it does not.

        Args:
            rusage: From waiting for the tree's first process.
            keeps_memory: Whether it went on as the fork that it was.
        """
        largest = rusage.ru_maxrss * 1024
        if keeps_memory:
            return max(largest - (self.resident or 0), 0) or None
        return largest if largest > (self.program or 0) else None
