"""How much memory this host has and how much of it is used, for people who size their runs by it."""

from __future__ import annotations

import contextlib
import os

from gwsandbox.linux import procfs
from gwsandbox.model.limits import GIB

_V1_NO_LIMIT = 2**62  # version 1 says "no limit" by a number close to the largest


def bytes_to_gigibytes(n: float) -> float:
    """``n`` bytes in GiB (1024**3 bytes)."""
    return n / GIB


def get_available_memory_bytes() -> int:
    """Bytes that this process may really use.

    The least of what the host has available and what is left under ``memory.max`` (cgroup v2) or
    ``memory.limit_in_bytes`` (version 1) of this process's cgroup and each of its ancestors. Cached files count
    as left, as they do for the host: the kernel drops them before it refuses memory.
    """
    return max(min([procfs.available_memory(), *_left_under_cgroups()]), 0)


def get_available_memory_gib() -> float:
    """``get_available_memory_bytes`` in GiB."""
    return bytes_to_gigibytes(get_available_memory_bytes())


def get_total_memory_usage_in_gib(pid: int | None) -> float:
    """GiB of RAM and swap that a process and its descendants use, shared pages counted once (PSS).

    0.0 for ``None`` and for a process that is gone.
    """
    import psutil  # noqa: PLC0415 - the command line needs the rest of this module alone, and no such import

    if pid is None or not psutil.pid_exists(pid):
        return 0.0
    return bytes_to_gigibytes(sum(map(procfs.proportional, procfs.tree(pid))))


def _left_under_cgroups() -> list[int]:
    groups = procfs.cgroups()
    found = []
    if "" in groups:
        found += _left(_mount("/sys/fs/cgroup"), groups[""], "memory.max", "memory.current")
    if "memory" in groups:
        found += _left("/sys/fs/cgroup/memory", groups["memory"], "memory.limit_in_bytes", "memory.usage_in_bytes")
    return found


def _mount(path: str) -> str:
    return path if os.path.exists(f"{path}/cgroup.controllers") else f"{path}/unified"


def _left(mount: str, path: str, limit_file: str, usage_file: str) -> list[int]:
    """What is left under each limit from ``path`` up to the mount."""
    found = []
    while True:
        limit = _number(f"{mount}{path}/{limit_file}")
        if limit is not None and limit < _V1_NO_LIMIT:
            used = _number(f"{mount}{path}/{usage_file}") or 0
            found.append(limit - max(used - _reclaimable(f"{mount}{path}"), 0))
        if path in {"", "/"}:
            return found
        path = os.path.dirname(path)


def _reclaimable(cgroup: str) -> int:
    """Bytes charged to a cgroup and those below it that the kernel can take back at once."""
    try:
        with open(f"{cgroup}/memory.stat", encoding="ascii") as file:
            figures = dict(line.split() for line in file)
    except OSError:
        return 0
    prefix = "total_" if "total_cache" in figures else ""  # version 1 has the group's own and those of its subtree
    names = ("inactive_file", "active_file", "slab_reclaimable")
    return sum(int(figures.get(prefix + name, 0)) for name in names)


def _number(path: str) -> int | None:
    with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
        return int(file.read())  # "max" is no number, and no limit
    return None
