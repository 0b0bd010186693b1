"""The ledger: an SQLite file with a row for each file that was taken (``jobs``) and for each attempt on it.

What it says survives ``kill -9`` and a power cut: a method is one transaction, on the disk when it returns.
Others may read it meanwhile (WAL)::

    sqlite3 ledger.sqlite3 "SELECT CAST(name AS TEXT), state, outcome FROM jobs JOIN attempts ON job = id"

What the states mean, and how a job goes from one to the next, is told in ``spool.py``.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gwsandbox.model.errors import SandboxError

_VERSION = 1
_SCHEMA = """
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name BLOB NOT NULL,              -- in incoming/, as the bytes it is
    inode INTEGER NOT NULL,
    size INTEGER NOT NULL,
    state TEXT NOT NULL,
    output TEXT NOT NULL,            -- file name of the output while it is made
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
    outcome TEXT,                    -- gwsandbox.Outcome, INTERRUPTED or REFUSED; NULL while it runs
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
    """Of a job; see ``spool.py``."""

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
    State.RETURNED: {State.RUNNING},
}


@dataclass(slots=True)
class Job:
    """A file that was taken.

    Args:
        number: The job's own.
        name: Of the file, in ``incoming/``.
        inode: Of the file.
        output: Name of the output while it is made.
        state: As the ledger has it.
        target: Where it is on its way to, without the folder.
        attempt: Number of the last attempt that was begun.
    """

    number: int
    name: str
    inode: int
    output: str
    state: State
    target: str | None = None
    attempt: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an attempt ended: what goes into its row."""

    outcome: str
    detail: str = ""
    exit_code: int | None = None
    wall_seconds: float | None = None
    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None


class Ledger:
    """The file, open.

    Raises:
        SandboxError: It cannot be opened, or is another program's.
    """

    def __init__(self, path: str) -> None:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        self._path = path
        with contextlib.ExitStack() as undo:
            try:
                self._database = sqlite3.connect(path, isolation_level=None)
                undo.callback(self._database.close)
                for pragma in _PRAGMAS:
                    self._database.execute(f"PRAGMA {pragma}")
                self._check_version()
            except sqlite3.Error as error:
                remedy = "see that it is on a local disk with room, or move it away to start a new one"
                raise SandboxError("open the ledger", path=path, value=str(error), remedy=remedy) from error
            undo.pop_all()

    def _check_version(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version == 0 and not self._database.execute("SELECT 1 FROM sqlite_master").fetchone():
            self._database.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            remedy = f"this gwsandbox reads version {_VERSION} only; move it away to start a new one"
            raise SandboxError("open the ledger", path=self._path, value=f"version {version}", remedy=remedy)

    def close(self) -> None:
        self._database.close()

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
        except BaseException:
            self._database.execute("ROLLBACK")
            raise
        self._database.execute("COMMIT")

    # --- the beginning ------------------------------------------------------------------------------

    def take(self, name: str, inode: int, size: int, output: str, limits: dict[str, Any]) -> Job:
        """A job for a file that is about to be taken, and its first attempt; or its next.

        A file that we gave back is known by its name, inode and size, and its attempts still count.
        """
        with self._transaction() as database:
            row = database.execute(
                "SELECT id FROM jobs WHERE state = ? AND target = ? AND inode = ? AND size = ?",
                (State.RETURNED.name, os.fsencode(name), inode, size),
            ).fetchone()
            if row is None:
                number = database.execute(
                    "INSERT INTO jobs (name, inode, size, state, output, taken_at) VALUES (?, ?, ?, ?, ?, ?)",
                    (os.fsencode(name), inode, size, State.RUNNING.name, output, time.time()),
                ).lastrowid
                assert number is not None
                job = Job(number, name, inode, output, State.RUNNING)
            else:
                job = self._job(row[0])
                self._move(job, State.RUNNING)
            self._begin(job, limits)
        return job

    def untake(self, job: Job) -> None:
        """The file could not be taken after all: as if it had never been tried."""
        with self._transaction() as database:
            database.execute("DELETE FROM attempts WHERE job = ? AND number = ?", (job.number, job.attempt))
            left = database.execute("SELECT 1 FROM attempts WHERE job = ?", (job.number,)).fetchone()
            if left is None:
                database.execute("DELETE FROM jobs WHERE id = ?", (job.number,))
            else:
                database.execute("UPDATE jobs SET state = ? WHERE id = ?", (State.RETURNED.name, job.number))

    def begin(self, job: Job, limits: dict[str, Any]) -> None:
        """Another attempt on a job that waits."""
        with self._transaction():
            self._move(job, State.RUNNING)
            self._begin(job, limits)

    def _begin(self, job: Job, limits: dict[str, Any]) -> None:
        job.attempt += 1
        self._database.execute(
            "INSERT INTO attempts (job, number, started_at, limits) VALUES (?, ?, ?, ?)",
            (job.number, job.attempt, time.time(), json.dumps(limits)),
        )

    # --- the end ------------------------------------------------------------------------------------

    def end(self, job: Job, ending: Ending, state: State, target: str | None = None) -> None:
        """The attempt that runs has ended, and this is what becomes of the job."""
        values = {**asdict(ending), "ended_at": time.time(), "job": job.number, "number": job.attempt}
        with self._transaction() as database:
            database.execute(
                "UPDATE attempts SET ended_at = :ended_at, outcome = :outcome, detail = :detail, "
                "exit_code = :exit_code, wall_seconds = :wall_seconds, cpu_seconds = :cpu_seconds, "
                "memory_peak_bytes = :memory_peak_bytes WHERE job = :job AND number = :number",
                values,
            )
            self._move(job, state, target)

    def move(self, job: Job, state: State, target: str | None = None) -> None:
        """A job goes on to its next state."""
        with self._transaction():
            self._move(job, state, target)

    def retarget(self, job: Job, target: str) -> None:
        """It has to go by another name, as something of that name is there already."""
        with self._transaction() as database:
            database.execute("UPDATE jobs SET target = ? WHERE id = ?", (os.fsencode(target), job.number))
        job.target = target

    def _move(self, job: Job, state: State, target: str | None = None) -> None:
        assert state in _MOVES.get(job.state, ()), f"job {job.number} cannot go from {job.state} to {state}"
        job.state, job.target = state, job.target if target is None else target
        self._database.execute(
            "UPDATE jobs SET state = ?, target = ?, ended_at = ? WHERE id = ?",
            (
                state.name,
                None if job.target is None else os.fsencode(job.target),
                time.time() if state in AT_REST else None,
                job.number,
            ),
        )

    # --- questions ----------------------------------------------------------------------------------

    def unfinished(self) -> list[Job]:
        """The jobs of which something may be in ``work/``, the oldest first."""
        marks = ", ".join("?" * len(AT_REST))
        rows = self._database.execute(
            f"SELECT id FROM jobs WHERE state NOT IN ({marks}) ORDER BY id",  # noqa: S608 - only question marks
            [state.name for state in AT_REST],
        ).fetchall()
        return [self._job(number) for (number,) in rows]

    def _job(self, number: int) -> Job:
        name, inode, output, state, target, attempt = self._database.execute(
            "SELECT name, inode, output, state, target, (SELECT max(number) FROM attempts WHERE job = id) "
            "FROM jobs WHERE id = ?",
            (number,),
        ).fetchone()
        target = None if target is None else os.fsdecode(target)
        return Job(number, os.fsdecode(name), inode, output, State[state], target, attempt or 0)

    def outcomes(self, job: Job) -> Counter[str]:
        """How often each outcome ended an attempt on a job."""
        rows = self._database.execute(
            "SELECT outcome, count(*) FROM attempts WHERE job = ? AND outcome IS NOT NULL GROUP BY outcome",
            (job.number,),
        )
        return Counter(dict(rows.fetchall()))

    def attempts(self, job: Job) -> list[dict[str, Any]]:
        """The rows of a job's attempts, for its report."""
        cursor = self._database.execute("SELECT * FROM attempts WHERE job = ? ORDER BY number", (job.number,))
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        return [{**row, "limits": json.loads(row["limits"])} for row in rows]
