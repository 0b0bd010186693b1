"""How much memory a guest uses at this moment, seen from outside."""

from __future__ import annotations

import contextlib
import re

from gwsandbox.backends.cgroup.delegation import MOUNT
from gwsandbox.linux import procfs

LEAF = re.compile(r"(?P<group>/.*/gwsandbox-(?P<owner>\d+)-(?P<start>\d+)-\d+)/(?P<leaf>task-\d+)(/.*)?")
"""The path of a process's cgroup where that is of a guest."""


def memory_now(pid: int) -> int | None:
    """Bytes that a guest uses: what its leaf is charged for, else the sum over its processes; ``None``: not known.

    Args:
        pid: Of its first process.
    """
    try:
        leaf = LEAF.fullmatch(procfs.own_cgroup(pid) or "")
        if leaf is not None:
            with open(f"{MOUNT}{leaf['group']}/{leaf['leaf']}/memory.current", encoding="ascii") as file:
                return int(file.read())
        return sum(map(procfs.proportional, procfs.tree(pid))) or None
    except (OSError, ValueError):
        return None


def number_in(path: str) -> int | None:
    """The number that a file of a cgroup holds; ``None`` where it holds "max", or is not there."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        return int(file.read())
    return None
