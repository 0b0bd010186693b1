"""What guests leave to the supervisor: orphans, which it inherits as a subreaper, and siblings that they cloned.

Each guest is marked. The mark is a resource limit that the kernel keeps for every process and applies to none, so
all that descends from a guest has it, through every fork, program and session, wherever it hangs in the tree of
processes. An ordinary user can lower such a limit and not raise it: a process may pretend to be of a later attempt,
and then ends with that one.

In a PID namespace of a run's own, orphans come to its first process, which reaps them; they are found there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
from collections.abc import Callable, Iterator

from gwsandbox.linux import procfs, syscalls

_RLIMIT_LOCKS = 10  # include/uapi/asm-generic/resource.h; without effect since Linux 2.4
_FIRST = 2**62  # below RLIM_INFINITY, which is what nobody has marked
_NONE = -1
_SIGNALFD_INFO = 128  # bytes: struct signalfd_siginfo (signalfd(2)); the same signal is pending once at most
_CHUNK = 1 << 16
_SHORT = 2048  # bytes: the kernel gives some 4096 at a time, so that what is shorter is all


class Orphans:
    """The children of the supervisor that nobody else there waits for, by the attempt that they come from."""

    def __init__(self) -> None:
        _, ceiling = resource.getrlimit(_RLIMIT_LOCKS)
        self._first = _FIRST if ceiling == resource.RLIM_INFINITY else ceiling
        self._started = 0
        self._zygote = 0
        self._inits: set[int] = set()
        self._elsewhere: dict[int, int] = {}
        self._mains: set[int] = set()
        self._cpu: dict[int, list[float]] = {}
        self._marks: dict[int, int] = {}
        self._has_births: Callable[[], bool] = lambda: False
        self._children = -1
        self._deaths = -1

    # --- in the supervisor, once -------------------------------------------------------------------------

    def watch(self) -> int:
        """Become ready; a descriptor that can be read when a child has died; then call ``reap``."""
        pid = os.getpid()
        self._children = os.open(f"/proc/{pid}/task/{pid}/children", os.O_RDONLY | os.O_CLOEXEC)
        self._deaths = syscalls.signalfd([signal.SIGCHLD])
        return self._deaths

    def descriptors(self) -> list[int]:
        return [fd for fd in (self._children, self._deaths) if fd >= 0]

    def adopt(self, zygote: int, init: int, has_births: Callable[[], bool]) -> None:
        """There is a new zygote, a child that is to live, whose guests are unknown until it has answered.

        Args:
            zygote: Its pid.
            init: That of the first process of its PID namespace, or 0.
            has_births: Whether there may be such guests.
        """
        self._zygote = zygote
        self._inits |= {init} - {0}
        self._has_births = has_births

    # --- one attempt -------------------------------------------------------------------------------------

    def enrol(self, pid: int, said: int) -> int:
        """Mark a guest that waits for its time; its mark.

        ``said`` is what the mark says of it from outside; see ``marks.pack``.
        Root without CAP_SYS_RESOURCE may not mark what has become another user. What such a guest leaves may only
        die, as soon as it is seen.
        """
        self._mains.add(pid)
        self._started += 1
        mark = self._first - self._started % (self._first + 1)
        try:
            resource.prlimit(pid, _RLIMIT_LOCKS, (min(said, mark), mark))
        except PermissionError:
            mark = -1 - self._started
        self._cpu[mark] = [0.0, 0.0]
        return mark

    def dismiss(self, pid: int, mark: int) -> None:
        """An attempt is over: what still comes of it may only die."""
        self._mains.discard(pid)
        self._cpu.pop(mark, None)

    def of(self, mark: int) -> list[int]:
        """What an attempt has left to us and has not died."""
        self.reap()
        return [pid for pid, its in (self._marks | self._elsewhere).items() if its == mark]

    def roots(self, pid: int, mark: int) -> list[int]:
        """Of whom all processes of an attempt descend: its first one, unless it is reaped, and ``of(mark)``."""
        first = [pid] if str(pid).encode() in self._list() else []
        return first + self.of(mark)

    def cpu(self, mark: int) -> tuple[float, float]:
        """Seconds of user and system CPU time of what an attempt left to us and was reaped."""
        user, system = self._cpu[mark]
        return user, system

    # --- all of them -------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Reap what has died; kill what belongs to no attempt that runs."""
        if self._deaths >= 0:
            try:  # noqa: SIM105 - suppress is Python code, and this is done once per task
                os.read(self._deaths, _SIGNALFD_INFO)  # taken now, it does not wake us once more
            except BlockingIOError:
                pass
        for pid in self._unknown():
            mark = self._mark(pid)  # to be read before it is reaped
            if mark not in self._cpu and self._has_births():
                continue  # it may be a guest that was just born
            reaped, _, rusage = os.wait4(pid, os.WNOHANG)
            if reaped:
                self._marks.pop(pid, None)
                self._count(mark, rusage)
            elif mark in self._cpu:
                self._marks[pid] = mark
            else:
                _kill(pid)
        self._elsewhere = dict(self._orphans_of_namespaces())

    def _orphans_of_namespaces(self) -> Iterator[tuple[int, int]]:
        """Those that an attempt has left to the first process of a PID namespace, with its mark."""
        for pid in itertools.chain.from_iterable(map(procfs.children, self._inits)):
            if procfs.is_zombie(pid):
                continue
            mark = self._mark(pid)
            if mark in self._cpu:
                yield pid, mark
            else:
                _kill(pid)

    def _count(self, mark: int, rusage: resource.struct_rusage) -> None:
        if mark in self._cpu:
            self._cpu[mark][0] += rusage.ru_utime
            self._cpu[mark][1] += rusage.ru_stime

    def _unknown(self) -> list[int]:
        known = self._mains
        return [
            pid for pid in map(int, self._list()) if pid not in known and pid != self._zygote and pid not in self._inits
        ]

    def _list(self) -> list[bytes]:
        if self._children < 0:  # not in a supervisor
            return []
        text = os.pread(self._children, _CHUNK, 0)
        if len(text) > _SHORT:
            while more := os.pread(self._children, _CHUNK, len(text)):
                text += more
        return text.split()

    def _mark(self, pid: int) -> int:
        if (mark := self._marks.get(pid)) is not None:
            return mark
        try:
            return resource.prlimit(pid, _RLIMIT_LOCKS)[1]
        except PermissionError:  # it became another user
            return procfs.limit(pid, "Max file locks")
        except ProcessLookupError:
            return _NONE


def _kill(pid: int) -> None:
    with contextlib.suppress(OSError):  # it is seen again
        procfs.kill_tree(pid)
