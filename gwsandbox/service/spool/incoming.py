"""Finds the files in ``incoming/`` that are whole, so that the service can take them.

A file is whole when its writer has closed it. The service learns that in one of two ways:

*   inotify(7) announces it: a writer closed the file, or somebody moved it here. A reader's close announces nothing.
*   The file has not changed for ``settle_seconds``, by its ctime. This holds for files whose end nobody announced:
    the file was here before the service, it is a new link to a file (linkat(2), also of an O_TMPFILE), a reader has
    it open too, or inotify is silent (NFS).

In both cases the kernel has a veto: a file that a process has open for writing is not whole (see ``lease.py``). For
files of another user the kernel does not answer; then ``Spool.is_changed`` finds later that a file was not whole.

A name that starts with a dot or ends in ``.part`` is its producer's own until its producer renames the file. The
service does not take folders; it reports each once.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import time
from dataclasses import dataclass

from gwsandbox.service.spool.file_state import FileState, examine
from gwsandbox.service.spool.folder_events import Event, FolderEvents, Happening
from gwsandbox.service.spool.names import is_for_us

_MOST_READY = 10_000  # names; the watcher finds further ones when the service has taken those
_SCAN_SECONDS = 60.0  # between two scans for files that the kernel does not announce
_LINK_SECONDS = 2.0  # a file with two names may lose one soon: some producers link it, and then remove the first
_OPEN_SECONDS = 0.5  # the creator of a file has it open by then; a new link is not
_SHORTEST_WAIT, _LONGEST_WAIT = 0.05, 2.0  # seconds between two questions whether a file still has a writer


@dataclass(slots=True)
class _Creation:
    """A file that somebody created here, and may still have open.

    Args:
        was_empty: Whether it had no content when the watcher saw it first.
        check_at: When to find out whether it is only a new link; an instant of the monotonic clock.
        opens: How many of its openers have not closed it. The kernel merges equal events, so it may be wrong.
        is_closed: Whether one of its writers closed it.
    """

    was_empty: bool
    check_at: float
    opens: int = 0
    is_closed: bool = False


@dataclass(slots=True)
class _Settling:
    """A file whose end nobody announced.

    Args:
        changed: Its ctime when the watcher last looked.
        check_at: When to look again; an instant of the monotonic clock.
        wait: Seconds between the last two looks.
        was_written: Whether a process had it open for writing.
    """

    changed: int
    check_at: float
    wait: float
    was_written: bool = False


class IncomingWatcher:
    """The whole files of one folder, in the order in which they became whole.

    Args:
        folder: Path of the folder.
        settle_seconds: See the module's text.
        has_leases: Whether the kernel can say which files there are open for writing.

    Raises:
        SandboxError: The folder cannot be watched.
    """

    def __init__(self, folder: str, settle_seconds: float, *, has_leases: bool = False) -> None:
        self._folder = folder
        self.settle_seconds = settle_seconds
        self._has_leases = has_leases
        self._ready: dict[str, None] = {}
        self._created: dict[str, _Creation] = {}  # producers' own names too, as they become others
        self._renamed: dict[int, _Creation] = {}  # by inotify's cookie, until the new name comes
        self._settling: dict[str, _Settling] = {}
        self._skipped: dict[str, int] = {}  # files that cannot be taken, and their ctime then
        self._given_back: set[str] = set()  # names whose next move to here is the service's own
        self._next_scan = 0.0
        self._has_more = False
        self.folders: set[str] = set()
        """Names of folders, which the service does not take."""
        self._unreported: list[str] = []
        self._events = FolderEvents(folder)

    def close(self) -> None:
        self._events.close()

    def fileno(self) -> int:
        """The descriptor that is readable when ``read_events`` has something to read."""
        return self._events.fileno()

    # --- questions ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many files are known to be whole."""
        return len(self._ready)

    def pop(self) -> str | None:
        """The next whole file, or ``None``."""
        if not self._ready and self._has_more:
            self.scan()
        for name in self._ready:
            del self._ready[name]
            return name
        return None

    def put_back(self, name: str) -> None:
        """Take back a name that ``pop`` gave: the service could not take the file for a reason of its own."""
        self._ready[name] = None

    def settle(self, name: str) -> None:
        """Wait again until a file is whole that the service gives back, as its producer still writes it."""
        self._given_back.add(name)
        self._ready.pop(name, None)
        self._settle(name, 0, max(self.settle_seconds, _LONGEST_WAIT))

    def skip(self, name: str) -> bool:
        """Ignore a file that cannot be taken until it changes.

        Returns:
            Whether this is news.
        """
        try:
            changed = os.lstat(f"{self._folder}/{name}").st_ctime_ns
        except FileNotFoundError:
            return False
        is_news = self._skipped.get(name) != changed
        self._skipped[name] = changed
        return is_news

    def new_folders(self) -> list[str]:
        """Names of the folders that came since the last call."""
        found, self._unreported = self._unreported, []
        return found

    def seconds_to_wait(self) -> float:
        """Seconds until ``look`` has something to do."""
        moments = [one.check_at for one in self._settling.values()]
        moments += [one.check_at for one in self._created.values() if not one.opens]
        return max(min([self._next_scan, *moments]) - time.monotonic(), 0)

    # --- looking ------------------------------------------------------------------------------------

    def look(self) -> None:
        """Do what is due: see whether files have settled, and scan the folder now and then.

        Raises:
            OSError: The file system fails.
        """
        now = time.monotonic()
        for name, one in list(self._settling.items()):
            if now >= one.check_at:
                del self._settling[name]
                self._consider(name, one)
        for name, creation in list(self._created.items()):
            if now >= creation.check_at and not creation.opens:
                del self._created[name]
                if is_for_us(name):
                    self._consider(name)
        if now >= self._next_scan:
            self.scan()

    def scan(self) -> None:
        """Look at every file in the folder.

        Raises:
            OSError: The file system fails.
        """
        found = []
        folders = set()
        self._next_scan = time.monotonic() + _SCAN_SECONDS
        self._renamed.clear()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if is_for_us(entry.name) and entry.is_dir(follow_symlinks=False):
                    folders.add(entry.name)
                elif self._is_new(entry.name):
                    with contextlib.suppress(FileNotFoundError):
                        found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
        self.folders &= folders
        for name in sorted(folders):
            self._note_folder(name)
        self._add_created()
        room = max(_MOST_READY - len(self._ready), 0)
        for _, name in heapq.nsmallest(room, found):
            self._consider(name)
        self._has_more = len(found) > room

    def _add_created(self) -> None:
        """Add the created files that have no writer any more, though the events do not say so."""
        for name in [name for name in self._created if is_for_us(name)]:
            state = self._examine(name)
            if state is not None and state.is_written is False:
                self._forget(name)
                self._add_closed(name)

    def rescan(self, seconds: float) -> None:
        """Forget what the events said, as some are lost, and scan the folder in ``seconds``."""
        self._created.clear()
        self._renamed.clear()
        self._given_back.clear()
        self._next_scan = time.monotonic() + seconds

    def _is_new(self, name: str) -> bool:
        return is_for_us(name) and not any(name in known for known in (self._ready, self._created, self._settling))

    def _consider(self, name: str, before: _Settling | None = None) -> None:
        """Find out whether a file is whole whose end nobody announced.

        Args:
            name: Name of the file.
            before: What the watcher knew of it when it last looked.
        """
        state = self._examine(name)
        if state is None or self._skipped.get(name) == state.changed:
            return
        self._skipped.pop(name, None)
        age = time.time() - state.changed / 1e9
        if not state.is_file:
            self._add(name)  # the service takes it, and refuses it
        elif state.is_written:
            self._settle(name, state.changed, self._next_wait(before), was_written=True)
        elif state.names > 1 and 0 <= age < _LINK_SECONDS:
            self._settle(name, 0, self._next_wait(before))
        elif age >= self.settle_seconds or (before is not None and self._has_settled(before, state)):
            self._add(name)
        else:
            # An age below 0: somebody set the clock back. Then only the monotonic clock counts.
            self._settle(name, state.changed, self.settle_seconds - (age if age > 0 and before is None else 0))

    def _examine(self, name: str, *, opens: bool = True) -> FileState | None:
        """Examine a file; ``None`` where there is none.

        Args:
            name: Name of the file.
            opens: Whether the watcher may open it. That makes events, which the kernel may merge with others.
        """
        state = examine(f"{self._folder}/{name}", has_leases=self._has_leases and opens)
        if state is not None and state.is_folder:
            self._note_folder(name)
            return None
        return state

    @staticmethod
    def _has_settled(before: _Settling, state: FileState) -> bool:
        return before.changed == state.changed or (before.was_written and state.is_written is False)

    def _settle(self, name: str, changed: int, wait: float, *, was_written: bool = False) -> None:
        self._settling[name] = _Settling(changed, time.monotonic() + wait, wait, was_written)

    @staticmethod
    def _next_wait(before: _Settling | None) -> float:
        return _SHORTEST_WAIT if before is None else min(max(2 * before.wait, _SHORTEST_WAIT), _LONGEST_WAIT)

    def _note_folder(self, name: str) -> None:
        if name not in self.folders:
            self.folders.add(name)
            self._unreported.append(name)

    # --- events -------------------------------------------------------------------------------------

    def read_events(self) -> None:
        """Read what inotify announces; does not wait.

        Raises:
            SandboxError: The folder itself is gone.
        """
        for event in self._events.read():
            self._see(event)

    def _see(self, event: Event) -> None:
        match event.happening:
            case Happening.FOLDER_CAME if is_for_us(event.name):
                self._note_folder(event.name)
            case Happening.FOLDER_WENT:
                self.folders.discard(event.name)
            case Happening.EVENTS_LOST:
                self.rescan(0.0)
            case _:
                self._see_file(event, self._created.get(event.name))

    def _see_file(self, event: Event, creation: _Creation | None) -> None:
        name = event.name
        match event.happening:
            case Happening.CREATED:
                self._see_created(name)
            case Happening.OPENED if creation is not None:
                creation.opens += 1
            case Happening.WRITER_CLOSED:
                self._see_writer_closed(name, creation)
            case Happening.READER_CLOSED if creation is not None:
                self._see_reader_closed(name, creation)
            case Happening.MOVED_HERE:
                self._see_moved(name, self._renamed.pop(event.cookie, None))
            case Happening.MOVED_AWAY | Happening.REMOVED:
                self._forget(name)
                if creation is not None and event.happening is Happening.MOVED_AWAY:
                    self._renamed[event.cookie] = creation

    def _see_created(self, name: str) -> None:
        state = self._examine(name, opens=False)
        if state is None or (state.is_file and state.names == 1):
            # It may have another name by now, and still be open.
            is_empty = state is not None and state.size == 0
            self._created[name] = _Creation(is_empty, time.monotonic() + _OPEN_SECONDS)
        elif is_for_us(name):
            self._consider(name)

    def _see_writer_closed(self, name: str, creation: _Creation | None) -> None:
        """A writer has closed the file. Others may have it open still, to write or to read it."""
        if creation is not None:
            creation.opens = max(creation.opens - 1, 0)
            creation.is_closed = True
            if creation.opens and not is_for_us(name):
                return
        self._forget(name)
        if not is_for_us(name):
            return
        if creation is not None and creation.opens:
            self._consider_open(name)
        else:
            self._add_closed(name)

    def _see_reader_closed(self, name: str, creation: _Creation) -> None:
        creation.opens = max(creation.opens - 1, 0)
        if creation.opens or not is_for_us(name):
            return
        state = self._examine(name)
        if state is not None and state.is_written is False:
            self._forget(name)
            self._add_closed(name)
        elif state is not None and creation.was_empty and state.size:
            # Its writer opened it under this name, so the writer's close will be announced. The next scan looks
            # at the file if it is not.
            creation.check_at = self._next_scan
        else:
            self._forget(name)
            self._consider(name)

    def _see_moved(self, name: str, creation: _Creation | None) -> None:
        if name in self._given_back:
            self._given_back.discard(name)
            return
        self._forget(name)
        if creation is not None and not (creation.is_closed and is_for_us(name)):
            self._created[name] = creation
        elif creation is not None and creation.opens:
            self._consider_open(name)
        elif is_for_us(name):
            self._add_closed(name)

    def _add_closed(self, name: str) -> None:
        """Add a file whose end was announced, unless the kernel says that it has another writer."""
        state = self._examine(name)
        if state is None:
            return
        if state.is_written or state.names > 1:
            self._consider(name)
        else:
            self._add(name)

    def _consider_open(self, name: str) -> None:
        """Consider a file that a writer closed and another process, perhaps a reader, still has open."""
        state = self._examine(name)
        if state is not None and state.is_written is False:
            self._add_closed(name)
        elif state is not None:
            self._settle(name, state.changed, self.settle_seconds)

    def _add(self, name: str) -> None:
        if len(self._ready) < _MOST_READY:
            self._ready[name] = None
        else:
            self._has_more = True

    def _forget(self, name: str) -> None:
        self._ready.pop(name, None)
        self._created.pop(name, None)
        self._settling.pop(name, None)
        self._skipped.pop(name, None)
