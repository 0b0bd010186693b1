"""The guests that run on this host, found by their marks in /proc, whoever started them."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from gwsandbox.backends import marks
from gwsandbox.backends.cgroup.delegation import MOUNT
from gwsandbox.cli.watch.memory import LEAF, memory_now, number_in
from gwsandbox.linux import procfs

_TICKS = os.sysconf("SC_CLK_TCK")
_READ = frozenset({"0", "63"})  # the number of read(2) on x86_64, and on arm64 and riscv64
_MOST_WORDS = 4096  # bytes of a command line


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """One guest at one moment.

    Args:
        pid: Of its first process.
        command: The words of that; of a Python call those of its caller.
        state: "waits" for its time, "stopped", or "runs".
        backend: "cgroup" or "rlimit".
        age_seconds: Since it was forked, which may be before its time began.
        cpu_seconds: Of all its processes that live.
        memory_bytes: That it uses.
        memory_limit_bytes: That it may use.
        wall_limit_seconds: Of its time, as soon as that has begun.
        processes: Their pids.
        supervisor: Pid of the process that holds its limits.
        manager: Pid of the process that asked for it.
        manager_command: The words of that.
    """

    pid: int
    command: tuple[str, ...]
    state: str
    backend: str
    age_seconds: float
    cpu_seconds: float
    memory_bytes: int | None
    memory_limit_bytes: int | None
    wall_limit_seconds: float | None
    processes: tuple[int, ...]
    supervisor: int
    manager: int
    manager_command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Marked:
    """A process of a guest."""

    pid: int
    parent: int
    mark: marks.Mark


def running_guests() -> list[Guest]:
    """All guests that this process can see, those of the same manager together, the oldest first."""
    marked = {found.pid: found for found in _marked()}
    groups: dict[tuple[int, int], list[_Marked]] = defaultdict(list)
    for process in marked.values():
        groups[_supervisor(process, marked), process.mark.number].append(process)
    guests = (_guest(supervisor, processes) for (supervisor, _), processes in groups.items())
    found = [guest for guest in guests if guest is not None]
    return sorted(found, key=lambda guest: (guest.manager, -guest.age_seconds, guest.pid))


def guest_of(pid: int) -> Guest | None:
    """The guest that a process belongs to; ``None``: it is of none."""
    return next((guest for guest in running_guests() if pid in guest.processes), None)


def _marked() -> Iterator[_Marked]:
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/limits", "rb") as file:
                mark = marks.read(file.read())
            if mark is not None and (parent := _parent(int(name))):
                yield _Marked(int(name), parent, mark)
        except OSError:  # it has ended, or is another user's
            continue


def _parent(pid: int) -> int:
    """The parent of a process that lives; 0 where it is gone or dead."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in {b"Z", b"X"} else int(fields[1])


def _supervisor(process: _Marked, marked: Mapping[int, _Marked]) -> int:
    """The nearest ancestor that is not of the same guest: the supervisor, as orphans come to it too."""
    number = process.mark.number
    while process.parent in marked and marked[process.parent].mark.number == number:
        process = marked[process.parent]
    return process.parent


def _guest(supervisor: int, processes: list[_Marked]) -> Guest | None:
    looked = {process.pid: procfs.look(process.pid) for process in processes}
    living = {pid: found for pid, found in looked.items() if found is not None}
    first = min(
        (pid for pid, found in living.items()),
        key=lambda pid: (next(each.parent for each in processes if each.pid == pid) != supervisor, living[pid].started),
        default=0,
    )
    if not first:
        return None
    leaf = LEAF.fullmatch(procfs.own_cgroup(first) or "")
    mark = processes[0].mark
    reaper = _parent(supervisor)
    manager = _parent(reaper) or reaper or supervisor
    return Guest(
        pid=first,
        command=_words(first),
        state=_state(first, living[first].state),
        backend="rlimit" if leaf is None else "cgroup",
        age_seconds=round(max(time.clock_gettime(time.CLOCK_BOOTTIME) - living[first].started / _TICKS, 0.0), 2),
        cpu_seconds=round(sum(found.cpu + found.waited_cpu for found in living.values()), 2),
        memory_bytes=memory_now(first),
        memory_limit_bytes=mark.memory if leaf is None else _limit_of(leaf[0]) or mark.memory,
        wall_limit_seconds=mark.wall_seconds,
        processes=tuple(sorted(living)),
        supervisor=supervisor,
        manager=manager,
        manager_command=_words(manager),
    )


def _limit_of(cgroup: str) -> int | None:
    return number_in(f"{MOUNT}{cgroup}/memory.max")


def _state(pid: int, state: str) -> str:
    if state in "Tt":
        return "stopped"
    return "waits" if _awaits_event(pid) else "runs"


def _awaits_event(pid: int) -> bool:
    """Whether a process is in a read(2) of an eventfd, as a guest is until its time begins."""
    try:
        with open(f"/proc/{pid}/syscall", encoding="ascii") as file:
            number, first = file.read().split()[:2]
        return number in _READ and os.readlink(f"/proc/{pid}/fd/{int(first, 16)}") == "anon_inode:[eventfd]"
    except (OSError, ValueError):  # it runs, or is another user's
        return False


def _words(pid: int) -> tuple[str, ...]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            text = file.read(_MOST_WORDS)
    except OSError:
        return ()
    return tuple(word.decode(errors="surrogateescape") for word in text.rstrip(b"\0").split(b"\0"))
