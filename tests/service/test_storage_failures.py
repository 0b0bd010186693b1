"""Every operation on files fails once, and for a while: no file is lost, none is published by half, the service lives.

The whole service runs in this process, with its own loop, folders, watcher and job database. Only its guests are
played: a worker that takes no time makes it possible to try each of several hundred points.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from spools import SpoolFolder

from gwsandbox import Outcome, Task, TaskResult
from gwsandbox.linux import open_beneath, syscalls
from gwsandbox.service import service as service_module
from gwsandbox.service import storage_guard
from gwsandbox.service.config.reader import read_config
from gwsandbox.service.service import Service
from gwsandbox.service.spool import file_state, files, folders, incoming, output, spool, trash
from gwsandbox.service.spool.spool import StagedAttempt
from gwsandbox.service.worker_pool import Finished

ERRORS = [errno.ENOSPC, errno.EROFS, errno.EIO]
OPERATIONS = (
    *("open", "write", "fsync", "mkdir", "makedirs", "rename", "unlink", "rmdir", "chmod", "utime", "sendfile"),
    *("lstat", "fstat", "listdir", "scandir"),
)


class Disk:
    """Counts the operations on files, and fails some of them.

    Args:
        first: Number of the first operation that fails, from 1; 0: none fails.
        times: How many fail.
        error: The errno.
        commits: Whether a COMMIT that fails is on the disk all the same: SQLite could not make sure of it.
    """

    def __init__(self, first: int = 0, times: int = 1, error: int = errno.EIO, *, commits: bool = False) -> None:
        self.count = 0
        self.failed: list[str] = []
        self.is_on = False
        self._range = range(first, first + times) if first else range(0)
        self._error = error
        self._commits = commits

    def counted(self, name: str, function: Callable[..., Any], *, sql: bool = False) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if not self.is_on:
                return function(*args, **kwargs)
            self.count += 1
            if self.count not in self._range:
                return function(*args, **kwargs)
            self.failed.append(f"{name} {args[:2]}")
            if not sql:
                raise OSError(self._error, os.strerror(self._error), str(args[0]))
            if args[1] == "COMMIT" and self._commits:
                function(*args, **kwargs)
            raise sqlite3.OperationalError("disk I/O error")

        return operation

    def install(self, patch: pytest.MonkeyPatch) -> None:
        disk = self

        class Faulty:
            """The module os, with operations that fail."""

            def __getattr__(self, name: str) -> Any:
                found = getattr(os, name)
                return disk.counted(name, found) if name in OPERATIONS else found

        for module in (files, folders, incoming, file_state, output, spool, trash, open_beneath):
            patch.setattr(module, "os", Faulty())
        for name in ("renameat2", "openat2"):
            patch.setattr(syscalls, name, self.counted(name, getattr(syscalls, name)))

        class Connection(sqlite3.Connection):
            execute = self.counted("execute", sqlite3.Connection.execute, sql=True)

        connect = sqlite3.connect
        patch.setattr(sqlite3, "connect", lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs))


class Worker:
    """Plays the worker pool: what it starts has ended when it is asked."""

    slots = 2
    needs_another = is_probing = False
    outcomes: tuple[Outcome, ...] = ()

    def __init__(self, _config: object) -> None:
        self._started: list[StagedAttempt] = []
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK)
        self._outcomes = list(self.outcomes)

    @property
    def has_room(self) -> bool:
        return len(self) < self.slots

    def __len__(self) -> int:
        return len(self._started)

    def start(self) -> list[str]:
        return []

    def fileno(self) -> int:
        return self._reader

    def close(self) -> None:
        for fd in (self._reader, self._writer):
            with contextlib.suppress(OSError):
                os.close(fd)

    def cancel(self) -> None:
        pass

    def check(self) -> None:
        pass

    def seconds_to_wait(self) -> None:
        return None

    def start_attempt(self, staged: StagedAttempt) -> None:
        self._started.append(staged)
        os.write(self._writer, b"x")

    def finished(self) -> list[Finished]:
        started, self._started = self._started, []
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 100)
        return [Finished(staged, self._work(staged)) for staged in started]

    def _work(self, staged: StagedAttempt) -> TaskResult:
        data = Path(staged.paths.source).read_bytes()
        Path(staged.paths.output).write_bytes(data.upper())
        Path(staged.paths.source).unlink()  # as gzip does
        outcome = self._outcomes.pop(0) if self._outcomes else Outcome.SUCCEEDED
        return TaskResult(Task(print), success=outcome is Outcome.SUCCEEDED, result=b"", outcome=outcome)


WAYS = {
    "done": (),
    "quarantine": (Outcome.FAILED,),
    "again": (Outcome.TIMED_OUT, Outcome.SUCCEEDED),
    "back": (Outcome.CANCELLED,),
}


def check_nothing_is_lost(folder: SpoolFolder, where: str) -> None:
    inputs = [path.read_text() for path in (folder.root / "work").glob("*/input*")]
    for name in ("incoming", "quarantine"):
        files_there = [path for path in (folder.root / name).iterdir() if not path.name.endswith(".report.json")]
        inputs += [path.read_text() for path in files_there if not path.name.startswith(".")]
    done = [path.read_text() for path in (folder.root / "done").iterdir() if not path.name.startswith(".")]
    assert done in ([], ["CONTENT"]), f"{where}: half a file, or two: {folder.tree()}"
    assert "content" in inputs or done, f"{where}: lost: {folder.tree()}"


def serve(folder: SpoolFolder, disk: Disk, where: str) -> None:
    """Serve until nothing is left to do."""
    with Service(str(folder.config), read_config(str(folder.config))) as service:
        service._start_supervisor()
        disk.is_on = True
        folder.put("a.txt", "content")
        service._dispatcher.recover()
        service._scan()
        for _ in range(400):
            service._turn()
            check_nothing_is_lost(folder, where)
            if folder.is_quiet() and service._spool.trash.is_empty and not len(service._dispatcher.storage):
                break
        else:
            pytest.fail(f"{where}: it does not end: {folder.tree()}; failed: {disk.failed}")
        disk.is_on = False


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "WorkerPool", Worker)
    monkeypatch.setattr(service_module, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(storage_guard, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(incoming, "_SHORTEST_WAIT", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _fd: None)  # what it waits for is another test's


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the service writes to stderr, which is an entry for each failure."""
    saved = os.dup(2)
    try:
        with open(os.devnull, "w", encoding="ascii") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def run_with(tmp_path: Path, disk: Disk, where: str) -> None:
    root = tmp_path / where.replace(" ", "-")
    root.mkdir()
    folder = SpoolFolder(root)
    folder.configure(top="attempts = 3\ninterruptions = 100")
    with pytest.MonkeyPatch.context() as patch, quiet():
        disk.install(patch)
        serve(folder, disk, f"{where}: {disk.failed}")
    expected = ["QUARANTINED"] if Worker.outcomes == WAYS["quarantine"] else ["DONE"]
    states = [state for (state,) in folder.rows("SELECT state FROM jobs")]
    assert [state for state in states if state not in {"VANISHED", "RETURNED"}] == expected, f"{where}: {disk.failed}"


@pytest.mark.long
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    ("times", "commits"), [(1, False), (1, True), (40, False)], ids=["once", "once late", "for a while"]
)
@pytest.mark.parametrize("way", WAYS)
def test_each_operation_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, times: int, commits: bool
) -> None:
    monkeypatch.setattr(Worker, "outcomes", WAYS[way])
    counter = Disk()
    run_with(tmp_path, counter, "none")
    assert counter.count > 60, "it does not count"
    tried = 0
    for number in range(1, counter.count + 1):
        for error in ERRORS if way == "done" and not commits else [ERRORS[number % len(ERRORS)]]:
            disk = Disk(number, times, error, commits=commits)
            run_with(tmp_path, disk, f"{number} {errno.errorcode[error]}")
            tried += bool(disk.failed)
    print(f"{tried} runs, in each of which another operation failed")
    # The number of operations varies by a few with the moment at which the watcher looks.
    assert tried > 0.9 * counter.count


@pytest.mark.usefixtures("_quick")
def test_a_disk_that_stays_broken_does_not_keep_the_service_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file waits whose next attempt is due, another is ready, and a step has failed."""
    monkeypatch.setattr(Worker, "outcomes", (Outcome.TIMED_OUT,))
    monkeypatch.setattr(storage_guard, "RETRY_SECONDS", 1000.0)
    monkeypatch.setattr(service_module, "RETRY_SECONDS", 1000.0)
    folder = SpoolFolder(tmp_path)
    folder.configure(top="settle_seconds = 1000")
    with Service(str(folder.config), read_config(str(folder.config))) as service, quiet():
        service._start_supervisor()
        service._dispatcher.recover()
        folder.put("a", "content")
        while not service._dispatcher.waiting:
            service._turn()
        service._dispatcher.storage.fail(OSError(errno.EROFS, "read-only"))
        folder.put("b", "content")
        for _ in range(10):
            if (service._seconds_to_wait() or 0) > 1:
                break
            service._turn()
        else:
            pytest.fail("it never waits")
        assert "no file is taken: [Errno 30] read-only" in service._status()
    assert folder.names("done") == set()
