"""What happens in one folder, as inotify(7) announces it."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gwsandbox.model.errors import SandboxError

if TYPE_CHECKING:
    from inotify_simple import INotify


class Happening(enum.Enum):
    """What happened to a name; the values are the bits of inotify(7), from include/uapi/linux/inotify.h."""

    CREATED = 0x100  # IN_CREATE
    OPENED = 0x20  # IN_OPEN
    WRITER_CLOSED = 0x8  # IN_CLOSE_WRITE
    READER_CLOSED = 0x10  # IN_CLOSE_NOWRITE
    MOVED_AWAY = 0x40  # IN_MOVED_FROM
    MOVED_HERE = 0x80  # IN_MOVED_TO
    REMOVED = 0x200  # IN_DELETE
    FOLDER_CAME = 0x4000_0100  # IN_ISDIR and IN_CREATE; or IN_MOVED_TO
    FOLDER_WENT = 0x4000_0200  # IN_ISDIR and IN_DELETE; or IN_MOVED_FROM
    EVENTS_LOST = 0x4000  # IN_Q_OVERFLOW
    """The kernel dropped events, as there were too many."""


_OF_FILES = (
    *(Happening.CREATED, Happening.OPENED, Happening.WRITER_CLOSED, Happening.READER_CLOSED),
    *(Happening.MOVED_AWAY, Happening.MOVED_HERE, Happening.REMOVED),
)


@dataclass(frozen=True, slots=True)
class Event:
    """An event.

    Args:
        happening: What happened.
        name: The name that it happened to, without the folder.
        cookie: Number that the two events of a rename have in common.
    """

    happening: Happening
    name: str = ""
    cookie: int = 0


class FolderEvents:
    """The events of one folder.

    Args:
        folder: Path of the folder.

    Raises:
        SandboxError: The folder cannot be watched.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        try:
            from inotify_simple import INotify, flags  # noqa: PLC0415 - in an extra
        except ImportError as error:
            remedy = "pip install 'gwsandbox[service]'"
            raise SandboxError("the package inotify-simple is missing", remedy=remedy) from error
        self._gone = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
        wanted = flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
        for happening in _OF_FILES:
            wanted |= happening.value
        self._inotify = self._watch(INotify, wanted)

    def _watch(self, make: type[INotify], wanted: int) -> INotify:
        with contextlib.ExitStack() as undo:
            try:
                inotify = undo.enter_context(make())
                inotify.add_watch(self._folder, wanted)
            except OSError as error:
                remedy = "raise fs.inotify.max_user_instances (sysctl) if that is used up"
                number = error.errno or 0
                raise SandboxError("watch incoming", path=self._folder, errno=number, remedy=remedy) from error
            undo.pop_all()
        return inotify

    def close(self) -> None:
        self._inotify.close()

    def fileno(self) -> int:
        """The descriptor that is readable when ``read`` has something."""
        return int(self._inotify.fileno())

    def read(self) -> Iterator[Event]:
        """The events since the last call; does not wait.

        Raises:
            SandboxError: The folder itself is gone.
        """
        from inotify_simple import flags  # noqa: PLC0415 - in an extra

        for event in self._inotify.read(0):
            if event.mask & self._gone:
                raise SandboxError("watch incoming", path=self._folder, remedy="it was moved away; make it again")
            if event.mask & flags.Q_OVERFLOW:
                yield Event(Happening.EVENTS_LOST)
            elif event.mask & flags.ISDIR:
                if event.name and event.mask & (flags.CREATE | flags.MOVED_TO):
                    yield Event(Happening.FOLDER_CAME, event.name)
                elif event.name and event.mask & (flags.DELETE | flags.MOVED_FROM):
                    yield Event(Happening.FOLDER_WENT, event.name)
            else:
                yield from self._of_file(event.mask, event.name, event.cookie)

    def _of_file(self, mask: int, name: str, cookie: int) -> Iterator[Event]:
        for happening in _OF_FILES:
            if mask & happening.value:
                yield Event(happening, name, cookie)
