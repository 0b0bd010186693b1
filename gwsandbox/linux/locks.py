"""Locks on whole files (flock(2)), which end with the last descriptor of those who took them."""

from __future__ import annotations

import fcntl


def try_lock(fd: int, kind: int) -> bool:
    """Take a lock, unless somebody holds one that excludes it.

    Args:
        fd: Of a file or a folder; the lock is its until it is closed.
        kind: ``fcntl.LOCK_SH`` or ``fcntl.LOCK_EX``.

    Returns:
        Whether the lock is taken.

    Raises:
        OSError: The file system has no locks.
    """
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
