"""Figures of other processes, from /proc and the kernel's clocks."""

import contextlib
import os
import time
from collections.abc import Iterator

_PAGE = os.sysconf("SC_PAGE_SIZE")


def _read(path: str) -> bytes:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(path, "rb") as file:
        return file.read()
    return b""


def children(pid: int) -> list[int]:
    """The children of all threads of a process."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        tasks = os.listdir(f"/proc/{pid}/task")
        return [int(child) for task in tasks for child in _read(f"/proc/{pid}/task/{task}/children").split()]
    return []


def tree(pid: int) -> Iterator[int]:
    """The process and all its descendants."""
    yield pid
    for child in children(pid):
        yield from tree(child)


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process in seconds, to the nanosecond; 0.0 where it is gone.

    /proc/PID/stat counts in hundredths of a second. The clock's number is that of clock_getcpuclockid(3).
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


def resident(pid: int) -> int:
    """Resident memory in bytes; 0 where the process is gone."""
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * _PAGE if fields else 0


def descriptors(pid: int) -> int:
    """How many descriptors are open; 0 where the process is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def with_argument(argument: str) -> list[int]:
    """Living processes that have this argument, in any namespace."""
    wanted = argument.encode()
    return [
        int(name)
        for name in os.listdir("/proc")
        if name.isdigit() and wanted in _read(f"/proc/{name}/cmdline").split(b"\0")
    ]


def is_emulated() -> bool:
    """Whether the processor is emulated in software: then touching memory costs a hundred times as much."""
    return b"QEMU TCG" in _read("/proc/cpuinfo")
