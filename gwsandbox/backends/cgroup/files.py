"""Reading and writing cgroup files; an error names the step, the path, the value and the errno.

A guest may be our own user, and take the permissions from its groups and their files. Who owns them can give the
permissions back, so a file that is refused is asked for once more with its mode restored.
"""

from __future__ import annotations

import contextlib
import errno
import os

from gwsandbox.model.errors import CgroupError

_LARGEST = 65536  # cpu.stat, the longest file read here, has a kilobyte
_TRIES = 20  # of a file that a guest makes inaccessible over and over again
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o755  # that the kernel gives a cgroup

GONE = frozenset({errno.ENODEV, errno.ENOENT})
"""What a file says whose group was removed, before or after it was opened."""


def open_file(name: str, flags: int, folder: int) -> int:
    """A descriptor of the file ``name`` in the cgroup whose descriptor is ``folder``.

    Raises:
        OSError: As open(2).
    """
    for _ in range(_TRIES):
        try:
            return os.open(name, flags | os.O_CLOEXEC, dir_fd=folder)
        except PermissionError:
            give_back_permissions(folder)
            try:
                os.chmod(name, 0o644, dir_fd=folder)
            except PermissionError:
                break
    return os.open(name, flags | os.O_CLOEXEC, dir_fd=folder)


def open_folder(path: str, above: int | None = None) -> int:
    """A descriptor of the cgroup ``path``, relative to the cgroup ``above`` where that is given.

    Raises:
        OSError: As open(2).
    """
    try:
        folder = os.open(path, _FOLDER, dir_fd=above)
    except PermissionError:
        os.chmod(path, _MODE, dir_fd=above)
        folder = os.open(path, _FOLDER, dir_fd=above)
    if os.fstat(folder).st_mode & 0o700 != 0o700:
        give_back_permissions(folder)
    return folder


def give_back_permissions(folder: int) -> None:
    """Let the owner of a cgroup list, change and enter it; without effect where that is not us."""
    with contextlib.suppress(PermissionError):
        os.fchmod(folder, _MODE)


def read(name: str, folder: int) -> str | None:
    """The text of a file in the cgroup whose descriptor is ``folder``; ``None`` where it does not exist.

    Raises:
        OSError: It exists and cannot be read.
    """
    try:
        fd = open_file(name, os.O_RDONLY, folder)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, _LARGEST).decode()
    except OSError as error:
        # A controller that is compiled in but switched off (cgroup_disable=, psi=0) has files that say so.
        if error.errno in GONE | {errno.EOPNOTSUPP}:
            return None
        raise
    finally:
        os.close(fd)


def write(name: str, value: str, folder: int, step: str, path: str) -> None:
    """Write a file in the cgroup whose descriptor is ``folder``.

    Raises:
        CgroupError: It does not exist, or the kernel refused; names ``step``, the file under ``path``, and the value.
    """
    fd = -1
    try:
        fd = open_file(name, os.O_WRONLY, folder)
        os.write(fd, value.encode())
    except OSError as error:
        raise CgroupError(step, path=f"{path}/{name}", value=value, errno=error.errno or 0) from error
    finally:
        if fd >= 0:
            os.close(fd)


def write_if_there(name: str, value: str, folder: int, step: str, path: str) -> bool:
    """As ``write``, and False where the file does not exist: for what not every kernel has."""
    try:
        write(name, value, folder, step, path)
    except CgroupError as error:
        if error.errno != errno.ENOENT:
            raise
        return False
    return True


def parse_flat(text: str | None) -> dict[str, int]:
    """A "flat keyed" file such as memory.events, as numbers by key; empty where there is none."""
    words = iter((text or "").split())
    return {key: int(value) for key, value in zip(words, words, strict=True)}


def parse_number(text: str | None) -> int | None:
    """A file of one number; ``None`` where it does not exist or says "max"."""
    return None if text is None or not text.strip().isdigit() else int(text)


def parse_io(text: str | None) -> tuple[int, int] | None:
    """Bytes read and written over all devices, from io.stat; ``None`` where it does not exist."""
    if text is None:
        return None
    words = [word.partition("=") for word in text.split()]
    return (
        sum(int(value) for key, _, value in words if key == "rbytes"),
        sum(int(value) for key, _, value in words if key == "wbytes"),
    )


def parse_pressure(text: str | None) -> float | None:
    """Seconds in which some process waited for memory, from memory.pressure; ``None`` where it does not exist."""
    for line in (text or "").splitlines():
        if line.startswith("some"):
            return int(line.rpartition("total=")[2]) / 1e6
    return None
