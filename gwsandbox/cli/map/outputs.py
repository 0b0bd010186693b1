"""The output folder of ``gwsandbox map``: outputs are staged in a folder in it and moved into place whole.

A run removes its staging folder ``.gwsandbox-PID-STARTTIME``. The next run removes that of a killed run: its owner,
which the name identifies, is dead, and nobody holds the lock in it. The lock also covers owners in other containers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from typing import Self

from gwsandbox.cli.messages import Failure
from gwsandbox.linux.procfs import start_time
from gwsandbox.model.text import shown

_STAGING = re.compile(r"\.gwsandbox-(\d+)-(\d+)")
_LOCK = "lock"


class NoOutput(Exception):
    """The task succeeded, and left no output file; the text says why."""


def is_staging(name: str) -> bool:
    """Whether a folder of this name is a staging folder, of this run or another one."""
    return _STAGING.fullmatch(name) is not None


class Outputs:
    """The output folder, with a staging folder in it inside the block.

    Args:
        folder: Path of the output folder. It is created where it does not exist.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._staging = f"{folder}/.gwsandbox-{os.getpid()}-{start_time(os.getpid())}"
        self._lock = -1
        self._count = 0

    def __enter__(self) -> Self:
        """Remove staging folders of dead runs, and create this run's.

        Raises:
            Failure: The output folder cannot be created or written.
        """
        try:
            os.makedirs(self._folder, exist_ok=True)
            _sweep(self._folder)
            os.mkdir(self._staging)
            self._lock = _open_lock(self._staging)
        except OSError as error:
            raise Failure(
                f"the output folder {shown(self._folder)} cannot be written: {error.strerror}; "
                "choose another one by --output-dir, or change its permissions"
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)
        shutil.rmtree(self._staging, ignore_errors=True)

    def fileno(self) -> int:
        """The descriptor that holds the lock."""
        return self._lock

    @property
    def staging(self) -> str:
        """The folder that tasks write below."""
        return self._staging

    def path(self, name: str) -> str:
        """The final path of the output of this name."""
        return os.path.join(self._folder, name)

    def stage(self, name: str) -> str:
        """Create a folder for one task; the path in it, with the final file's name, that the task writes to.

        Raises:
            Failure: It cannot be created: the disk is full, for example.
        """
        self._count += 1
        folder = f"{self._staging}/{self._count}"
        try:
            os.mkdir(folder)
        except OSError as error:
            raise Failure(
                f"the output folder {shown(self._folder)} cannot be written any more: {error.strerror}; "
                "free some space, and the same command goes on from here"
            ) from error
        return f"{folder}/{os.path.basename(name)}"

    def publish(self, staged: str, name: str) -> None:
        """Move the staged output of a task to its final path.

        Raises:
            NoOutput: The task wrote no regular file. OSError: The file cannot be moved.
        """
        try:
            mode = os.lstat(staged).st_mode
        except FileNotFoundError as error:
            raise NoOutput("it succeeded, but wrote no output file") from error
        if not stat.S_ISREG(mode):
            # A link could lead a reader of the output to any other file.
            raise NoOutput("it succeeded, but what it wrote is not a regular file")
        target = self.path(name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.replace(staged, target)

    @staticmethod
    def discard(staged: str) -> None:
        """Remove the folder of one task from the staging folder."""
        shutil.rmtree(os.path.dirname(staged), ignore_errors=True)


def _open_lock(staging: str) -> int:
    fd = os.open(f"{staging}/{_LOCK}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(OSError):  # on a file system without locks the owner's pid decides alone
        # Not flock(2): guests would inherit that lock.
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def _sweep(folder: str) -> None:
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if is_staging(entry.name) and entry.is_dir(follow_symlinks=False)]
    for entry in found:
        if not _is_alive(entry.name, entry.path):
            shutil.rmtree(entry.path, ignore_errors=True)


def _is_alive(name: str, path: str) -> bool:
    match = _STAGING.fullmatch(name)
    if match is None or start_time(int(match[1])) == int(match[2]):
        return True
    try:
        fd = os.open(f"{path}/{_LOCK}", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # another user's
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def collisions(names: Iterable[tuple[str, str]], folder: str, keep: Iterable[str]) -> list[str]:
    """Problems with the names of the outputs, one message each.

    Args:
        names: (path of the input, name of its output).
        folder: The output folder.
        keep: Further files, beside the inputs, that no output may replace.
    """
    wanted: dict[str, str] = {}
    problems = []
    for path, name in names:
        if (other := wanted.setdefault(name, path)) != path:
            problems.append(f"{shown(path)} and {shown(other)} both give {shown(name)}")
    top = os.path.realpath(folder)
    kept = {os.path.realpath(path) for path in (*wanted.values(), *keep)}
    for name, path in wanted.items():
        if other := next((wanted[parent] for parent in _parents(name) if parent in wanted), ""):
            problems.append(f"{shown(path)} needs a folder where {shown(other)} gives a file")
        if os.path.join(top, name) in kept:
            problems.append(f"the output of {shown(path)} would replace {shown(os.path.join(folder, name))}")
    return problems


def _parents(name: str) -> Iterator[str]:
    while name := os.path.dirname(name):
        yield name
