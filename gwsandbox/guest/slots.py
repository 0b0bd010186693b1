"""A private folder for temporary files for each slot: one guest at a time has it, and finds it empty.

Each slot has a view of mounts of its own, made once in the zygote. The zygote enters that of the slot before it forks a
guest there, which costs two system calls, where a view for each guest would cost a third of a fork. What a guest has
left is not removed file by file: the next one in the slot gets a new view, and the memory of the old one is free.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gwsandbox.linux import confine, namespaces

_State = tuple[object, ...]


@dataclass(slots=True)
class _Slot:
    """A view, by its descriptor, and the state of its folders when it was made."""

    namespace: int
    state: _State


@dataclass(slots=True)
class Slots:
    """The views of all slots.

    Args:
        sizes: Bytes that each of the private folders can hold, by path.
        kept: Paths that are seen below them all the same.
        folder: Where guests start.
    """

    sizes: Mapping[str, int]
    kept: Collection[str]
    folder: str
    _base: int = -1
    _slots: list[_Slot] = field(default_factory=list)
    _current: int = -1

    def make(self, count: int) -> None:
        """Make the views of so many slots, from that which this process has now.

        Raises:
            OSError: It is not permitted.
        """
        self._base = _own_mounts()
        for _ in range(count):
            self._slots.append(self._make())
        self._current = count - 1

    def enter(self, slot: int) -> None:
        """Take this process into the view of a slot that no guest lives in.

        Raises:
            OSError: The kernel has no memory for a new one. IndexError: There is no such slot.
        """
        own = self._slots[slot]
        if slot != self._current:
            confine.setns(own.namespace, confine.CLONE_NEWNS)
            os.chdir(self.folder)
            self._current = slot
        if self._state() != own.state:
            self._current = -1
            fresh = self._make()
            os.close(own.namespace)
            self._slots[slot] = fresh
            self._current = slot

    def descriptors(self) -> list[int]:
        """What no guest is to have."""
        return [self._base, *(slot.namespace for slot in self._slots)]

    def _make(self) -> _Slot:
        confine.setns(self._base, confine.CLONE_NEWNS)
        confine.unshare(confine.CLONE_NEWNS)
        for path, size in self.sizes.items():
            namespaces.make_private(path, size, self.kept)
        os.chdir(self.folder)
        return _Slot(_own_mounts(), self._state())

    def _state(self) -> _State:
        """What differs once something was made and not removed, or a folder's owner, mode or attributes changed."""
        found: list[object] = []
        for path in self.sizes:
            room, status = os.statvfs(path), os.stat(path)
            found += (room.f_bfree, room.f_ffree, status.st_mode, status.st_uid, status.st_gid, _attributes(path))
            found += (os.stat(folder).st_ctime_ns for folder in self._folders_in(path))
        return tuple(found)

    def _folders_in(self, path: str) -> set[str]:
        """The folders between a private one and what is kept there."""
        found = set()
        for name in self.kept:
            folder = os.path.dirname(name)
            while folder.startswith(f"{path}/"):
                found.add(folder)
                folder = os.path.dirname(folder)
        return found


def _own_mounts() -> int:
    return os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)


def _attributes(path: str) -> list[str]:
    try:
        return os.listxattr(path)
    except OSError:  # this kernel knows none on a file system of memory
        return []
