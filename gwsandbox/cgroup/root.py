"""Finding the delegated root: the top of the cgroup subtree that is ours to manage.

Going up from the own cgroup, the first of these is it:

1. a leaf of ours (a manager inside a guest): what runs there stays inside the outer limits;
2. a cgroup that systemd marked as delegated (``Delegate=yes``), which it does by an extended attribute; only
   a user's manager does not mark, and is asked;
3. the root of the cgroup namespace or hierarchy, where no systemd manages it and it can be written: a
   container's, or a host's without systemd.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

from gwsandbox import scope
from gwsandbox.errors import CgroupError

MOUNT = "/sys/fs/cgroup"
NEEDED = ("memory", "pids")
WANTED = ("memory", "pids", "cpu", "io")

RUN_NAME = re.compile(r"gwsandbox-(\d+)-(\d+)-\d+")
_LEAF_PATH = re.compile(r".*/gwsandbox-\d+-\d+-\d+/task-\d+")
_USER_MANAGER = re.compile(r"user@\d+\.service")
_REMEDY = "start it under: systemd-run{} --scope -p Delegate=yes -- COMMAND, or set Delegate=yes in its unit"


class NotDelegated(CgroupError):
    """There is cgroup v2, but no part of it is ours. systemd may give us one."""


@dataclass(frozen=True, slots=True)
class DelegatedRoot:
    """A cgroup under which leaves may be made.

    Args:
        path: Its absolute path.
        controllers: Those of ``WANTED`` that it can give to its children.
    """

    path: str
    controllers: frozenset[str]


def find_root() -> DelegatedRoot:
    """The delegated root of this process. Changes nothing.

    Raises:
        CgroupError: There is none; says why and what mends it.
    """
    own = _own_cgroup()
    for path in _upward(own):
        if path != own and _USER_MANAGER.fullmatch(os.path.basename(path)):
            unit = scope.delegated_unit()
            if unit is None:
                break
            return usable(MOUNT + unit)
        if _LEAF_PATH.fullmatch(path) or _is_marked(path) or _is_free_top(path):
            return usable(path)
    raise NotDelegated(
        "find delegated root: no cgroup from the process's own upwards is delegated", path=own, remedy=_remedy()
    )


def _remedy() -> str:
    return _REMEDY.format(" --user" if os.geteuid() else "")


def _own_cgroup() -> str:
    if not os.path.exists(f"{MOUNT}/cgroup.controllers"):
        raise CgroupError(
            "find delegated root: cgroup v2 is not mounted (this host has version 1, hybrid or none)",
            path=MOUNT,
            remedy="boot with systemd.unified_cgroup_hierarchy=1, or use backend='rlimit'",
        )
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        entry = next((line for line in file if line.startswith("0::")), "0::/").strip()[3:]
    if entry.startswith("/.."):
        raise CgroupError(
            "find delegated root: the process is outside of its cgroup namespace",
            path=entry,
            remedy="mount the cgroup file system of this namespace",
        )
    return (MOUNT + entry).rstrip("/")


def _upward(path: str) -> list[str]:
    found = [path]
    while path != MOUNT:
        path = os.path.dirname(path)
        found.append(path)
    return found


def _is_marked(path: str) -> bool:
    """Whether systemd delegated this cgroup: user.delegate since version 251, trusted.delegate for root."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            return os.getxattr(path, name) == b"1"
    return False


def _is_free_top(path: str) -> bool:
    """Whether this is the top, and no systemd inside of this namespace manages it."""
    return path == MOUNT and not os.path.isdir("/run/systemd/system")


def usable(path: str) -> DelegatedRoot:
    """The cgroup ``path`` as a delegated root.

    Raises:
        CgroupError: It lacks a controller that is needed. NotDelegated: It cannot be written.
    """
    with open(f"{path}/cgroup.controllers", encoding="utf-8") as file:
        controllers = frozenset(file.read().split()) & set(WANTED)
    missing = [name for name in NEEDED if name not in controllers]
    if missing:
        raise CgroupError(
            f"find delegated root: the {' and '.join(missing)} controller is not delegated to it",
            path=path,
            value=" ".join(sorted(controllers)),
            remedy=f"set Delegate={' '.join(WANTED)} in the unit that holds it",
        )
    if not os.access(path, os.W_OK) or not os.access(f"{path}/cgroup.procs", os.W_OK):
        raise NotDelegated(
            "find delegated root: it cannot be written (mounted read-only, or another user's)",
            path=path,
            remedy=_remedy(),
        )
    return DelegatedRoot(path, controllers)
