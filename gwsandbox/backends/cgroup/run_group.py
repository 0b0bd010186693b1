"""The run group: one cgroup per run of a manager, with a leaf per attempt below it.

It carries its owner's pid and start time in its name, and a shared lock (flock) that ends with its last
holder, so that the next start knows what a killed owner left behind and sweeps it. The lock tells also where
the pid does not: across pid namespaces.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import select

from gwsandbox.backends.cgroup import files
from gwsandbox.backends.cgroup.delegation import RUN_NAME, DelegatedRoot
from gwsandbox.linux.procfs import start_time
from gwsandbox.model.errors import CgroupError

_ASIDE = "supervisor"
_numbers = itertools.count()
_REMOVED = frozenset({errno.ENODEV, errno.ENOENT})  # what a file says whose group was removed after it was opened


def open_run_group(root: DelegatedRoot) -> tuple[str, int]:
    """Make a run group under ``root``; its path, and a descriptor that holds its lock.

    Raises:
        CgroupError: The kernel refused.
    """
    folder = _open_folder(root.path)
    try:
        _step_aside(root, folder)
        pid = os.getpid()
        path = f"{root.path}/gwsandbox-{pid}-{start_time(pid)}-{next(_numbers)}"
        try:
            os.mkdir(path, 0o755)
        except OSError as error:
            raise CgroupError("open run group", path=path, errno=error.errno or 0) from error
    finally:
        os.close(folder)
    group = hold(path)
    _enable(root.controllers, group, path)
    return path, group


def hold(path: str) -> int:
    """Open a run group and hold its lock, together with others of its run, until the descriptor is closed."""
    group = _open_folder(path)
    fcntl.flock(group, fcntl.LOCK_SH)
    return group


def _open_folder(path: str) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _step_aside(root: DelegatedRoot, folder: int) -> None:
    """Give the root's controllers to its children, for which it may hold no process itself.

    That is cgroup v2's no-internal-process rule, from which only the hierarchy's own root is free. All that
    is in a delegated group belongs to its unit, so all of it moves, and only if it has to.
    """
    enabled = (files.read("cgroup.subtree_control", folder) or "").split()
    if root.controllers <= set(enabled):
        return
    try:
        _enable(root.controllers, folder, root.path)
    except CgroupError as error:
        if error.errno != errno.EBUSY:
            raise
        _move_processes(folder, root.path)
        _enable(root.controllers, folder, root.path)


def _enable(controllers: frozenset[str], folder: int, path: str) -> None:
    value = " ".join(f"+{name}" for name in sorted(controllers))
    files.write("cgroup.subtree_control", value, folder, "enable controllers", path)


def _move_processes(folder: int, path: str) -> None:
    aside = f"{path}/{_ASIDE}"
    try:
        os.mkdir(aside, 0o755)
    except FileExistsError:
        pass
    except OSError as error:
        raise CgroupError("step aside", path=aside, errno=error.errno or 0) from error
    target = _open_folder(aside)
    try:
        # A process that forks while its parent moves is seen on the next round.
        while pids := (files.read("cgroup.procs", folder) or "").split():
            for pid in pids:
                try:
                    files.write("cgroup.procs", pid, target, "step aside", aside)
                except CgroupError as error:
                    if error.errno != errno.ESRCH:
                        raise
    finally:
        os.close(target)


def is_populated(folder: int) -> bool:
    """Whether any process lives in this cgroup or below it."""
    try:
        text = files.read("cgroup.events", folder)
    except OSError as error:
        if error.errno not in _REMOVED:
            raise
        return False
    return files.parse_flat(text).get("populated", 0) == 1


def kill(folder: int, path: str) -> None:
    """Send SIGKILL to every process in a cgroup and below it.

    Before Linux 5.14 there is no cgroup.kill: the group is frozen first, so that nothing forks away from us,
    and thawed after, as a frozen process of version 2 dies of SIGKILL but its group stays frozen.
    """
    if files.write("cgroup.kill", "1", folder, "kill", path):
        return
    files.write("cgroup.freeze", "1", folder, "kill", path)
    for current, _, _ in os.walk(path):
        for pid in _processes(current, path):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
    files.write("cgroup.freeze", "0", folder, "kill", path)


def _processes(path: str, top: str) -> list[int]:
    """Pids in a cgroup at or below ``top``; of a threaded one they are listed in its domain, which is above it.

    A guest may remove its groups while we look through them.
    """
    try:
        with open(f"{path}/cgroup.procs", encoding="ascii") as procs:
            return [int(pid) for pid in procs.read().split()]
    except OSError as error:
        if error.errno in _REMOVED or (error.errno == errno.EOPNOTSUPP and path != top):
            return []
        raise CgroupError("kill", path=f"{path}/cgroup.procs", errno=error.errno or 0) from error


def remove(path: str) -> None:
    """Remove a cgroup in which nothing lives, and the groups that a guest may have made in it.

    A guest may have taken the permissions from its own groups; rmdir asks for those of the parent.

    When the last process of a scope is gone, systemd removes its groups too, from the innermost on: each step here
    may find done what it is about to do.

    Raises:
        CgroupError: A process still lives in it.
    """
    try:
        try:
            os.rmdir(path)
        except OSError:  # EBUSY, be it for groups below or for processes
            for entry in list(os.scandir(path)):
                if entry.is_dir(follow_symlinks=False):
                    remove(entry.path)
            os.rmdir(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CgroupError("remove cgroup", path=path, errno=error.errno or 0) from error


def destroy(path: str) -> None:
    """Kill everything in a cgroup, wait until nothing lives in it, and remove it with all below."""
    with contextlib.ExitStack() as opened:
        try:
            folder = _open_folder(path)
            opened.callback(os.close, folder)
            events = os.open("cgroup.events", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
            opened.callback(os.close, events)
        except FileNotFoundError:
            return
        poll = select.poll()
        poll.register(events, select.POLLPRI)
        while is_populated(folder):
            try:
                kill(folder, path)
            except CgroupError as error:
                if error.errno not in _REMOVED:
                    raise
                continue
            poll.poll(1000)  # a fork that raced the kill is killed by the next round
        remove(path)


def leftovers(root: str) -> list[str]:
    """Paths of the run groups under ``root`` whose owner is dead and whose lock nobody holds."""
    found: list[str] = []
    try:
        entries = list(os.scandir(root))
    except FileNotFoundError:  # a scope that systemd has just collected
        return found
    for entry in entries:
        match = re.fullmatch(RUN_NAME, entry.name)
        if match is None or start_time(int(match[1])) == int(match[2]):
            continue
        with contextlib.suppress(OSError):
            folder = _open_folder(entry.path)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                found.append(entry.path)
            except BlockingIOError:
                pass
            finally:
                os.close(folder)
    return found


def sweep(root: str) -> list[str]:
    """Remove what dead owners left behind under ``root``; the paths that were removed."""
    swept = []
    for path in leftovers(root):
        destroy(path)
        swept.append(path)
    return swept


def sweep_scopes(folder: str) -> list[str]:
    """Sweep every scope of ours in the slice ``folder``; an empty scope is removed by systemd."""
    scopes = [entry.path for entry in os.scandir(folder) if entry.name.endswith(".scope")]
    return [path for scope in scopes for path in sweep(scope)]
