"""The way of a file through the spool, and how none is lost whenever the service is killed.

::

    incoming/NAME ──> work/7/input.pdf ──> done/NAME            the output; the input is removed
                         │   ▲    │
                         └───┘    ├──────> quarantine/NAME      the input, and NAME.report.json beside it
                       try again  └──────> incoming/NAME        given back, when the service is stopped

A *job* is a file that was taken. Its state is in the ledger, and every change of it is on the disk before the
files are touched that it speaks of; so what has to be done after a crash is told by the state and by what is
where. All moves are renames on one file system, and none replaces anything.

========== ========================================== ======================================================
state      what is being done, step by step           found at the start of the service: what is done then
========== ========================================== ======================================================
RUNNING    make work/N; move the input there;         input in work/N: the attempt was INTERRUPTED, which
           then the guest runs                        counts, and the job is judged like after any other end.
                                                      Input in incoming/: it was not moved yet; as if never
                                                      taken. Nowhere: VANISHED
WAITING    nothing: it is tried again in some time    it is tried again
PUBLISHING the output is on the disk. Move it to      output in work/N: it is moved. Then, as if just moved:
           done/; remove work/N with the input        work/N is removed
REJECTING  the report is on the disk. Move it to      what is still in work/N of the two is moved; work/N is
           quarantine/, then the input; remove        removed
           work/N
RETURNING  move the input to incoming/; remove        input in work/N: it is moved. work/N is removed
           work/N
---------- ------------------------------------------ ------------------------------------------------------
DONE, QUARANTINED, RETURNED, VANISHED: nothing of the job is in work/. A file that was RETURNED is RUNNING
again when it is next taken, with the attempts that it had.
========== ========================================== ======================================================

So a file may be worked on twice (at least once), but its output is published once: only the state
PUBLISHING, from which no way leads back, lets it be seen, and it is seen whole. When a job is at rest, the
file is in exactly one of the folders. A file in work/ that the ledger knows nothing of (it was removed, or
replaced by an old copy) goes back to incoming/ under a name of ours.

While the guests of a service that was killed still die, their supervisor holds the spool's lock
(``files.lock``); so nothing writes in work/ behind the back of the next.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gwsandbox.service.config.config import Folders
from gwsandbox.service.spool import files
from gwsandbox.service.spool.job_database import Ending, Job, Ledger, State

REPORT_SUFFIX = ".report.json"
_TRASH = "trash"
_NOT_JOBS = frozenset({_TRASH})


class NoOutput(Exception):
    """The worker says that it succeeded, and left no output that can be published; the text says why."""


@dataclass(frozen=True, slots=True)
class Paths:
    """What a guest is given: where to read, where to write, and a folder of its own."""

    source: str
    output: str
    scratch: str


@dataclass(slots=True)
class Recovered:
    """What was found at the start: jobs that wait for an attempt, and those whose last was interrupted."""

    waiting: list[Job]
    interrupted: list[Job]


class Spool:
    """The folders and the ledger as one thing; see the module's text. To be used by who holds the lock."""

    def __init__(self, folders: Folders, ledger: Ledger, *, output_suffix: str | None = None) -> None:
        self._folders = folders
        self._ledger = ledger
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
        job = self._ledger.take(name, status.st_ino, status.st_size, output, limits)
        try:
            os.mkdir(self._home(job), 0o700)
            files.move(source, self._input(job))
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(self._home(job))
            self._ledger.untake(job)
            raise
        return job

    def try_again(self, job: Job, limits: dict[str, Any]) -> None:
        """An attempt begins on a job that waits."""
        self.trash.add(self._scratch(job))
        self._ledger.begin(job, limits)

    def why_refused(self, job: Job) -> str:
        """Why no guest may be given this file; empty where it may. Asked when nobody can swap it any more."""
        return files.why_refused(self._input(job))

    def give_to_guest(self, job: Job) -> Paths:
        """The paths of an attempt, in a scratch folder that is new."""
        os.mkdir(self._scratch(job), 0o700)
        return Paths(self._input(job), self._output(job), self._scratch(job))

    # --- out ----------------------------------------------------------------------------------------

    def publish(self, job: Job, ending: Ending) -> None:
        """It succeeded: the output goes to ``done/``.

        Raises:
            NoOutput: There is none; nothing has changed.
        """
        self._check_output(job)
        stem = job.name.removesuffix(files.suffix(job.name))
        target = self._free_name(self._folders.done, stem + job.output.removeprefix("output"), job)
        self._ledger.end(job, ending, State.PUBLISHING, target)
        self._finish_publishing(job)

    def reject(self, job: Job, ending: Ending, report: dict[str, Any]) -> None:
        """It goes to ``quarantine/``, and its report beside it."""
        path = self._report(job)
        with open(path, "w", encoding="ascii") as file:
            json.dump(report, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        target = self._free_name(self._folders.quarantine, job.name, job, REPORT_SUFFIX)
        self._ledger.end(job, ending, State.REJECTING, target)
        self._finish_rejecting(job)

    def wait(self, job: Job, ending: Ending) -> None:
        """It is to be tried again later."""
        self._ledger.end(job, ending, State.WAITING)

    def give_back(self, job: Job, ending: Ending | None = None) -> None:
        """It goes back to ``incoming/``: the attempt that runs was cancelled, or none runs."""
        target = self._free_name(self._folders.incoming, job.name, job)
        if ending is None:
            self._ledger.move(job, State.RETURNING, target)
        else:
            self._ledger.end(job, ending, State.RETURNING, target)
        self._finish_returning(job)

    def _check_output(self, job: Job) -> None:
        path = self._output(job)
        try:
            refused = files.why_refused(path)
        except FileNotFoundError as error:
            raise NoOutput("the worker succeeded, but wrote no output") from error
        if refused:
            # Who reads the output would be made to read something else.
            raise NoOutput(f"the worker succeeded, but its output is refused: {refused}")
        os.chmod(path, 0o666 & ~_umask())
        files.sync(path)

    def _finish_publishing(self, job: Job) -> None:
        self._move_out(job, self._output(job), self._folders.done)
        self._leave(job, self._folders.done, State.DONE)

    def _finish_rejecting(self, job: Job) -> None:
        self._move_out(job, self._report(job), self._folders.quarantine, REPORT_SUFFIX)
        self._move_out(job, self._input(job), self._folders.quarantine)
        self._leave(job, self._folders.quarantine, State.QUARANTINED)

    def _finish_returning(self, job: Job) -> None:
        self._move_out(job, self._input(job), self._folders.incoming)
        self._leave(job, self._folders.incoming, State.RETURNED)

    def _move_out(self, job: Job, source: str, folder: str, end: str = "") -> None:
        """Move to the job's target, or to another where that is taken meanwhile; if it was not moved yet."""
        while os.path.lexists(source):
            assert job.target is not None
            try:
                files.move(source, f"{folder}/{job.target}{end}")
            except FileExistsError:
                self._ledger.retarget(job, self._free_name(folder, job.name, job, end))

    def _leave(self, job: Job, folder: str, state: State) -> None:
        files.sync(folder)
        self.trash.add(self._home(job))
        self._ledger.move(job, state)

    def _free_name(self, folder: str, name: str, job: Job, end: str = "") -> str:
        for target in files.names_like(name, job.number, room=len(end)):
            if not any(os.path.lexists(f"{folder}/{target}{more}") for more in {"", end}):
                return target
        raise AssertionError

    # --- after a crash ------------------------------------------------------------------------------

    def recover(self) -> Recovered:
        """Bring every job that was under way to where it can go on."""
        found = Recovered([], [])
        known = set(_NOT_JOBS)
        for job in self._ledger.unfinished():
            known.add(str(job.number))
            self._recover(job, found)
        for name in self._unknown(known):
            self._adopt(name)
        return found

    def _recover(self, job: Job, found: Recovered) -> None:
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
                self._ledger.untake(job)
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
