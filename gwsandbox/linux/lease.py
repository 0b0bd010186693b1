"""Asks the kernel whether any process has a file open for writing, by a read lease: fcntl(2), F_SETLEASE."""

from __future__ import annotations

import errno
import fcntl
import os
import signal


def is_open_for_writing(fd: int) -> bool | None:
    """Whether a process has the file open, or mapped, for writing.

    Args:
        fd: Descriptor of the file, open for reading.

    Returns:
        ``None`` where the kernel does not answer: the file belongs to another user, or the file system has no
        leases.
    """
    try:
        # Whoever opens the file for writing during the lease would send SIGIO, which ends a process. SIGURG does not.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def has_leases(path: str) -> bool:
    """Whether leases work for a file of this user that no process has open for writing.

    Some network file systems refuse every lease with the same error that a writer causes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return is_open_for_writing(fd) is False
    finally:
        os.close(fd)
