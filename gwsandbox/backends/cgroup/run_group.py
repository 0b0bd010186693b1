"""The run group: one cgroup per run of a manager, with a leaf per attempt below it.

It carries its owner's pid and start time in its name, and a shared lock (flock) that ends with its last
holder, so that the next start knows what a killed owner left behind and sweeps it. The lock also works where
the pid does not: across PID namespaces.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import select
import time

from gwsandbox.backends.cgroup import files, subtree
from gwsandbox.backends.cgroup.delegation import RUN_NAME, DelegatedRoot
from gwsandbox.linux.locks import try_lock
from gwsandbox.linux.procfs import is_zombie, start_time
from gwsandbox.model.errors import CgroupError

_ASIDE = "supervisor"
_SECONDS_TO_DIE = 30.0  # of processes that were killed: one that waits for a disk or a dead file server takes long
_ROUNDS = 100  # of moving processes: each leaves only those that were just forked
_numbers = itertools.count()
_SAID = "user.gwsandbox.refused"  # extended attribute of a run group of which it was said that it cannot be removed


def open_run_group(root: DelegatedRoot) -> tuple[str, int]:
    """Make a run group under ``root``; its path, and a descriptor that holds its lock.

    Raises:
        CgroupError: The kernel refused.
    """
    with contextlib.ExitStack() as undo:
        folder = files.open_folder(root.path)
        undo.callback(os.close, folder)
        _step_aside(root, folder)
        path = f"{root.path}/gwsandbox-{os.getpid()}-{start_time('self')}-{next(_numbers)}"
        try:
            os.mkdir(path, 0o755)
            undo.callback(os.rmdir, path)
            group = hold(path)
            undo.callback(os.close, group)
        except OSError as error:
            raise CgroupError("open run group", path=path, errno=error.errno or 0) from error
        _enable(root.controllers, group, path)
        undo.pop_all()
        os.close(folder)
    return path, group


def hold(path: str) -> int:
    """Open a run group and hold its lock, together with others of its run, until the descriptor is closed."""
    group = files.open_folder(path)
    fcntl.flock(group, fcntl.LOCK_SH)
    return group


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
    target = files.open_folder(aside)
    try:
        for _ in range(_ROUNDS):  # a process that forks while its parent moves is seen on the next round
            pids = (files.read("cgroup.procs", folder) or "").split()
            strangers = pids.count("0")  # they are in no PID namespace of ours; written back, 0 is this process
            if strangers:
                raise CgroupError(
                    "step aside: processes of an outer PID namespace are in it, which only that namespace can move",
                    path=path,
                    value=f"{strangers} of {len(pids)}",
                    remedy="set DelegateSubgroup=supervisor in its unit (systemd 254), or let what makes the namespace "
                    "first enter a group below it",
                )
            if not pids:
                return
            for pid in pids:
                _move(pid, target, aside)
    finally:
        os.close(target)


def _move(pid: str, target: int, path: str) -> None:
    try:
        files.write("cgroup.procs", pid, target, "step aside", path)
    except CgroupError as error:
        if error.errno != errno.ESRCH:
            raise


def is_populated(folder: int) -> bool:
    """Whether any process lives in this cgroup or below it; not so where it is gone."""
    return files.parse_flat(files.read("cgroup.events", folder)).get("populated", 0) == 1


def kill(folder: int, path: str) -> None:
    """Send SIGKILL to every process in a cgroup and below it; nothing where the cgroup is gone.

    Before Linux 5.14 there is no cgroup.kill: the group is frozen first, so that nothing forks away from us,
    and thawed after, as a frozen process of version 2 dies of SIGKILL but its group stays frozen.

    Raises:
        CgroupError: The kernel refused.
    """
    try:
        if files.write_if_there("cgroup.kill", "1", folder, "kill", path):
            return
        if files.write_if_there("cgroup.freeze", "1", folder, "kill", path):
            subtree.kill_each(folder, path)
            files.write("cgroup.freeze", "0", folder, "kill", path)
    except CgroupError as error:
        if error.errno not in files.GONE:
            raise


def destroy(path: str) -> None:
    """Kill everything in a cgroup, wait until nothing lives in it, and remove it with all below.

    Raises:
        CgroupError: It cannot be killed or removed, or something in it does not die within half a minute.
    """
    with contextlib.ExitStack() as opened:
        try:
            above = files.open_folder(os.path.dirname(path))
            opened.callback(os.close, above)
            folder = files.open_folder(os.path.basename(path), above)
            opened.callback(os.close, folder)
            events = files.open_file("cgroup.events", os.O_RDONLY, folder)
            opened.callback(os.close, events)
        except FileNotFoundError:
            return
        except OSError as error:
            raise CgroupError("open cgroup to remove it", path=path, errno=error.errno or 0) from error
        _kill_all(folder, events, path)
        subtree.remove(os.path.basename(path), above, path)


def _kill_all(folder: int, events: int, path: str) -> None:
    poll = select.poll()
    poll.register(events, select.POLLPRI)
    deadline = time.monotonic() + _SECONDS_TO_DIE
    while is_populated(folder):
        if time.monotonic() > deadline:
            raise CgroupError(
                f"kill: something in it does not die within {_SECONDS_TO_DIE:.0f} s",
                path=path,
                remedy="see ps -eo pid,stat,wchan:30,cgroup for a process in state D; then run gwsandbox clean",
            )
        kill(folder, path)
        poll.poll(1000)  # a fork that raced the kill is killed by the next round


def leftovers(root: str) -> list[str]:
    """Paths of the run groups under ``root`` whose owner is dead and whose lock nobody holds."""
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries]
    except FileNotFoundError:  # a scope that systemd has just collected
        return []
    return [f"{root}/{name}" for name in names if _is_left_over(root, name)]


def _is_left_over(root: str, name: str) -> bool:
    match = re.fullmatch(RUN_NAME, name)
    if match is None:
        return False
    try:
        owner = int(match[1])
        if start_time(owner) == int(match[2]) and not is_zombie(owner):  # some first processes of containers never reap
            return False
        folder = files.open_folder(f"{root}/{name}")
    except OSError:  # another user's, or just removed
        return False
    try:
        return try_lock(folder, fcntl.LOCK_EX)
    finally:
        os.close(folder)


def sweep(root: str) -> list[str]:
    """Remove what dead owners left behind under ``root``; the paths that were removed.

    What cannot be removed is logged once, by the first run that finds it, and no run fails for it.
    """
    swept = []
    for path in leftovers(root):
        try:
            destroy(path)
        except (CgroupError, OSError) as error:
            _say_once(path, error)
        else:
            swept.append(path)
    return swept


def _say_once(path: str, error: Exception) -> None:
    with contextlib.suppress(OSError):
        if os.getxattr(path, _SAID):
            return
    with contextlib.suppress(OSError):
        os.setxattr(path, _SAID, b"1")
    import logging  # noqa: PLC0415 - 5 ms, which only a bad leftover costs

    logging.getLogger("gwsandbox").warning(
        "the cgroup %s of a dead run cannot be removed: %s; try gwsandbox clean as root", path, error
    )


def sweep_scopes(folder: str) -> list[str]:
    """Sweep every scope of ours in the slice ``folder``; systemd removes a scope that is empty."""
    with os.scandir(folder) as entries:
        scopes = [entry.path for entry in entries if entry.name.endswith(".scope")]
    return [path for scope in scopes for path in sweep(scope)]
