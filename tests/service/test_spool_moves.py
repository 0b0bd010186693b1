"""Each move of a file between the folders of a spool, with what a guest, a producer or a disk does to it."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest
from spool_steps import CANCELLED, OOM, opened, publish, recover, stage, take, work
from spools import SpoolFolder

from gwsandbox.linux import syscalls
from gwsandbox.service.spool import files
from gwsandbox.service.spool.files import Refused
from gwsandbox.service.spool.job_database import AttemptEnd, Job, JobDatabase, State
from gwsandbox.service.spool.output import NotOnDisk, StillWritten


def test_same_names_are_kept_apart(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    with opened(folder) as (spool, _):
        for _ in range(3):
            folder.put("a.pdf", "content")
            job = take(spool, "a.pdf")
            work(spool, job)
            publish(spool, job)
        for name in ("b", "b.report.json", "b"):
            folder.put(name, "content")
            spool.reject(take(spool, name), OOM, {})
    assert folder.names("done") == {"a.pdf", "a~2.pdf", "a~3.pdf"}
    assert folder.names("quarantine") == {
        *("b", "b.report.json"),
        *("b.report~5.json", "b.report~5.json.report.json"),
        *("b~6", "b~6.report.json"),
    }


def test_output_suffix_and_longest_names(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    long = "ä" * 125 + ".docx"
    with opened(folder) as (spool, _):
        spool.output_suffix = ".pdf"
        for name in ("a.docx", long):
            folder.put(name, "content")
            job = take(spool, name)
            spool.output_suffix = ".txt"  # as after a reload: what was taken before keeps its name
            work(spool, job)
            publish(spool, job)
            spool.output_suffix = ".pdf"
        folder.put(long, "content")
        job = take(spool, long)
        spool.reject(job, OOM, {})
    assert folder.names("done") == {"a.pdf", "ä" * 125 + ".pdf"}
    rejected = next(name for name in folder.names("quarantine") if name.endswith("~3.docx"))
    assert f"{rejected}.report.json" in folder.names("quarantine")


@pytest.mark.parametrize("kind", ["nothing", "link", "folder", "two names", "pipe"])
def test_output_that_is_no_plain_file(tmp_path: Path, kind: str) -> None:
    folder = SpoolFolder(tmp_path)
    folder.put("a", "content")
    with opened(folder) as (spool, database):
        job = take(spool, "a")
        output = stage(spool, job).output
        match kind:
            case "link":
                os.symlink("/etc/passwd", output)
            case "folder":
                os.mkdir(output)
            case "pipe":
                os.mkfifo(output)
            case "two names":
                Path(f"{output}.2").touch()
                os.link(f"{output}.2", output)
        with pytest.raises(Refused):
            spool.take_output(job)
        assert database.unfinished() == [job]
        spool.reject(job, OOM, {})
        assert database.unfinished() == []
    assert folder.results() == {"done": set(), "quarantine": {"a"}}


@pytest.mark.parametrize("kind", ["folder by a link", "in a folder by a link", "swapped"])
def test_output_of_an_attacker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """What lies elsewhere is neither published nor changed."""
    folder = SpoolFolder(tmp_path)
    folder.put("a", "content")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "output").write_text("secret")
    (elsewhere / "output").chmod(0o600)
    with opened(folder) as (spool, _):
        job = take(spool, "a")
        scratch = Path(stage(spool, job).scratch)
        rename = os.rename
        if kind == "folder by a link":
            scratch.rename(tmp_path / "away")
            scratch.symlink_to(elsewhere)
        elif kind == "in a folder by a link":
            (scratch / "output").symlink_to(elsewhere / "output")
        else:
            (scratch / "output").write_text("output")

            def swap(*args: Any, **kwargs: Any) -> None:
                (scratch / "output").unlink()
                os.link(elsewhere / "output", scratch / "output")
                rename(*args, **kwargs)

            monkeypatch.setattr(os, "rename", swap)
        with pytest.raises(Refused):
            spool.take_output(job)
    assert (elsewhere / "output").stat().st_mode & 0o777 == 0o600
    assert folder.names("done") == set()


def test_input_that_a_process_still_writes(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    with opened(folder) as (spool, _), (tmp_path / "incoming" / "a").open("w") as file:
        job = take(spool, "a")
        with pytest.raises(StillWritten):
            spool.stage(job)
        file.close()
        work(spool, job)
        publish(spool, job)
    assert folder.names("done") == {"a"}


def test_output_that_a_process_still_writes(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    folder.put("a", "content")
    with opened(folder) as (spool, _):
        job = take(spool, "a")
        with open(stage(spool, job).output, "w", encoding="ascii") as file:
            file.write("half")
            file.flush()
            with pytest.raises(StillWritten):
                spool.take_output(job)
        publish(spool, job)
    assert (tmp_path / "done" / "a").read_text() == "half"


def test_output_that_the_disk_does_not_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second fsync would succeed, whatever was lost. So the output is not published."""
    folder = SpoolFolder(tmp_path)
    folder.put("a", "content")

    def fail(_fd: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    with opened(folder) as (spool, _):
        job = take(spool, "a")
        work(spool, job)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail)
            with pytest.raises(NotOnDisk):
                spool.take_output(job)
        spool.wait(job, AttemptEnd("INTERRUPTED"))
        again = database_job(folder)
        spool.stage(again).copy.close()
        assert not (tmp_path / "work" / "1" / "output").exists()


def database_job(folder: SpoolFolder) -> Job:
    with contextlib.closing(JobDatabase(str(folder.database))) as database:
        return database.begin(database.job(1), {})


def test_a_large_input_is_copied_in_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_FICLONE", 0)  # as on a file system that cannot share blocks
    monkeypatch.setattr(files, "_CHUNK", 1000)
    folder = SpoolFolder(tmp_path)
    folder.put("a", "x" * 10_500)
    with opened(folder) as (spool, _):
        staged = spool.stage(take(spool, "a"))
        assert not staged.copy.advance(0)
        assert Path(staged.paths.source).stat().st_size == 0
        steps = 0
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock.__setitem__(0, clock[0] + 1) or clock[0])
        while not staged.copy.advance(clock[0] + 1.5):
            steps += 1
        assert steps >= 5
        assert Path(staged.paths.source).read_text() == "x" * 10_500


def test_no_room_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before the disk is full, which would stop the guests that run."""
    monkeypatch.setattr(files, "_FICLONE", 0)
    folder = SpoolFolder(tmp_path)
    folder.put("a", "")
    os.truncate(tmp_path / "incoming" / "a", 1 << 42)
    with opened(folder) as (spool, _):
        job = take(spool, "a")
        with pytest.raises(OSError, match="No space left") as caught:
            spool.stage(job)
        assert caught.value.errno == errno.ENOSPC


def test_output_gets_plain_permissions(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    folder.put("a", "content")
    with opened(folder) as (spool, _):
        job = take(spool, "a")
        work(spool, job)
        os.chmod(tmp_path / "work" / "1" / "try" / "output", 0o4000)
        before = os.umask(0o027)
        try:
            publish(spool, job)
        finally:
            os.umask(before)
    assert (tmp_path / "done" / "a").stat().st_mode & 0o7777 == 0o640


def test_a_file_given_back_keeps_its_attempts(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    folder.put("a", "content")
    with opened(folder) as (spool, database):
        job = take(spool, "a")
        spool.give_back(spool.wait(job, OOM))
        again = take(spool, "a")
        assert (again.number, again.attempt) == (job.number, 2)
        assert [row.outcome for row in database.attempts(again)] == ["OUT_OF_MEMORY", None]
        spool.give_back(again, CANCELLED)
        folder.put("a", "another file of that name")
        other = take(spool, "a")
        assert (other.number, other.attempt) == (job.number + 1, 1)


def test_giving_back_replaces_nothing(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    folder.put("a.txt", "old")
    with opened(folder) as (spool, _):
        job = take(spool, "a.txt")
        folder.put("a.txt", "new")
        spool.give_back(job, CANCELLED)
        assert take(spool, "a~1.txt").number == job.number
    assert (tmp_path / "incoming" / "a.txt").read_text() == "new"


def test_what_cannot_be_taken_was_never_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SpoolFolder(tmp_path)
    folder.put("a", "content")

    def refuse(source: str, *_: object) -> None:
        raise PermissionError(1, "immutable", source)

    with opened(folder) as (spool, _):
        with pytest.raises(FileNotFoundError):
            spool.open_job("none", {})
        job = spool.open_job("a", {})
        with monkeypatch.context() as patch:
            patch.setattr(syscalls, "renameat2", refuse)
            with pytest.raises(PermissionError):
                spool.fetch(job)
        assert spool.recover(job).state is State.RETURNED
        assert folder.rows("SELECT * FROM jobs") == folder.rows("SELECT * FROM attempts") == []
        assert folder.names("work") == set()
        assert take(spool, "a").attempt == 1


def test_input_that_somebody_removed(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    for name in ("running", "waiting", "rejected"):
        folder.put(name, "content")
    with opened(folder) as (spool, _):
        take(spool, "running")
        spool.wait(take(spool, "waiting"), OOM)
        job = take(spool, "rejected")
        folder.put("running", "another file of that name")
        for number in (1, 2, 3):
            (tmp_path / "work" / str(number) / "input").unlink()
        spool.reject(job, OOM, {})
    with opened(folder) as (spool, database):
        recover(spool, database)
        assert database.unfinished() == []
    states = dict(folder.rows("SELECT CAST(name AS TEXT), state FROM jobs"))
    assert states == {"running": "VANISHED", "waiting": "VANISHED", "rejected": "QUARANTINED"}
    assert folder.names("quarantine") == {"rejected.report.json"}
    assert folder.names("incoming") == {"running"}


def test_database_that_was_lost(tmp_path: Path) -> None:
    folder = SpoolFolder(tmp_path)
    folder.put("a.pdf", "content")
    with opened(folder) as (spool, _):
        work(spool, take(spool, "a.pdf"))
    for path in tmp_path.glob("ledger.sqlite3*"):
        path.unlink()
    with opened(folder) as (spool, database):
        recover(spool, database)
    (name,) = folder.names("incoming")
    assert name.startswith("recovered-1-")
    assert name.endswith(".pdf")
    assert folder.names("work") == set()
