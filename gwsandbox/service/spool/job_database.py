"""The job database: an SQLite file with a row for each file that the service took, and for each attempt on it.

Its content survives ``kill -9`` and a power cut: each method is one transaction, on the disk when it returns.
Other programs may read it meanwhile (WAL)::

    sqlite3 ledger.sqlite3 "SELECT CAST(name AS TEXT), state, outcome FROM jobs JOIN attempts ON job = id"

``spool.py`` explains the states, and how a job goes from one to the next.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from gwsandbox.model.errors import SandboxError

_VERSION = 1
_SCHEMA = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name BLOB NOT NULL,              -- in incoming/, as bytes
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    state TEXT NOT NULL,
    output TEXT NOT NULL,            -- file name of the output while the worker writes it
    target BLOB,                     -- name in done/ or quarantine/, or back in incoming/
    taken_at REAL NOT NULL,          -- seconds since the Epoch, as all times
    ended_at REAL
);
CREATE INDEX jobs_unfinished ON jobs (state) WHERE state NOT IN ('DONE', 'QUARANTINED');
CREATE TABLE attempts (
    job INTEGER NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,         -- from 1
    started_at REAL NOT NULL,
    ended_at REAL,
    outcome TEXT,                    -- gwsandbox.Outcome, INTERRUPTED, REFUSED or CHANGED; NULL while it runs
    detail TEXT,
    exit_code INTEGER,
    wall_seconds REAL,
    cpu_seconds REAL,
    memory_peak_bytes INTEGER,
    limits TEXT NOT NULL,            -- JSON
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
"""

_PRAGMAS = ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON", "busy_timeout = 10000")


class State(enum.Enum):
    """The state of a job; ``spool.py`` explains each."""

    RUNNING = enum.auto()
    WAITING = enum.auto()
    PUBLISHING = enum.auto()
    REJECTING = enum.auto()
    RETURNING = enum.auto()
    DONE = enum.auto()
    QUARANTINED = enum.auto()
    RETURNED = enum.auto()
    VANISHED = enum.auto()


AT_REST = frozenset({State.DONE, State.QUARANTINED, State.RETURNED, State.VANISHED})
"""States in which nothing of a job is left in ``work/``."""

_MOVES = {
    State.RUNNING: {State.WAITING, State.PUBLISHING, State.REJECTING, State.RETURNING, State.VANISHED},
    State.WAITING: {State.RUNNING, State.RETURNING, State.REJECTING, State.VANISHED},
    State.PUBLISHING: {State.DONE},
    State.REJECTING: {State.QUARANTINED},
    State.RETURNING: {State.RETURNED},
    State.RETURNED: {State.RUNNING, State.QUARANTINED},
    State.QUARANTINED: {State.RETURNED},
}


@dataclass(frozen=True, slots=True)
class Job:
    """A file that the service took, as its row in the database says.

    Args:
        number: The job's number.
        name: Name of the file in ``incoming/``.
        inode: Inode of the file.
        output: Name of the output while the worker writes it.
        state: State of the job.
        target: Name that the file or its output gets when it leaves ``work/``.
        attempt: Number of the last attempt that began.
    """

    number: int
    name: str
    inode: int
    output: str
    state: State
    target: str | None = None
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """How an attempt ended: the part of its row that its end fills in. Times are seconds since the Epoch."""

    outcome: str
    ended_at: float | None = None
    exit_code: int | None = None
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRow:
    """An attempt as the database has it. ``outcome`` and what follows from the end are ``None`` while it runs."""

    job: int
    number: int
    started_at: float
    limits: dict[str, Any]
    ended_at: float | None = None
    outcome: str | None = None
    detail: str | None = None
    exit_code: int | None = None
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None


_END_COLUMNS = tuple(field.name for field in fields(AttemptEnd))
_ROW_COLUMNS = tuple(field.name for field in fields(AttemptRow))
_SAVE_END = f"UPDATE attempts SET {', '.join(f'{name} = :{name}' for name in _END_COLUMNS)} "  # noqa: S608 - field names
_SAVE_END += "WHERE job = :job AND number = :number"
_READ_ROWS = f"SELECT {', '.join(_ROW_COLUMNS)} FROM attempts WHERE job = ? ORDER BY number"  # noqa: S608 - field names


class JobDatabase:
    """The open database.

    Raises:
        SandboxError: The file cannot be opened, or belongs to another program.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._path = path
        self._has_failed = False
        with contextlib.ExitStack() as undo:
            try:
                self._connection = sqlite3.connect(path, isolation_level=None)
                undo.callback(self._connection.close)
                for pragma in _PRAGMAS:
                    self._connection.execute(f"PRAGMA {pragma}")
                self._check_version()
            except sqlite3.Error as error:
                remedy = "see that it is on a local disk with room, or move it away to start a new one"
                raise SandboxError("open the job database", path=path, value=str(error), remedy=remedy) from error
            undo.pop_all()

    def _check_version(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0 and not self._connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            remedy = f"this gwsandbox reads version {_VERSION} only; move it away to start a new one"
            raise SandboxError("open the job database", path=self._path, value=f"version {version}", remedy=remedy)

    def close(self) -> None:
        self._connection.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._end_failed_transaction()
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
            self._connection.execute("COMMIT")
        except BaseException:
            self._has_failed = True
            with contextlib.suppress(sqlite3.Error):
                self._end_failed_transaction()
            raise

    def _end_failed_transaction(self) -> None:
        """Roll back a transaction whose end failed. Until then this connection would see what it wrote."""
        if self._has_failed:
            if self._connection.in_transaction:  # SQLite itself rolls back after some errors
                self._connection.execute("ROLLBACK")
            self._has_failed = False

    # --- the start of an attempt --------------------------------------------------------------------

    def take(self, name: str, inode: int, size: int, output: str, limits: dict[str, Any]) -> Job:
        """Make the job of a file that the service is about to take, and begin its first attempt.

        A file that the service gave back keeps its job: name, inode and size identify it. Its earlier attempts
        still count.
        """
        with self._transaction() as connection:
            row = connection.execute(
                "SELECT id FROM jobs WHERE state = ? AND target = ? AND inode = ? AND size = ?",
                (State.RETURNED.name, os.fsencode(name), inode, size),
            ).fetchone()
            if row is None:
                number = connection.execute(
                    "INSERT INTO jobs (name, inode, size, state, output, taken_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (os.fsencode(name), inode, size, State.RUNNING.name, output, time.time()),
                ).lastrowid
                assert number is not None
                job = Job(number, name, inode, output, State.RUNNING)
            else:
                job = self._move(self.job(row[0]), State.RUNNING)
            return self._begin(job, limits)

    def untake(self, job: Job) -> Job:
        """Forget the attempt that began: the file is still in ``incoming/``."""
        with self._transaction() as connection:
            connection.execute("DELETE FROM attempts WHERE job = ? AND number = ?", (job.number, job.attempt))
            left = connection.execute("SELECT 1 FROM attempts WHERE job = ?", (job.number,)).fetchone()
            if left is None:
                connection.execute("DELETE FROM jobs WHERE id = ?", (job.number,))
            else:
                connection.execute("UPDATE jobs SET state = ? WHERE id = ?", (State.RETURNED.name, job.number))
        return replace(job, state=State.RETURNED)

    def begin(self, job: Job, limits: dict[str, Any]) -> Job:
        """Begin another attempt on a job that waits."""
        with self._transaction():
            return self._begin(self._move(job, State.RUNNING), limits)

    def _begin(self, job: Job, limits: dict[str, Any]) -> Job:
        job = replace(job, attempt=job.attempt + 1)
        self._connection.execute(
            "INSERT INTO attempts (job, number, started_at, limits) VALUES (?, ?, ?, ?)",
            (job.number, job.attempt, time.time(), json.dumps(limits)),
        )
        return job

    # --- the end of an attempt ----------------------------------------------------------------------

    def end(self, job: Job, end: AttemptEnd, state: State, target: str | None = None) -> Job:
        """Note the end of the attempt that runs, and move its job to ``state``."""
        with self._transaction() as connection:
            connection.execute(_SAVE_END, {**asdict(end), "job": job.number, "number": job.attempt})
            return self._move(job, state, target)

    def move(self, job: Job, state: State, target: str | None = None) -> Job:
        """Move a job to its next state."""
        with self._transaction():
            return self._move(job, state, target)

    def retarget(self, job: Job, target: str) -> Job:
        """Change the name that a job is to get, as another file has it."""
        with self._transaction() as connection:
            connection.execute("UPDATE jobs SET target = ? WHERE id = ?", (os.fsencode(target), job.number))
        return replace(job, target=target)

    def _move(self, job: Job, state: State, target: str | None = None) -> Job:
        assert state in _MOVES.get(job.state, ()), f"job {job.number} cannot go from {job.state} to {state}"
        job = replace(job, state=state, target=job.target if target is None else target)
        self._connection.execute(
            "UPDATE jobs SET state = ?, target = ?, ended_at = ? WHERE id = ?",
            (
                state.name,
                None if job.target is None else os.fsencode(job.target),
                time.time() if state in AT_REST else None,
                job.number,
            ),
        )
        return job

    def check_writable(self) -> None:
        """Write to the disk.

        Raises:
            sqlite3.Error: That failed.
        """
        with self._transaction() as connection:
            connection.execute(f"PRAGMA user_version = {_VERSION}")

    # --- out of quarantine --------------------------------------------------------------------------

    def quarantined(self) -> list[Job]:
        """The jobs whose files went to quarantine, newest first."""
        self._end_failed_transaction()
        query = "SELECT id FROM jobs WHERE state = ? ORDER BY id DESC"
        return [self.job(number) for (number,) in self._connection.execute(query, (State.QUARANTINED.name,)).fetchall()]

    def reopen(self, job: Job, target: str) -> Job:
        """Let a job go on whose file goes from quarantine to ``incoming/``, under the name ``target``."""
        return self.move(job, State.RETURNED, target)

    def quarantine_again(self, job: Job, target: str) -> Job:
        """Undo ``reopen``: the file stays in quarantine, under the name ``target``."""
        return self.move(job, State.QUARANTINED, target)

    # --- questions ----------------------------------------------------------------------------------

    def unfinished(self) -> list[Job]:
        """The jobs that may have files in ``work/``, oldest first."""
        self._end_failed_transaction()
        marks = ", ".join("?" * len(AT_REST))
        rows = self._connection.execute(
            f"SELECT id FROM jobs WHERE state NOT IN ({marks}) ORDER BY id",  # noqa: S608 - only question marks
            [state.name for state in AT_REST],
        ).fetchall()
        return [self.job(number) for (number,) in rows]

    def job(self, number: int) -> Job:
        """The job of this number, as the database has it."""
        self._end_failed_transaction()
        name, inode, output, state, target, attempt = self._connection.execute(
            "SELECT name, inode, output, state, target, (SELECT max(number) FROM attempts WHERE job = id) "
            "FROM jobs WHERE id = ?",
            (number,),
        ).fetchone()
        target = None if target is None else os.fsdecode(target)
        return Job(number, os.fsdecode(name), inode, output, State[state], target, attempt or 0)

    def attempts(self, job: Job) -> list[AttemptRow]:
        """The attempts on a job, oldest first."""
        self._end_failed_transaction()
        rows = [
            dict(zip(_ROW_COLUMNS, row, strict=True)) for row in self._connection.execute(_READ_ROWS, (job.number,))
        ]
        return [AttemptRow(**{**row, "limits": json.loads(row["limits"])}) for row in rows]
