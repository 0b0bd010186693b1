"""The way of a file through the spool: killed before any step of it, the next start loses and doubles nothing."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from spool_steps import CANCELLED, NAME, OOM, SUCCEEDED, opened, publish, recover, take, work
from spools import SpoolFolder

from gwsandbox import SandboxError
from gwsandbox.linux import syscalls
from gwsandbox.service.spool.job_database import JobDatabase, State
from gwsandbox.service.spool.spool import Spool

KILLED = 77

# --- the ways a file can go ------------------------------------------------------------------------------


def to_done(spool: Spool, database: JobDatabase) -> None:
    job = take(spool, NAME)
    work(spool, job)
    publish(spool, job)


def to_quarantine(spool: Spool, database: JobDatabase) -> None:
    job = take(spool, NAME)
    work(spool, job)
    spool.reject(job, OOM, {"why": "it is bad"})


def to_done_at_the_second_try(spool: Spool, database: JobDatabase) -> None:
    job = take(spool, NAME)
    work(spool, job)
    job = database.begin(spool.wait(job, OOM), {})
    work(spool, job)
    publish(spool, job)


def back_and_then_to_done(spool: Spool, database: JobDatabase) -> None:
    job = take(spool, NAME)
    work(spool, job)
    spool.give_back(job, CANCELLED)
    to_done(spool, database)


def waits_and_goes_back(spool: Spool, database: JobDatabase) -> None:
    spool.give_back(spool.wait(take(spool, NAME), OOM))


Way = Callable[[Spool, JobDatabase], None]
WAYS = [to_done, to_quarantine, to_done_at_the_second_try, back_and_then_to_done, waits_and_goes_back]


def die_before_step(number: int) -> None:
    """Let this process be killed before it does the step of this number, of all that others can see."""
    left = [number]

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os._exit(KILLED)
            return function(*args, **kwargs)

        return step

    for module, names in (
        (syscalls, ["renameat2"]),
        (os, ["mkdir", "rename", "unlink", "rmdir", "fsync", "chmod", "open", "sendfile", "utime"]),
    ):
        for name in names:
            setattr(module, name, counted(getattr(module, name)))

    class Connection(sqlite3.Connection):
        execute = counted(sqlite3.Connection.execute)

    connect = sqlite3.connect
    sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs)  # type: ignore[assignment]


def run_and_die(folder: SpoolFolder, way: Way, step: int) -> bool:
    """Whether it was killed; else it came to its end before."""
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            die_before_step(step)
            with opened(folder) as (spool, database):
                way(spool, database)
                code = 0
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in {0, KILLED}
    return code == KILLED


def finish(folder: SpoolFolder) -> None:
    """What the next start does, until nothing is left to do."""
    with opened(folder) as (spool, database):
        recover(spool, database)
        for waiting in database.unfinished():
            job = database.begin(waiting, {})
            work(spool, job)
            publish(spool, job)
        for name in folder.names("incoming"):
            job = take(spool, name)
            work(spool, job)
            publish(spool, job)
        while not spool.trash.is_empty:
            spool.trash.empty(1)


def check(folder: SpoolFolder, where: str) -> None:
    done = [path.read_bytes() for path in (folder.root / "done").iterdir() if not path.name.startswith(".")]
    rejected = [path for path in (folder.root / "quarantine").iterdir() if not path.name.endswith(".report.json")]
    assert len(done) + len(rejected) == 1, f"{where}: {folder.tree()}"
    assert done in ([], [b"CONTENT"]), where
    for path in rejected:
        assert path.read_bytes() == b"content"
        assert path.with_name(f"{path.name}.report.json").exists(), f"{where}: {folder.tree()}"
    assert folder.names("incoming") == folder.names("work") == set(), f"{where}: {folder.tree()}"
    assert os.listdir(folder.root / "work" / "trash") == []
    states = {state for (state,) in folder.rows("SELECT state FROM jobs")}
    assert states <= {"DONE", "QUARANTINED"}, f"{where}: {states}"
    rows = folder.rows("SELECT outcome FROM attempts ORDER BY job, number")
    assert rows, where
    assert all(outcome is not None for (outcome,) in rows), f"{where}: {rows}"


@pytest.mark.parametrize("way", WAYS)
def test_killed_before_any_step(tmp_path: Path, way: Way) -> None:
    was_killed, step = True, 0
    while was_killed:
        step += 1
        root = tmp_path / str(step)
        root.mkdir()
        folder = SpoolFolder(root)
        folder.put(NAME, "content")
        was_killed = run_and_die(folder, way, step)
        finish(folder)
        check(folder, f"{way.__name__} killed before step {step}")
    assert step > 40  # so many there are at least


@pytest.mark.parametrize("way", WAYS)
def test_killed_again_while_it_recovers(tmp_path: Path, way: Way) -> None:
    for step in range(30, 90, 12):
        for again in range(20, 60, 10):
            root = tmp_path / f"{step}-{again}"
            root.mkdir()
            folder = SpoolFolder(root)
            folder.put(NAME, "content")
            run_and_die(folder, way, step)
            run_and_die(folder, recover, again)
            finish(folder)
            check(folder, f"{way.__name__} killed before step {step}, and its recovery before {again}")


# --- the database ------------------------------------------------------------------------------------------


def test_job_cannot_leave_a_final_state(tmp_path: Path) -> None:
    with contextlib.closing(JobDatabase(str(tmp_path / "l"))) as database:
        job = database.take("a", 1, 1, "output", {})
        job = database.move(database.end(job, SUCCEEDED, State.PUBLISHING, "a"), State.DONE)
        for state in State:
            with pytest.raises(AssertionError):
                database.move(job, state)


def test_database_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "l"
    path.write_bytes(b"not a database at all, but long enough to be looked at as one")
    with pytest.raises(SandboxError, match=r"open the job database.*not a database.*move it away"):
        JobDatabase(str(path))
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")
    with pytest.raises(SandboxError, match=r"open the job database.*version"):
        JobDatabase(str(path))


def test_database_can_be_read_meanwhile(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    with contextlib.closing(JobDatabase(str(folder.database))) as database:
        job = database.take(NAME, 1, 1, "output", {"memory": 5})
        assert folder.rows("SELECT name, state FROM jobs") == [(os.fsencode(NAME), "RUNNING")]
        database.end(job, OOM, State.WAITING)
        (row,) = database.attempts(job)
        assert (row.outcome, row.limits) == ("OUT_OF_MEMORY", {"memory": 5})
