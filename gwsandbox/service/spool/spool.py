"""The way of a file through the spool, and how none is lost whenever the service is killed.

::

    incoming/NAME ──> work/7/input.pdf ──> done/NAME            the output; the input is removed
                         │   ▲    │
                         └───┘    ├──────> quarantine/NAME      the input, and NAME.report.json beside it
                       try again  └──────> incoming/NAME        given back, when the service is stopped

A *job* is a file that the service took. The job database holds its state. Each change of the state is on the disk
before the spool touches a file for it. So after a crash the state, and where the files are, say what to do next.
All moves are renames on one file system, and none replaces anything.

========== ========================================== ======================================================
state      what the service does, step by step        what the next start of the service does
========== ========================================== ======================================================
RUNNING    make work/N; move the input there;         input in work/N: end the attempt as INTERRUPTED, and
           then the guest runs                        decide as after any other end. Input in incoming/:
                                                      forget the attempt. Input nowhere: VANISHED
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

While the guests of a killed service still die, their supervisor holds the spool's lock (``files.lock``). So nothing
writes into work/ beside the next service.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gwsandbox.service.config.config import FolderConfig
from gwsandbox.service.spool import files
from gwsandbox.service.spool.job_database import AttemptEnd, Job, JobDatabase, State

REPORT_SUFFIX = ".report.json"
_TRASH = "trash"
_NOT_JOBS = frozenset({_TRASH})


@dataclass(frozen=True, slots=True)
class GuestPaths:
    """The paths that a guest gets: the input, the output to write, and a scratch folder of its own."""

    source: str
    output: str
    scratch: str


@dataclass(frozen=True, slots=True)
class RecoveredJobs:
    """The jobs of an earlier service that go on: some wait for an attempt, others had one interrupted."""

    waiting: list[Job]
    interrupted: list[Job]


class Spool:
    """The folders together with the job database; see the module's text. Only the holder of the lock may use it."""

    def __init__(self, folders: FolderConfig, database: JobDatabase, *, output_suffix: str | None = None) -> None:
        self._folders = folders
        self._database = database
        self.output_suffix = output_suffix
        self.trash = files.Trash(f"{folders.work}/{_TRASH}")

    # --- where things are ---------------------------------------------------------------------------

    def _home(self, job: Job) -> str:
        return f"{self._folders.work}/{job.number}"

    def _input(self, job: Job) -> str:
        return f"{self._home(job)}/input{files.suffix(job.name)}"

    def _scratch(self, job: Job) -> str:
        return f"{self._home(job)}/try"

    def _output(self, job: Job) -> str:
        return f"{self._scratch(job)}/{job.output}"

    def _report(self, job: Job) -> str:
        return f"{self._home(job)}/report.json"

    # --- in -----------------------------------------------------------------------------------------

    def take(self, name: str, limits: dict[str, Any]) -> Job:
        """Take a file out of ``incoming/``, for an attempt that begins now.

        Raises:
            OSError: It is gone, or cannot be moved; then it stays, and was never taken.
        """
        source = f"{self._folders.incoming}/{name}"
        status = os.lstat(source)
        output = "output" + (self.output_suffix or files.suffix(name))
        job = self._database.take(name, status.st_ino, status.st_size, output, limits)
        try:
            os.mkdir(self._home(job), 0o700)
            files.move(source, self._input(job))
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(self._home(job))
            self._database.untake(job)
            raise
        return job

    def try_again(self, job: Job, limits: dict[str, Any]) -> Job:
        """Begin an attempt on a job that waits."""
        self.trash.add(self._scratch(job))
        return self._database.begin(job, limits)

    def why_refused(self, job: Job) -> str:
        """Why no guest may get this file; empty where a guest may. Nobody else can swap the file any more."""
        return files.why_refused(self._input(job))

    def give_to_guest(self, job: Job) -> GuestPaths:
        """Make the scratch folder of an attempt, and return the attempt's paths."""
        os.mkdir(self._scratch(job), 0o700)
        return GuestPaths(self._input(job), self._output(job), self._scratch(job))

    # --- out ----------------------------------------------------------------------------------------

    def prepare_output(self, job: Job) -> str:
        """Bring the output to the disk, with plain permissions.

        Returns:
            Why it cannot be published; empty where it can.
        """
        path = self._output(job)
        try:
            refused = files.why_refused(path)
        except FileNotFoundError:
            return "the worker succeeded, but wrote no output"
        if refused:
            # A reader of the output would read something else.
            return f"the worker succeeded, but its output is refused: {refused}"
        os.chmod(path, 0o666 & ~_umask())
        files.sync(path)
        return ""

    def publish(self, job: Job, end: AttemptEnd) -> Job:
        """Move the output, which ``prepare_output`` found good, to ``done/``."""
        stem = job.name.removesuffix(files.suffix(job.name))
        target = self._free_name(self._folders.done, stem + job.output.removeprefix("output"), job)
        return self._finish_publishing(self._database.end(job, end, State.PUBLISHING, target))

    def reject(self, job: Job, end: AttemptEnd, report: dict[str, Any]) -> Job:
        """Move the input to ``quarantine/``, and its report beside it."""
        with open(self._report(job), "w", encoding="ascii") as file:
            json.dump(report, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        target = self._free_name(self._folders.quarantine, job.name, job, REPORT_SUFFIX)
        return self._finish_rejecting(self._database.end(job, end, State.REJECTING, target))

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
            return self._finish_returning(self._database.move(job, State.RETURNING, target))
        return self._finish_returning(self._database.end(job, end, State.RETURNING, target))

    def _finish_publishing(self, job: Job) -> Job:
        job = self._move_out(job, self._output(job), self._folders.done)
        return self._leave(job, self._folders.done, State.DONE)

    def _finish_rejecting(self, job: Job) -> Job:
        job = self._move_out(job, self._report(job), self._folders.quarantine, REPORT_SUFFIX)
        job = self._move_out(job, self._input(job), self._folders.quarantine)
        return self._leave(job, self._folders.quarantine, State.QUARANTINED)

    def _finish_returning(self, job: Job) -> Job:
        job = self._move_out(job, self._input(job), self._folders.incoming)
        return self._leave(job, self._folders.incoming, State.RETURNED)

    def _move_out(self, job: Job, source: str, folder: str, end: str = "") -> Job:
        """Move ``source`` to the job's target, or to another name where a file has that one. It may be gone already."""
        while os.path.lexists(source):
            assert job.target is not None
            try:
                files.move(source, f"{folder}/{job.target}{end}")
            except FileExistsError:
                job = self._database.retarget(job, self._free_name(folder, job.name, job, end))
        return job

    def _leave(self, job: Job, folder: str, state: State) -> Job:
        files.sync(folder)
        self.trash.add(self._home(job))
        return self._database.move(job, state)

    def _free_name(self, folder: str, name: str, job: Job, end: str = "") -> str:
        for target in files.names_like(name, job.number, room=len(end)):
            if not any(os.path.lexists(f"{folder}/{target}{more}") for more in {"", end}):
                return target
        raise AssertionError

    # --- after a crash ------------------------------------------------------------------------------

    def recover(self) -> RecoveredJobs:
        """Bring every unfinished job to a state from which it can go on."""
        found = RecoveredJobs([], [])
        known = set(_NOT_JOBS)
        for job in self._database.unfinished():
            known.add(str(job.number))
            self._recover(job, found)
        for name in self._unknown(known):
            self._adopt(name)
        return found

    def _recover(self, job: Job, found: RecoveredJobs) -> None:
        match job.state:
            case State.PUBLISHING:
                self._finish_publishing(job)
            case State.REJECTING:
                self._finish_rejecting(job)
            case State.RETURNING:
                self._finish_returning(job)
            case State.RUNNING if os.path.lexists(self._input(job)):
                found.interrupted.append(job)
            case State.WAITING if os.path.lexists(self._input(job)):
                found.waiting.append(job)
            case State.RUNNING if self._is_in_incoming(job):
                self.trash.add(self._home(job))
                self._database.untake(job)
            case _:
                self._leave(job, self._folders.work, State.VANISHED)

    def _is_in_incoming(self, job: Job) -> bool:
        try:
            return os.lstat(f"{self._folders.incoming}/{job.target or job.name}").st_ino == job.inode
        except FileNotFoundError:
            return False

    def _unknown(self, known: set[str]) -> Iterator[str]:
        with os.scandir(self._folders.work) as entries:
            found = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        yield from (name for name in found if name not in known)

    def _adopt(self, name: str) -> None:
        home = f"{self._folders.work}/{name}"
        for entry in os.listdir(home):
            if entry.startswith("input"):
                target = f"recovered-{name}-{os.lstat(home).st_mtime_ns}{files.suffix(entry)}"
                files.move(f"{home}/{entry}", f"{self._folders.incoming}/{target}")
        self.trash.add(home)


def _umask() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1], 8) for line in file if line.startswith("Umask:"))
