"""Processes and their memory, read from /proc (proc(5)); for hosts without a cgroup of our own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CHUNK = 1 << 15  # files of /proc come in pieces of a page or more: a short one is the last
_TICKS = os.sysconf("SC_CLK_TCK")


def _read(path: str) -> bytes | None:
    """The bytes of a file of /proc; ``None`` where the process is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)  # half the system calls of open()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    try:
        data = os.read(fd, _CHUNK)
        while chunk := os.read(fd, _CHUNK) if len(data) >= _CHUNK // 2 else b"":
            data += chunk
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    return data


def children(pid: int) -> list[int]:
    """The children of a process, of all its threads, zombies included."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, (_read(f"/proc/{pid}/task/{thread}/children") or b"").split())
    return found


def tree(pid: int) -> Iterator[int]:
    """A process and all its descendants, parents before children."""
    found = [pid]
    for parent in found:  # grows while it is walked; not by recursion, as guests may be deeper than that goes
        yield parent
        found += children(parent)


def resident(pid: int) -> int:
    """Bytes of RAM that a process has mapped, shared pages included; 0 where it is gone. Cheap."""
    fields = (_read(f"/proc/{pid}/statm") or b"").split()
    return int(fields[1]) * _PAGE if len(fields) > 1 else 0


def data(pid: int) -> int:
    """Bytes that count against RLIMIT_DATA, and those of the stack; 0 where the process is gone."""
    fields = (_read(f"/proc/{pid}/statm") or b"").split()
    return int(fields[5]) * _PAGE if len(fields) > 5 else 0


def proportional(pid: int) -> int:
    """Bytes of RAM and swap of a process, each shared page divided by its sharers (PSS + SwapPss).

    Walks the page tables of the process: milliseconds for gigabytes. 0 where it is gone; where the kernel has
    no smaps_rollup (before Linux 4.14) or denies it, what ``resident`` says.
    """
    text = _read(f"/proc/{pid}/smaps_rollup")
    if not text:
        return resident(pid)
    lines = (line.split() for line in text.splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0] in {b"Pss:", b"SwapPss:"})


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of the children that it waited for; 0.0 where it is gone."""
    fields = (_read(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS if len(fields) > 15 else 0.0


def is_zombie(pid: int) -> bool:
    """Whether a process is dead and waits to be reaped, or is gone."""
    state = (_read(f"/proc/{pid}/stat") or b"").rpartition(b")")[2].split()[:1]
    return state in ([], [b"Z"], [b"X"])


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants.

    Each is stopped first, so that none can fork away while the walk goes on; a process that was born behind
    the walk's back is handed to the nearest subreaper when its parent dies, which has to look for it.
    """
    for found in tree(pid):
        _send(found, signal.SIGSTOP)
    for found in reversed(list(tree(pid))):  # the children first: the dead have none to be found by
        _send(found, signal.SIGKILL)


def stop_tree(pid: int) -> None:
    """SIGSTOP a process and all its descendants."""
    stopped: set[int] = set()
    while running := [found for found in tree(pid) if found not in stopped]:  # born behind the walk's back
        for found in running:
            _send(found, signal.SIGSTOP)
        stopped.update(running)


def signal_group(pid: int, number: int) -> None:
    """Send a signal to a process and to those of its descendants that are in its process group, as a terminal does.

    kill(2) of the whole group may reach others: under ``gwsandbox run`` a program is in the caller's group.
    """
    with contextlib.suppress(ProcessLookupError):
        group = os.getpgid(pid)
        for found in list(tree(pid)):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(found) == group:
                    _send(found, number)


def continue_tree(pid: int) -> None:
    """SIGCONT a process and all its descendants."""
    for found in tree(pid):
        _send(found, signal.SIGCONT)


def _send(pid: int, sign: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, sign)


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), field 22 of stat); 0 where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return 0
