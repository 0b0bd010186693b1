"""Which files in ``incoming/`` are whole and can be taken.

A file is, when somebody was seen to finish it: it was closed after writing, or moved here whole (the kernel
tells by inotify(7)). One that nobody was seen to finish, since it was here before us, has a second name (a
hard link, which some producers make and then remove the first), or lies where the kernel tells nothing (NFS),
is whole when its ctime, which no producer can set, is ``settle_seconds`` ago and has not changed meanwhile.

Names with a dot before or ``.part`` behind are producers' own until they are renamed. Folders are left alone.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import stat
import time
from typing import TYPE_CHECKING

from gwsandbox.model.errors import SandboxError
from gwsandbox.service.spool.files import is_for_us

if TYPE_CHECKING:
    from inotify_simple import INotify

_MOST_READY = 10_000  # names that are kept; further ones are looked up when those are taken
_SCAN_SECONDS = 60.0  # for what the kernel does not tell


class IncomingWatcher:
    """The files of one folder, in the order in which they became ready.

    Args:
        folder: Of the files.
        settle_seconds: See above.

    Raises:
        SandboxError: It cannot be watched.
    """

    def __init__(self, folder: str, settle_seconds: float) -> None:
        self._folder = folder
        self.settle_seconds = settle_seconds
        self._ready: dict[str, None] = {}
        self._writing: set[str] = set()
        self._settling: dict[str, tuple[int, float]] = {}  # ctime, and when to look again
        self._skipped: dict[str, int] = {}  # what cannot be taken, and its ctime then
        self._next_scan = 0.0
        self._has_more = False
        self._inotify = _watch(folder)

    def close(self) -> None:
        self._inotify.close()

    def fileno(self) -> int:
        """Can be read when ``read_events`` has something to read."""
        return int(self._inotify.fileno())

    # --- questions ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._ready)

    def pop(self) -> str | None:
        """The next file to take, or ``None``."""
        if not self._ready and self._has_more:
            self.scan()
        for name in self._ready:
            del self._ready[name]
            return name
        return None

    def skip(self, name: str) -> bool:
        """It could not be taken: do not try again until it has changed; whether this is news."""
        try:
            changed = os.lstat(f"{self._folder}/{name}").st_ctime_ns
        except FileNotFoundError:
            return False
        is_news = self._skipped.get(name) != changed
        self._skipped[name] = changed
        return is_news

    def seconds_to_wait(self) -> float:
        """Until ``look`` has something to do."""
        moments = [moment for _, moment in self._settling.values()]
        return max(min([self._next_scan, *moments]) - time.monotonic(), 0)

    # --- looking ------------------------------------------------------------------------------------

    def look(self) -> None:
        """Do what time asks for: see whether files have settled, and scan the folder now and then."""
        now = time.monotonic()
        for name, (changed, moment) in list(self._settling.items()):
            if now >= moment:
                del self._settling[name]
                self._consider(name, changed)
        if now >= self._next_scan:
            self.scan()

    def scan(self) -> None:
        """Look at every file in the folder."""
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if self._is_new(entry.name):
                    try:
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
                    except FileNotFoundError:
                        continue
        room = max(_MOST_READY - len(self._ready), 0)
        for _, name in heapq.nsmallest(room, found):
            self._consider(name)
        self._has_more = len(found) > room
        self._next_scan = time.monotonic() + _SCAN_SECONDS

    def _is_new(self, name: str) -> bool:
        known = name in self._ready or name in self._writing or name in self._settling
        return is_for_us(name) and not known

    def _consider(self, name: str, seen: int | None = None) -> None:
        """Find out whether a file is whole that nobody was seen to finish.

        Args:
            name: Of the file.
            seen: Its ctime when it was looked at ``settle_seconds`` ago.
        """
        try:
            status = os.lstat(f"{self._folder}/{name}")
        except FileNotFoundError:
            return
        changed = status.st_ctime_ns
        if stat.S_ISDIR(status.st_mode) or self._skipped.get(name) == changed:
            return
        self._skipped.pop(name, None)
        age = time.time() - changed / 1e9
        if not stat.S_ISREG(status.st_mode) or changed == seen or age >= self.settle_seconds:
            self._add(name)  # what is no file does not become one: it is refused when it is taken
        else:
            # An age below 0: the clock was set back. Then only our own clock counts.
            wait = self.settle_seconds - (age if age > 0 and seen is None else 0)
            self._settling[name] = (changed, time.monotonic() + wait)

    # --- what the kernel tells ----------------------------------------------------------------------

    def read_events(self) -> None:
        """Take in what the kernel tells; does not wait.

        Raises:
            SandboxError: The folder itself is gone.
        """
        from inotify_simple import flags  # noqa: PLC0415 - in an extra

        whole = flags.CLOSE_WRITE | flags.MOVED_TO
        for event in self._inotify.read(0):
            mask, name = event.mask, event.name
            if mask & (flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED):
                raise SandboxError("watch incoming", path=self._folder, remedy="it was moved away; make it again")
            if mask & flags.Q_OVERFLOW:
                self._writing.clear()
                self._next_scan = 0.0
            elif mask & flags.ISDIR or not is_for_us(name):
                continue
            elif mask & whole or (name in self._writing and mask & flags.CLOSE_NOWRITE):
                self._forget(name)
                self._add(name)
            elif mask & flags.CREATE:
                self._see_new(name)
            elif mask & (flags.DELETE | flags.MOVED_FROM):
                self._forget(name)

    def _see_new(self, name: str) -> None:
        try:
            status = os.lstat(f"{self._folder}/{name}")
        except FileNotFoundError:
            return
        if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
            self._writing.add(name)  # its maker has it open still
        else:
            self._consider(name)

    def _add(self, name: str) -> None:
        if len(self._ready) < _MOST_READY:
            self._ready[name] = None
        else:
            self._has_more = True

    def _forget(self, name: str) -> None:
        self._ready.pop(name, None)
        self._writing.discard(name)
        self._settling.pop(name, None)
        self._skipped.pop(name, None)


def _watch(folder: str) -> INotify:
    try:
        from inotify_simple import INotify, flags  # noqa: PLC0415 - in an extra
    except ImportError as error:
        remedy = "pip install 'gwsandbox[service]'"
        raise SandboxError("the package inotify-simple is missing", remedy=remedy) from error
    of_files = flags.CREATE | flags.CLOSE_WRITE | flags.CLOSE_NOWRITE | flags.MOVED_TO | flags.MOVED_FROM
    wanted = of_files | flags.DELETE | flags.DELETE_SELF | flags.MOVE_SELF | flags.ONLYDIR
    with contextlib.ExitStack() as undo:
        try:
            inotify = undo.enter_context(INotify())
            inotify.add_watch(folder, wanted)
        except OSError as error:
            remedy = "raise fs.inotify.max_user_instances (sysctl) if that is used up"
            raise SandboxError("watch incoming", path=folder, errno=error.errno or 0, remedy=remedy) from error
        undo.pop_all()
    return inotify
