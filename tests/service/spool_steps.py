"""The steps of the dispatcher and of a guest on the way of a file through a spool."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from spools import SpoolFolder

from gwsandbox.service.config.config import FolderConfig
from gwsandbox.service.spool import folders
from gwsandbox.service.spool.job_database import AttemptEnd, Job, JobDatabase, State
from gwsandbox.service.spool.spool import GuestPaths, Spool

SUCCEEDED, OOM, CANCELLED = AttemptEnd("SUCCEEDED"), AttemptEnd("OUT_OF_MEMORY"), AttemptEnd("CANCELLED")
NAME = os.fsdecode(b"-x \xff\n.pdf")


@contextlib.contextmanager
def opened(folder: SpoolFolder) -> Iterator[tuple[Spool, JobDatabase]]:
    paths = {name: str(folder.root / name) for name in ("incoming", "work", "done", "quarantine")}
    folders.prepare(paths)
    with contextlib.closing(JobDatabase(str(folder.database))) as database:
        yield Spool(FolderConfig(**paths), database), database


def take(spool: Spool, name: str) -> Job:
    """What the dispatcher does with a file that is whole."""
    job = spool.open_job(name, {})
    spool.fetch(job)
    return job


def stage(spool: Spool, job: Job) -> GuestPaths:
    staged = spool.stage(job)
    assert staged.copy.advance(time.monotonic() + 60)
    return staged.paths


def work(spool: Spool, job: Job) -> None:
    """What a guest does."""
    paths = stage(spool, job)
    Path(paths.output).write_bytes(Path(paths.source).read_bytes().upper())


def publish(spool: Spool, job: Job) -> Job:
    """What the dispatcher does when the guest has succeeded."""
    spool.take_output(job)
    return spool.publish(job, SUCCEEDED)


def recover(spool: Spool, database: JobDatabase) -> None:
    """What the dispatcher does at its start."""
    for found in database.unfinished():
        job = spool.recover(found)
        if job.state is State.RUNNING:
            spool.wait(job, AttemptEnd("INTERRUPTED"))
    spool.adopt_unknown()
