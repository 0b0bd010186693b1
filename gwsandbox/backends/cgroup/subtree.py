"""The groups below one of ours, whatever a guest did to them: walked, killed and removed by descriptor.

A guest may nest groups deeper than a path can be long and than Python recurses, and take all permissions from them.
So each group is opened from the one above it and left by its "..", and has its permissions given back on the way.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from gwsandbox.backends.cgroup import files
from gwsandbox.model.errors import CgroupError


def walk(top: int) -> Iterator[tuple[int, str]]:
    """Every group at or below the one whose descriptor is ``top``.

    Yields:
        Its descriptor and "" on coming to a group; the descriptor of the group above and its name on having left it.
        A group that may not be entered is left at once; one that is gone is passed over.

    Raises:
        OSError: A group cannot be listed.
    """
    current = os.dup(top)
    names: list[str] = []
    pending = [_below(current)]
    try:
        yield current, ""
        while pending:
            if pending[-1]:
                name = pending[-1].pop()
                try:
                    inner = files.open_folder(name, current)
                except FileNotFoundError:
                    continue
                except PermissionError:
                    yield current, name
                    continue
                os.close(current)
                current = inner
                names.append(name)
                pending.append(_below(current))
                yield current, ""
            else:
                pending.pop()
                if names:
                    above = os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=current)
                    os.close(current)
                    current = above
                    yield current, names.pop()
    finally:
        os.close(current)


def _below(folder: int) -> list[str]:
    """Names of the groups directly below."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def processes(folder: int, path: str, *, is_top: bool) -> list[int]:
    """Pids in a cgroup; 0 stands for each one that is in no PID namespace of ours.

    Of a threaded group they are listed in its domain, which is above it.

    Raises:
        CgroupError: They cannot be read.
    """
    try:
        text = files.read("cgroup.procs", folder)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP and not is_top:
            return []
        raise CgroupError("kill", path=f"{path}/cgroup.procs", errno=error.errno or 0) from error
    return [int(pid) for pid in (text or "").split()]


def kill_each(top: int, path: str) -> None:
    """SIGKILL each process in a group and below it, one after the other; for a frozen group before Linux 5.14.

    Raises:
        CgroupError: They cannot be listed.
    """
    for number, (group, left) in enumerate(walk(top)):
        if left:
            continue
        for pid in processes(group, path, is_top=number == 0):
            if pid:  # kill(0) is this process's own group
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)


def remove(name: str, above: int, path: str) -> None:
    """Remove a cgroup in which nothing lives, and all the groups below it.

    When the last process of a scope is gone, systemd removes its groups too, from the innermost on: each step here
    may find done what it is about to do.

    Args:
        name: Of the group.
        above: Descriptor of the group that holds it.
        path: Of the group, for the error.

    Raises:
        CgroupError: It cannot be removed, because a process still lives in it or it is another user's. What can be
            removed of it is.
    """
    if not _rmdir(name, above):
        return
    # For groups below it, or for processes.
    _remove_below(name, above, path)
    if number := _rmdir(name, above):
        raise CgroupError("remove cgroup", path=path, errno=number)


def _rmdir(name: str, above: int) -> int:
    """0 where the group is removed, or was gone; else the errno that says why not."""
    try:
        os.rmdir(name, dir_fd=above)
    except OSError as error:
        return 0 if error.errno == errno.ENOENT else error.errno or 0
    return 0


def _remove_below(name: str, above: int, path: str) -> None:
    with contextlib.ExitStack() as opened:
        try:
            top = files.open_folder(name, above)
            opened.callback(os.close, top)
            refused = [(left, number) for group, left in walk(top) if left and (number := _rmdir(left, group))]
        except FileNotFoundError:
            return
        except OSError as error:
            raise CgroupError("list groups to remove them", path=path, errno=error.errno or 0) from error
    if refused:
        left, number = refused[0]
        raise CgroupError("remove cgroup", path=f"{path}/…/{left}", errno=number)
