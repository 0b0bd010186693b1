"""The way of a file through the spool, and how none is lost whenever the service is killed.

::

    incoming/NAME ──> work/7/input.pdf ──> done/NAME            the output; the input is removed
                         │   ▲    │
                         └───┘    ├──────> quarantine/NAME      the input, and NAME.report.json beside it
                       try again  └──────> incoming/NAME        given back, when the service stops

Each attempt has a scratch folder, ``work/7/try/``, with a copy of the input. So a worker may change, move or remove
what it works on. When it succeeds, its output moves from there to ``work/7/``.

A *job* is a file that the service took. The job database holds its state. Each change of the state is on the disk
before the spool touches a file for it. So after a crash the state, and where the files are, say what to do next.
All moves are renames on one file system, and none replaces anything.

========== ========================================== ======================================================
state      what the service does, step by step        what it does after a crash, or after a step that failed
========== ========================================== ======================================================
RUNNING    make work/N; move the input there; make    input in work/N: end the attempt as INTERRUPTED, and
           the scratch folder and the copy; then the  decide as after any other end. Input in incoming/:
           guest runs                                 forget the attempt. Input nowhere: VANISHED
WAITING    wait for the next attempt                  wait for the next attempt
PUBLISHING the output is on the disk. Move it to      move the output, if it is still in work/N; remove work/N
           done/; remove work/N with the input
REJECTING  the report is on the disk. Move it to      move what is still in work/N of the two; remove work/N
           quarantine/, then the input; remove
           work/N
RETURNING  move the input to incoming/; remove        move the input, if it is still in work/N; remove work/N
           work/N
---------- ------------------------------------------ ------------------------------------------------------
DONE, QUARANTINED, RETURNED, VANISHED: nothing of the job is in work/. When the service takes a RETURNED file
again, its job goes on with the attempts that it had.
========== ========================================== ======================================================

So a worker may run twice for a file, but its output appears once, and whole: only the state PUBLISHING lets it
appear, and no way leads back from it. When a job is at rest, its file is in exactly one of the folders. A file in
work/ that the job database does not know goes back to incoming/ under a new name: somebody removed the database,
or put an old copy in its place.

While the guests of a killed service still die, their supervisor holds the spool's lock (``folders.lock``). So nothing
writes into work/ beside the next service.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gwsandbox.linux.lease import is_open_for_writing
from gwsandbox.service.config.config import FolderConfig
from gwsandbox.service.spool import files, folders, names
from gwsandbox.service.spool.job_database import AttemptEnd, Job, JobDatabase, State
from gwsandbox.service.spool.output import StillWritten, take_output
from gwsandbox.service.spool.trash import Trash

REPORT_SUFFIX = ".report.json"
_TRASH = "trash"
_SCRATCH = "try"
_NOT_JOBS = frozenset({_TRASH})


@dataclass(frozen=True, slots=True)
class GuestPaths:
    """The paths that a guest gets: a copy of the input, the output to write, and a scratch folder of its own."""

    source: str
    output: str
    scratch: str


@dataclass(frozen=True, slots=True)
class StagedAttempt:
    """An attempt whose guest can run as soon as the copy of its input is complete."""

    job: Job
    paths: GuestPaths
    copy: files.Copy


class Spool:
    """The folders together with the job database; see the module's text. Only the holder of the lock may use it."""

    def __init__(self, config: FolderConfig, database: JobDatabase, *, output_suffix: str | None = None) -> None:
        self._folders = config
        self._database = database
        self.output_suffix = output_suffix
        self.trash = Trash(f"{config.work}/{_TRASH}")

    # --- paths --------------------------------------------------------------------------------------

    def _home(self, job: Job) -> str:
        return f"{self._folders.work}/{job.number}"

    def _input(self, job: Job) -> str:
        return f"{self._home(job)}/input{names.suffix(job.name)}"

    def _scratch(self, job: Job) -> str:
        return f"{self._home(job)}/{_SCRATCH}"

    def _output(self, job: Job) -> str:
        return f"{self._home(job)}/{job.output}"

    def _report(self, job: Job) -> str:
        return f"{self._home(job)}/report.json"

    # --- in -----------------------------------------------------------------------------------------

    def open_job(self, name: str, limits: dict[str, Any]) -> Job:
        """Make the job of a file in ``incoming/``, for an attempt that begins now.

        Raises:
            OSError: The file is gone.
        """
        status = os.lstat(f"{self._folders.incoming}/{name}")
        output = "output" + (self.output_suffix or names.suffix(name))
        return self._database.take(name, status.st_ino, status.st_size, output, limits)

    def fetch(self, job: Job) -> None:
        """Move the file of a new job out of ``incoming/``.

        Raises:
            OSError: It is gone, or cannot be moved. ``recover`` forgets the attempt then.
        """
        os.makedirs(self._home(job), 0o700, exist_ok=True)
        files.move(f"{self._folders.incoming}/{job.target or job.name}", self._input(job))

    def stage(self, job: Job) -> StagedAttempt:
        """Make the scratch folder of an attempt, and begin the copy of the input in it.

        Raises:
            Refused: No guest may get this file.
            StillWritten: Its producer still writes it.
            OSError: The folder or the copy cannot be made.
        """
        self.trash.add(self._scratch(job))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._output(job))  # of an earlier attempt that a crash interrupted
        target = f"{self._scratch(job)}/{os.path.basename(self._input(job))}"
        source = files.open_input(self._input(job))
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, source)
            # Nobody else can open it under its present name. So it has no writer from now on, if it has none now.
            if is_open_for_writing(source):
                raise StillWritten
            os.mkdir(self._scratch(job), 0o700)
            undo.pop_all()
        copy = files.Copy(source, target)
        return StagedAttempt(job, GuestPaths(target, f"{self._scratch(job)}/{job.output}", self._scratch(job)), copy)

    # --- out ----------------------------------------------------------------------------------------

    def is_changed(self, staged: StagedAttempt) -> bool:
        """Whether its producer changed the input after the service had taken it."""
        try:
            return files.Identity.of(os.lstat(self._input(staged.job))) != staged.copy.identity
        except FileNotFoundError:
            return False

    def take_output(self, job: Job) -> None:
        """Take the output of a worker that succeeded; see ``output.take_output``."""
        take_output(self._home(job), _SCRATCH, job.output)

    def publish(self, job: Job, end: AttemptEnd) -> Job:
        """Move the output, which ``take_output`` took, to ``done/``."""
        stem = job.name.removesuffix(names.suffix(job.name))
        target = self._free_name(self._folders.done, stem + job.output.removeprefix("output"), job)
        return self.resume(self._database.end(job, end, State.PUBLISHING, target))

    def reject(self, job: Job, end: AttemptEnd, report: dict[str, Any]) -> Job:
        """Move the input to ``quarantine/``, and its report beside it."""
        files.write(self._report(job), f"{json.dumps(report, indent=2)}\n".encode("ascii"))
        target = self._free_name(self._folders.quarantine, job.name, job, REPORT_SUFFIX)
        return self.resume(self._database.end(job, end, State.REJECTING, target))

    def wait(self, job: Job, end: AttemptEnd) -> Job:
        """Let the job wait for its next attempt."""
        return self._database.end(job, end, State.WAITING)

    def give_back(self, job: Job, end: AttemptEnd | None = None) -> Job:
        """Move the input back to ``incoming/``.

        Args:
            job: The job.
            end: The end of its attempt; ``None`` where no attempt runs.
        """
        target = self._free_name(self._folders.incoming, job.name, job)
        if end is None:
            return self.resume(self._database.move(job, State.RETURNING, target))
        return self.resume(self._database.end(job, end, State.RETURNING, target))

    def resume(self, job: Job) -> Job:
        """Do what is left to do in the state of a job; nothing, where no step of it is left."""
        match job.state:
            case State.PUBLISHING:
                job = self._move_out(job, self._output(job), self._folders.done)
                return self._leave(job, self._folders.done, State.DONE)
            case State.REJECTING:
                job = self._move_out(job, self._report(job), self._folders.quarantine, REPORT_SUFFIX)
                job = self._move_out(job, self._input(job), self._folders.quarantine)
                return self._leave(job, self._folders.quarantine, State.QUARANTINED)
            case State.RETURNING:
                job = self._move_out(job, self._input(job), self._folders.incoming)
                return self._leave(job, self._folders.incoming, State.RETURNED)
        return job

    def _move_out(self, job: Job, source: str, folder: str, end: str = "") -> Job:
        """Move ``source`` to the job's target, or to another name where a file has that one. It may be gone already."""
        while os.path.lexists(source):
            assert job.target is not None
            try:
                files.move(source, f"{folder}/{job.target}{end}")
            except FileExistsError:
                job = self._database.retarget(job, self._free_name(folder, job.target, job, end))
        return job

    def _leave(self, job: Job, folder: str, state: State) -> Job:
        files.sync(folder)
        self.trash.add(self._home(job))
        return self._database.move(job, state)

    def _free_name(self, folder: str, name: str, job: Job, end: str = "") -> str:
        for target in names.names_like(name, job.number, room=len(end)):
            if not any(os.path.lexists(f"{folder}/{target}{more}") for more in {"", end}):
                return target
        raise AssertionError

    # --- after a crash, or a step that failed -------------------------------------------------------

    def recover(self, job: Job) -> Job:
        """Bring a job that no guest works on to a state from which it can go on.

        Returns:
            The job: RUNNING, where its attempt was interrupted; WAITING; or at rest.
        """
        if job.state not in {State.RUNNING, State.WAITING}:
            return self.resume(job)
        if os.path.lexists(self._input(job)):
            return job
        if job.state is State.RUNNING and self._is_in_incoming(job):
            self.trash.add(self._home(job))
            return self._database.untake(job)
        return self._leave(job, self._folders.work, State.VANISHED)

    def _is_in_incoming(self, job: Job) -> bool:
        try:
            return os.lstat(f"{self._folders.incoming}/{job.target or job.name}").st_ino == job.inode
        except FileNotFoundError:
            return False

    def forget_unfetched(self) -> None:
        """Forget the attempts on jobs whose files the service never took from ``incoming/``."""
        for job in self._database.unfinished():
            if job.state is State.RUNNING and not os.path.lexists(self._input(job)):
                self.recover(job)

    def adopt_unknown(self) -> None:
        """Give back the files in ``work/`` that the job database does not know."""
        known = {*_NOT_JOBS, *(str(job.number) for job in self._database.unfinished())}
        for name in self._folders_in_work():
            if name not in known:
                self._adopt(name)

    def _folders_in_work(self) -> Iterator[str]:
        with os.scandir(self._folders.work) as entries:
            yield from [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]

    def _adopt(self, name: str) -> None:
        home = f"{self._folders.work}/{name}"
        for entry in os.listdir(home):
            if entry.startswith("input"):
                target = f"recovered-{name}-{os.lstat(home).st_mtime_ns}{names.suffix(entry)}"
                files.move(f"{home}/{entry}", f"{self._folders.incoming}/{target}")
        self.trash.add(home)

    # --- the disk -----------------------------------------------------------------------------------

    def check_storage(self) -> None:
        """Write to the disks of the folders and of the job database.

        Raises:
            OSError, sqlite3.Error: A disk is full, read-only or broken.
        """
        folders.check_storage(self._folders.work)
        self._database.check_writable()
