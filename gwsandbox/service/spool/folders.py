"""The spool's folders: how the service makes, checks and locks them."""

from __future__ import annotations

import errno
import fcntl
import os
import time

from gwsandbox.linux.lease import has_leases
from gwsandbox.linux.locks import try_lock
from gwsandbox.model.errors import SandboxError
from gwsandbox.service.spool import files

_LOCK = ".lock"
_LOCK_SECONDS = 10.0
_PROBE = ".gwsandbox-probe"


def prepare(folders: dict[str, str]) -> bool:
    """Make the folders that are missing, and check that files can move between them.

    Args:
        folders: Path of each folder by its name: ``work``, ``incoming``, ``done``, ``quarantine``.

    Returns:
        Whether the kernel can say there which files are open for writing.

    Raises:
        SandboxError: The folders are not on one file system, or this user cannot write them.
    """
    for name, path in folders.items():
        try:
            os.makedirs(path, 0o700 if name == "work" else 0o777, exist_ok=True)
        except OSError as error:
            raise SandboxError(f"make folder {name}", path=path, errno=error.errno or 0) from error
    probe = f"{folders['work']}/{_PROBE}"
    for name, path in folders.items():
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            os.rename(probe, f"{path}/{_PROBE}")
            os.rename(f"{path}/{_PROBE}", probe)
        except OSError as error:
            step, remedy = f"move files to {name}", "give this service's user the right to write there"
            if error.errno == errno.EXDEV:
                remedy = "put all folders on one file system, as a move to another one shows half a file"
            raise SandboxError(step, path=path, errno=error.errno or 0, remedy=remedy) from error
    found = has_leases(probe)
    os.unlink(probe)
    return found


def check_storage(work: str) -> None:
    """Write a small file into the folder ``work`` and bring it to the disk.

    Raises:
        OSError: That failed.
    """
    path = f"{work}/{_PROBE}"
    files.write(path, bytes(65536))
    os.unlink(path)


def lock(work: str) -> int:
    """Lock the spool.

    The supervisor inherits the descriptor. So the next holder of the lock knows that every process of an
    earlier instance is gone.

    Returns:
        The descriptor that holds the lock.

    Raises:
        SandboxError: Another instance holds it.
    """
    path = f"{work}/{_LOCK}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_SECONDS
    while not try_lock(fd, fcntl.LOCK_EX):
        if time.monotonic() > deadline:
            os.close(fd)
            remedy = "another gwsandbox serve works on this spool; stop it, or give each its own"
            raise SandboxError("lock the spool", path=path, remedy=remedy)
        time.sleep(0.05)  # a killed instance may still be dying, and a lock announces nothing
    return fd


def write_holder(lock: int, text: str) -> None:
    """Write into the lock's file who holds it."""
    os.ftruncate(lock, 0)
    os.pwrite(lock, text.encode(), 0)


def read_holder(work: str) -> str:
    """What ``write_holder`` wrote; empty where no service works on the spool.

    Raises:
        OSError: The lock cannot be opened.
    """
    if not is_locked(work):
        return ""
    with open(f"{work}/{_LOCK}", encoding="utf-8") as file:
        return file.read()


def is_locked(work: str) -> bool:
    """Whether a service works on the spool.

    Raises:
        OSError: The lock cannot be opened.
    """
    try:
        fd = os.open(f"{work}/{_LOCK}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        return not try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
