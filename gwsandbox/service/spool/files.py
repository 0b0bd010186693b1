"""What the service does to files: moves that never replace, names that fit, removal that never follows.

Names come from strangers: any byte but NUL and slash may be in them, 255 of them. They are texts with
surrogates for what is not UTF-8 (``os.fsdecode``), and lengths are counted in bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import re
import stat
import time
from collections.abc import Iterator

from gwsandbox.linux import syscalls
from gwsandbox.model.errors import SandboxError

_LONGEST_NAME = 255  # bytes; of every file system that people put a spool on
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,16}\Z")
_LOCK = ".lock"
_LOCK_SECONDS = 10.0
_CANNOT = frozenset({errno.EINVAL, errno.ENOSYS})


# --- names ----------------------------------------------------------------------------------------------


def is_for_us(name: str) -> bool:
    """False for names that producers use while they write: with a dot before, or ``.part`` behind."""
    return not name.startswith(".") and not name.endswith(".part")


def suffix(name: str) -> str:
    """The end of a name that tells its type, such as ``".pdf"``; empty where it has no harmless one."""
    found = _SUFFIX.search(name, 1)
    return found[0] if found else ""


def names_like(name: str, number: int, *, room: int = 0) -> Iterator[str]:
    """Names to try, best first: ``name`` itself, then with ``~number`` in it, without end.

    Args:
        name: What it should be.
        number: Of the job: no other asks for a name with it.
        room: Bytes to leave for something that will be appended.
    """
    longest = _LONGEST_NAME - room
    if len(os.fsencode(name)) <= longest:
        yield name
    end = suffix(name)
    stem = name[: len(name) - len(end)]
    for again in itertools.count(1):
        mark = f"~{number}" if again == 1 else f"~{number}.{again}"
        while len(os.fsencode(stem + mark + end)) > longest:
            stem = stem[:-1]
        yield stem + mark + end


# --- moving ---------------------------------------------------------------------------------------------


def move(source: str, target: str) -> None:
    """Rename, and never replace.

    Raises:
        FileExistsError: The target is there. OSError: It cannot be done.
    """
    try:
        syscalls.renameat2(source, target, syscalls.RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        # A file system without that (NFS). Nobody but us puts files into the folders that we move to.
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


def why_refused(path: str) -> str:
    """Why no guest may be given this file to read; empty where it is an ordinary one. Opens nothing."""
    status = os.lstat(path)
    if not stat.S_ISREG(status.st_mode):
        return f"it is no regular file but a {_KINDS.get(stat.S_IFMT(status.st_mode), 'thing of unknown kind')}"
    if status.st_nlink > 1:
        return f"it has {status.st_nlink} names (hard links), and may be somebody's who did not give it to us"
    return ""


_KINDS = {
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
    stat.S_IFDIR: "folder",
}


# --- folders --------------------------------------------------------------------------------------------


def prepare(folders: dict[str, str]) -> None:
    """Make what is missing of the spool's folders, and see that files can be moved between them.

    Raises:
        SandboxError: They are not on one file system, or cannot be written.
    """
    for name, path in folders.items():
        try:
            os.makedirs(path, 0o700 if name == "work" else 0o777, exist_ok=True)
        except OSError as error:
            raise SandboxError(f"make folder {name}", path=path, errno=error.errno or 0) from error
    probe = f"{folders['work']}/.probe"
    for name, path in folders.items():
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
            os.rename(probe, f"{path}/.gwsandbox-probe")
            os.rename(f"{path}/.gwsandbox-probe", probe)
        except OSError as error:
            step, remedy = f"move files to {name}", "give this service's user the right to write there"
            if error.errno == errno.EXDEV:
                remedy = "all folders must be on one file system, or files would be seen half-written"
            raise SandboxError(step, path=path, errno=error.errno or 0, remedy=remedy) from error
    os.unlink(probe)


def lock(work: str) -> int:
    """The descriptor that holds the spool's lock.

    The supervisor inherits it: who gets the lock knows that nothing of an instance before lives any more.

    Raises:
        SandboxError: Another instance holds it.
    """
    path = f"{work}/{_LOCK}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                os.close(fd)
                remedy = "another gwsandbox serve works on this spool; stop it, or give each its own"
                raise SandboxError("lock the spool", path=path, remedy=remedy) from error
            time.sleep(0.05)  # what was killed just now is still dying, and a lock has no event
        else:
            return fd


# --- removing -------------------------------------------------------------------------------------------


class Trash:
    """A folder for what guests leave, emptied bit by bit: it may be a million files, and there is work to do.

    Args:
        path: Of the folder; what is in it from before is trash too.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers = itertools.count()
        self._removal: Iterator[None] | None = None
        os.makedirs(path, 0o700, exist_ok=True)
        self.is_empty = False

    def add(self, path: str) -> None:
        """Move a folder here, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, self._free_place())
            self.is_empty = False

    def empty(self, seconds: float) -> None:
        """Remove as much as can be in that time.

        Raises:
            OSError: Something cannot be removed; the next call goes on with the rest.
        """
        deadline = time.monotonic() + seconds
        removal = self._removal = self._removal or self._remove_all()
        try:
            while time.monotonic() < deadline:
                next(removal)
        except (StopIteration, OSError) as end:
            self._removal = None
            self.is_empty = True
            if isinstance(end, OSError):
                raise

    def _free_place(self) -> str:
        for number in self._numbers:
            place = f"{self._path}/{number}"
            if not os.path.lexists(place):
                return place
        raise AssertionError

    def _remove_all(self) -> Iterator[None]:
        """A folder in a folder is moved up before it is looked into: no depth is too much."""
        while names := os.listdir(self._path):
            for name in names:
                path = f"{self._path}/{name}"
                if not _is_folder(path):
                    os.unlink(path)
                    yield
                    continue
                for inner in os.listdir(path):
                    self._remove_one(f"{path}/{inner}")
                    yield
                os.rmdir(path)

    def _remove_one(self, path: str) -> None:
        if _is_folder(path):
            os.rename(path, self._free_place())
        else:
            os.unlink(path)


def _is_folder(path: str) -> bool:
    """Whether it is one, which then can be listed, moved and removed, whatever its mode was."""
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        return False
    os.chmod(path, 0o700)
    return True
