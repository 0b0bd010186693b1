"""What the mark of a guest says from outside: that a process is of a guest, and two of its limits.

The mark is the hard limit of a resource that the kernel counts no more (see ``orphans.py``). Its soft limit, which
binds nobody either, carries the limits on memory and wall-clock time, for whoever looks at guests of any backend.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gwsandbox.model.limits import MIB

_MEMORY_SHIFT = 36
_MOST_MILLISECONDS = (1 << _MEMORY_SHIFT) - 1  # two years
_MOST_MEBIBYTES = (1 << 25) - 1
_NAME = b"Max file locks"  # of RLIMIT_LOCKS in /proc/PID/limits
_MARKS = range(1 << 61, 1 << 62)


class Mark(NamedTuple):
    """The mark of a process of a guest.

    Args:
        number: The same for all processes of an attempt, and for no others of its supervisor.
        memory: Limit in bytes; ``None``: there is none, or it is not known.
        wall_seconds: Likewise, in seconds.
    """

    number: int
    memory: int | None
    wall_seconds: float | None


def pack(requested: Mapping[str, float]) -> int:
    """The soft limit that carries some of the limits that were asked for."""
    mebibytes = min(int(requested.get("memory", 0)) // MIB, _MOST_MEBIBYTES)
    milliseconds = min(int(requested.get("wall_seconds", 0) * 1000), _MOST_MILLISECONDS)
    return mebibytes << _MEMORY_SHIFT | milliseconds


def read(limits: bytes) -> Mark | None:
    """The mark in the text of /proc/PID/limits; ``None`` where the process is of no guest."""
    for line in limits.splitlines():
        if line.startswith(_NAME):
            soft, hard = line[len(_NAME) :].split()[:2]
            if not hard.isdigit() or int(hard) not in _MARKS:
                return None
            said = int(soft) if soft.isdigit() and int(soft) not in _MARKS else 0
            return Mark(int(hard), (said >> _MEMORY_SHIFT) * MIB or None, (said & _MOST_MILLISECONDS) / 1000 or None)
    return None
