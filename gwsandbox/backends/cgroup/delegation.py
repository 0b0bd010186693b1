"""Finding the delegated root: the top of the cgroup subtree that is ours to manage.

Going up from the own cgroup, the first of these is it:

1. a leaf of ours (a manager inside a guest): what runs there stays inside the outer limits;
2. a cgroup that systemd marked as delegated (``Delegate=yes``), which it does by an extended attribute; only
   a user's manager does not mark, and is asked;
3. the root of the cgroup namespace or hierarchy, where no systemd manages it and it can be written: a
   container's, or a host's without systemd. A container that shares the host's namespace sees the host's root,
   which the host's systemd manages.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from typing import NamedTuple, NoReturn

from gwsandbox.backends.cgroup import remedies
from gwsandbox.linux import procfs, systemd_scope
from gwsandbox.model.errors import CgroupError

MOUNT = remedies.MOUNT
NEEDED = ("memory", "pids")
WANTED = ("memory", "pids", "cpu", "io")

# Compiled when they are used: most runs never use them, and all would wait for it.
RUN_NAME = r"gwsandbox-(\d+)-(\d+)-\d+"
_LEAF_PATH = r".*/gwsandbox-\d+-\d+-\d+/task-\d+"
_USER_MANAGER = r"user@\d+\.service"
_SYSTEMD_UNIT = r"\.(slice|service|scope)(/|$)"


class NotDelegated(CgroupError):
    """There is cgroup v2, but no part of it is ours. systemd may give us one."""


class WrongNamespace(CgroupError):
    """There is cgroup v2, but its namespace does not show what is ours."""


class DelegatedRoot(NamedTuple):
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
        CgroupError: There is none; says why and what to do.
    """
    own = _own_cgroup()
    for path in remedies.upward(own):
        if path != own and re.fullmatch(_USER_MANAGER, os.path.basename(path)):
            unit = systemd_scope.delegated_unit()
            if unit is None:
                break
            return usable(MOUNT + unit)
        if re.fullmatch(_LEAF_PATH, path) or is_marked(path):
            return usable(path)
    if not _systemd_runs():
        return usable(_free_top(own))
    raise NotDelegated(
        "find delegated root: no cgroup from the process's own upwards is delegated",
        path=own,
        remedy=remedies.delegation(own),
    )


def _own_cgroup() -> str:
    try:
        groups = procfs.cgroups()
    except FileNotFoundError as error:
        raise CgroupError(
            "find delegated root", path="/proc/self/cgroup", errno=errno.ENOENT, remedy="mount -t proc proc /proc"
        ) from error
    if not os.path.exists(f"{MOUNT}/cgroup.controllers"):
        _refuse_mount(is_unified=groups.keys() == {""})
    entry = groups.get("", "/")
    if entry.startswith("/.."):
        raise WrongNamespace(
            "find delegated root: the process is outside of its cgroup namespace",
            path=entry,
            remedy="enter the container by its runtime (docker exec), or join its cgroup first: see gwsandbox doctor",
        )
    if _is_mount_of_outer_namespace():
        raise WrongNamespace(
            "find delegated root: the mount is of another cgroup namespace than the process",
            path=MOUNT,
            remedy=f"mount this one's, as root: umount -lR {MOUNT} && mount -t cgroup2 none {MOUNT}",
        )
    return (MOUNT + entry).rstrip("/")


def _refuse_mount(*, is_unified: bool) -> NoReturn:
    if is_unified:
        raise CgroupError(
            "find delegated root: cgroup v2 is not to be seen here",
            path=MOUNT,
            remedy=f"mount -t cgroup2 none {MOUNT}; in a unit see InaccessiblePaths=, TemporaryFileSystem= and "
            "RootDirectory=",
        )
    raise CgroupError(
        "find delegated root: cgroup v2 is not mounted (this host has version 1, hybrid or none)",
        path=MOUNT,
        remedy=remedies.unified(),
    )


def _is_mount_of_outer_namespace() -> bool:
    """After ``unshare --cgroup`` alone: paths start at the new namespace's root, the mount still at the old one's."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        roots = [words[3] for words in map(str.split, file) if words[4] == MOUNT]
    return roots[-1:] != [] and roots[-1].startswith("/..")


def is_marked(path: str) -> bool:
    """Whether systemd delegated this cgroup: user.delegate since version 251, trusted.delegate for root."""
    for name in ("user.delegate", "trusted.delegate"):
        with contextlib.suppress(OSError):
            return os.getxattr(path, name) == b"1"
    return False


def _systemd_runs() -> bool:
    return os.path.isdir("/run/systemd/system")


def limits_of_own_unit() -> tuple[str, list[str]] | None:
    """The unit of the manager that this user asks, and its files that limit what all of its processes use together.

    ``None`` where it has no such limits.
    """
    path = remedies.own_unit((MOUNT + (procfs.own_cgroup() or "")).rstrip("/"))
    if os.geteuid() and "/user@" not in path:
        return None
    found = [name for name in ("memory.max", "memory.high", "cpu.max") if path and _is_limited(f"{path}/{name}")]
    return (os.path.basename(path), found) if found else None


def _is_limited(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, encoding="ascii") as file:
        return not file.read().startswith("max")
    return False


def _free_top(own: str) -> str:
    """The top, which no systemd inside of this namespace manages.

    Raises:
        WrongNamespace: One outside of it does, as the own path shows.
    """
    if re.search(_SYSTEMD_UNIT, own):
        raise WrongNamespace(
            "find delegated root: the container shares the cgroup namespace of its host, whose systemd manages it",
            path=own,
            remedy="start the container with --cgroupns=private",
        )
    return MOUNT


def usable(path: str) -> DelegatedRoot:
    """The cgroup ``path`` as a delegated root.

    Raises:
        CgroupError: It lacks a controller that is needed. NotDelegated: It cannot be written.
    """
    try:
        with open(f"{path}/cgroup.controllers", encoding="utf-8") as file:
            controllers = frozenset(file.read().split()) & set(WANTED)
    except OSError as error:
        raise CgroupError(
            "find delegated root: it is not to be seen here", path=path, errno=error.errno or 0
        ) from error
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
            remedy=remedies.delegation(path),
        )
    return DelegatedRoot(path, controllers)
