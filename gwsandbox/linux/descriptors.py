"""Which descriptors a process of ours holds, and which it must not."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import stat
import struct
from collections.abc import Collection

from gwsandbox.linux import syscalls

_LAST = 2**31 - 1
_MOST_PROBED = 65536  # descriptors, one by one, where no /proc lists them
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid (unix(7), SO_PEERCRED)


def close_all_but(kept: Collection[int]) -> None:
    """Close every descriptor of this process that is not in ``kept``."""
    first = 0
    for fd in sorted(kept):
        if fd > first:
            _close_range(first, fd - 1)
        first = max(first, fd + 1)
    _close_range(first, _LAST)


def _close_range(first: int, last: int) -> None:
    try:
        syscalls.close_range(first, last)
    except OSError:  # before Linux 5.9, or refused by a seccomp filter
        for fd in open_descriptors():
            if first <= fd <= last:
                with contextlib.suppress(OSError):
                    os.close(fd)


def open_descriptors() -> list[int]:
    """The descriptors of this process; that of the folder which lists them is among them, and closed again."""
    try:
        return list(map(int, os.listdir("/proc/self/fd")))
    except OSError:  # no /proc, or no descriptor to open it with
        most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _MOST_PROBED)
        return [fd for fd in range(most) if _is_open(fd)]


def _is_open(fd: int) -> bool:
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_GETFD)
        return True
    return False


def close_lifelines(kept: Collection[int]) -> None:
    """Close pipes and connections of which this process has one end only, but for the standard three and ``kept``.

    Somebody waits at the other end of such a descriptor for it to be closed: the program that the caller feeds by a
    pipe, the peer of a connection. A copy in a process that lives longer than the caller's use of it would keep
    them waiting. A pipe of which both ends are here is the caller's own business, and guests may be meant to use it.
    """
    found = [fd for fd in open_descriptors() if fd > 2 and fd not in kept]
    pipes: dict[int, dict[int, set[int]]] = {}
    for fd in found:
        with contextlib.suppress(OSError):
            status = os.fstat(fd)
            if stat.S_ISFIFO(status.st_mode):
                mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
                pipes.setdefault(status.st_ino, {}).setdefault(mode, set()).add(fd)
            elif stat.S_ISSOCK(status.st_mode) and _is_connection(fd):
                os.close(fd)
    for ends in pipes.values():
        if len(ends) == 1 and os.O_RDWR not in ends:
            for fd in next(iter(ends.values())):
                os.close(fd)


def _is_connection(fd: int) -> bool:
    """Whether a socket is a stream to another process, or waits for one."""
    with contextlib.closing(socket.socket(fileno=os.dup(fd))) as found:
        if found.type != socket.SOCK_STREAM:
            return False
        if found.family != socket.AF_UNIX:
            return True
        peer = found.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(peer)[0] != os.getppid())
