"""Takes the output of a worker out of its scratch folder. The worker may be an attacker, so links lead nowhere."""

from __future__ import annotations

import errno
import os

from gwsandbox.linux.lease import is_open_for_writing
from gwsandbox.linux.open_beneath import open_beneath
from gwsandbox.service.spool.files import Refused, why_refused

_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR})
_LINK = frozenset({errno.ELOOP, errno.EXDEV})


class StillWritten(Exception):
    """A process has the file open for writing."""


class NotOnDisk(Exception):
    """The disk did not take the output; what it holds of it is unknown."""


def take_output(home: str, scratch: str, name: str) -> None:
    """Move the output from ``home``/``scratch`` to ``home``, with plain permissions, and bring it to the disk.

    Args:
        home: Path of the job's folder.
        scratch: Name of the scratch folder in it.
        name: Name of the output.

    Raises:
        Refused: There is no output, or it is no ordinary file.
        StillWritten: A process that outlived the worker has it open for writing.
        NotOnDisk: It cannot be brought to the disk.
        OSError: It cannot be moved; it still lies in ``scratch``.
    """
    folder = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # An earlier try of this step may have moved it.
        path = name if _exists(folder, name) else f"{scratch}/{name}"
        output = _open(folder, path)
        try:
            os.rename(path, name, src_dir_fd=folder, dst_dir_fd=folder)
            if not os.path.samestat(os.fstat(output), os.lstat(name, dir_fd=folder)):
                raise Refused("its output was swapped for another file")
            _sync(output, folder)
        finally:
            os.close(output)
    finally:
        os.close(folder)


def _exists(folder: int, name: str) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _open(folder: int, path: str) -> int:
    """Open the output for reading, once it is known to be an ordinary file and everybody may read it."""
    try:
        found = open_beneath(folder, path, os.O_PATH)
    except OSError as error:
        if error.errno in _NO_FILE:
            raise Refused("it wrote no output") from error
        if error.errno in _LINK:
            raise Refused("its output is refused: a symbolic link leads to it") from error
        raise
    try:
        if why := why_refused(os.fstat(found)):
            raise Refused(f"its output is refused: {why}")
        os.chmod(f"/proc/self/fd/{found}", 0o666 & ~_umask())  # no set-uid bit; and the service can read it
        output = os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(found)
    if is_open_for_writing(output):
        os.close(output)
        raise StillWritten
    return output


def _sync(*descriptors: int) -> None:
    try:
        for fd in descriptors:
            os.fsync(fd)
    except OSError as error:
        raise NotOnDisk(error.strerror) from error  # a second fsync would succeed, whatever was lost


def _umask() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))
