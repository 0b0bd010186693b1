"""What the service can find out about a file in ``incoming/`` without taking it."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass

from gwsandbox.linux.lease import is_open_for_writing


@dataclass(frozen=True, slots=True)
class FileState:
    """The state of a name in ``incoming/``.

    Args:
        is_folder: Whether it is a folder.
        is_file: Whether it is a regular file.
        size: Its size in bytes.
        changed: Its ctime in nanoseconds since the Epoch. No producer can set it.
        names: How many names (hard links) it has.
        is_written: Whether a process has it open for writing; ``None`` where the kernel does not say.
    """

    is_folder: bool
    is_file: bool
    size: int
    changed: int
    names: int
    is_written: bool | None


def examine(path: str, *, has_leases: bool) -> FileState | None:
    """Examine a file.

    Args:
        path: Path of the file.
        has_leases: Whether the kernel can say which files there are open for writing.

    Returns:
        ``None`` where nothing has this name.

    Raises:
        OSError: The file system fails.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    is_file = stat.S_ISREG(status.st_mode)
    return FileState(
        is_folder=stat.S_ISDIR(status.st_mode),
        is_file=is_file,
        size=status.st_size,
        changed=status.st_ctime_ns,
        names=status.st_nlink,
        is_written=_is_written(path) if is_file and has_leases else None,
    )


def _is_written(path: str) -> bool | None:
    try:
        # O_NONBLOCK: another process may have put a named pipe there meanwhile.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return is_open_for_writing(fd)
    finally:
        os.close(fd)
