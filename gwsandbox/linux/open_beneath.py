"""Opens a file below a folder without following a link, wherever in the path an attacker puts one."""

from __future__ import annotations

import errno
import os

from gwsandbox.linux import syscalls

# A kernel before 5.6, or a seccomp filter that knows no openat2 (EPERM is the answer of docker's older ones).
_NOT_SUPPORTED = frozenset({errno.ENOSYS, errno.EPERM})


def open_beneath(folder: int, path: str, flags: int) -> int:
    """Open ``path`` below the folder with descriptor ``folder``. No component may be a link.

    Args:
        folder: Descriptor of the folder.
        path: Path relative to it, without ``..``.
        flags: As of ``os.open``, without ``O_CREAT``. ``O_NOFOLLOW`` and ``O_CLOEXEC`` are added.

    Raises:
        OSError: It cannot be opened. ELOOP: a component is a link. EXDEV, ENOTDIR: the path leaves the folder, or
            leads through something else.
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return syscalls.openat2(folder, path, flags, resolve=syscalls.RESOLVE_NO_SYMLINKS | syscalls.RESOLVE_BENEATH)
    except OSError as error:
        if error.errno not in _NOT_SUPPORTED:
            raise
    return _open_step_by_step(folder, path, flags)


def _open_step_by_step(folder: int, path: str, flags: int) -> int:
    *parents, name = path.split("/")
    if any(part in {"", ".", ".."} for part in (*parents, name)):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
    current = os.dup(folder)
    try:
        for parent in parents:
            inner = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=current)
            os.close(current)
            current = inner
        return os.open(name, flags, dir_fd=current)
    finally:
        os.close(current)
