"""Removes what guests leave behind: trees of any size, depth and mode, bit by bit, without following a link."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from collections.abc import Generator, Iterator


class Trash:
    """A folder for leftovers. They may be a million files, so each turn of the service's loop removes some.

    Args:
        path: Path of the folder. Its content from before is trash too.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._numbers = itertools.count()
        self._removal: Generator[None, None, None] | None = None
        os.makedirs(path, 0o700, exist_ok=True)
        self.is_empty = False

    def close(self) -> None:
        """Stop removing; the next ``Trash`` of this folder goes on."""
        if self._removal is not None:
            self._removal.close()
            self._removal = None

    def add(self, path: str) -> None:
        """Move a folder here, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, f"{self._path}/{self._free_name()}")
            self.is_empty = False

    def empty(self, seconds: float) -> None:
        """Remove as much as possible in ``seconds``.

        Raises:
            OSError: Something cannot be removed; the next call goes on with the rest.
        """
        deadline = time.monotonic() + seconds
        removal = self._removal = self._removal or self._remove_all()
        try:
            while time.monotonic() < deadline:
                next(removal)
        except StopIteration:
            self._removal, self.is_empty = None, True
        except OSError:
            self._removal, self.is_empty = None, True
            raise

    def _free_name(self) -> str:
        for number in self._numbers:
            if not os.path.lexists(f"{self._path}/{number}"):
                return str(number)
        raise AssertionError

    def _remove_all(self) -> Generator[None, None, None]:
        """Move each folder inside of a folder up here before its turn: so no depth is too much."""
        root = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            while names := os.listdir(root):
                for name in names:
                    yield from self._remove(root, name)
        finally:
            os.close(root)

    def _remove(self, root: int, name: str) -> Iterator[None]:
        folder = _open_folder(root, name)
        if folder is None:
            os.unlink(name, dir_fd=root)
            yield
            return
        try:
            for inner in os.listdir(folder):
                self._remove_inner(root, folder, inner)
                yield
        finally:
            os.close(folder)
        os.rmdir(name, dir_fd=root)

    def _remove_inner(self, root: int, folder: int, name: str) -> None:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            os.unlink(name, dir_fd=folder)
            return
        inner = _open_folder(folder, name)  # a folder that its owner may not write cannot be moved
        if inner is not None:
            os.close(inner)
        os.rename(name, self._free_name(), src_dir_fd=folder, dst_dir_fd=root)


def _open_folder(parent: int, name: str) -> int | None:
    """Open a folder to list it, and give its owner every right on it; ``None`` for anything else."""
    found = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if not stat.S_ISDIR(os.fstat(found).st_mode):
            return None
        os.chmod(f"/proc/self/fd/{found}", 0o700)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=found)
    finally:
        os.close(found)
