"""What the spool does to files: moves that never replace, copies for guests, and checks that follow no link."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from dataclasses import dataclass

from gwsandbox.linux import syscalls

_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS})
_FICLONE = 0x40049409  # include/uapi/linux/fs.h: _IOW(0x94, 9, int)
_CHUNK = 8 * 1024**2  # bytes of one step of a copy

_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}


class Refused(Exception):
    """The service does not work with this file; the text says why."""


def move(source: str, target: str) -> None:
    """Rename, and never replace.

    Raises:
        FileExistsError: ``target`` exists.
        OSError: The file cannot be moved.
    """
    try:
        syscalls.renameat2(source, target, syscalls.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        # A file system without that flag (NFS). Only the service puts files into the folders that it moves to.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        os.rename(source, target)


def sync(path: str) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write(path: str, data: bytes) -> None:
    """Write a file, and wait until its content is on the disk. It may exist."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        while data:
            data = data[os.write(fd, data) :]
        os.fsync(fd)
    finally:
        os.close(fd)


def why_refused(status: os.stat_result) -> str:
    """Why the service neither gives such a file to a guest nor publishes it; empty for an ordinary file."""
    if not stat.S_ISREG(status.st_mode):
        return f"it is no regular file but a {_KINDS.get(stat.S_IFMT(status.st_mode), 'file of unknown kind')}"
    if status.st_nlink > 1:
        return f"it has {status.st_nlink} names (hard links), and may belong to somebody who did not deliver it"
    return ""


def open_input(path: str) -> int:
    """Open a delivered file for reading, without following a link or waiting for a peer.

    Raises:
        Refused: No guest may get such a file, or this user may not read it.
        OSError: It cannot be opened.
    """
    if why := why_refused(os.lstat(path)):
        raise Refused(why)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError as error:
        raise Refused("the service's user may not read it; let its producer give the group that right") from error
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, fd)
        if why := why_refused(os.fstat(fd)):
            raise Refused(why)
        undo.pop_all()
    return fd


# --- copies ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Identity:
    """A file's inode, and the fields of its status that every change of its content changes."""

    inode: int
    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, status: os.stat_result) -> Identity:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Copy:
    """A copy of a file, made step by step, so that a large file does not stop the service's loop.

    Args:
        source: Descriptor of the file; the copy closes it.
        target: Path of the copy. It must not exist.

    Raises:
        OSError: The copy cannot be made.
    """

    def __init__(self, source: int, target: str) -> None:
        self._source, self._target, self._path = source, -1, target
        try:
            self._status = os.fstat(source)
            self.identity = Identity.of(self._status)
            self._target = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._is_complete = self._clone()
            if not self._is_complete:
                self._check_room()
        except BaseException:
            self.close()
            raise

    def _clone(self) -> bool:
        """Let both files share their blocks, where the file system can."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._target, _FICLONE, self._source)
            return True
        return False

    def _check_room(self) -> None:
        """Fail before the disk is full, as the running guests write to it too."""
        room = os.fstatvfs(self._target)
        if room.f_frsize and room.f_bavail * room.f_frsize < self._status.st_size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)

    def advance(self, deadline: float) -> bool:
        """Copy until ``deadline``, an instant of the monotonic clock.

        Returns:
            Whether the copy is complete.
        """
        while not self._is_complete and time.monotonic() < deadline:
            self._is_complete = os.sendfile(self._target, self._source, None, _CHUNK) == 0
        if self._is_complete:
            os.utime(self._target, ns=(self._status.st_atime_ns, self._status.st_mtime_ns))
            self.close()
        return self._is_complete

    def close(self) -> None:
        """Release both descriptors."""
        for fd in (self._source, self._target):
            if fd >= 0:
                os.close(fd)
        self._source = self._target = -1
