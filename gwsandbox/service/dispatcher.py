"""The dispatcher: begins attempts on files, and does with each file what the end of its attempt asks for."""

from __future__ import annotations

import errno
import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gwsandbox.model.errors import SandboxError
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.text import shown
from gwsandbox.service.config.config import ServiceConfig
from gwsandbox.service.finished_attempt import FinishedAttempt, from_result, without_guest
from gwsandbox.service.monitoring.journal import INFO, NOTICE, WARNING, Journal
from gwsandbox.service.monitoring.metrics import Metrics
from gwsandbox.service.retry_policy import INTERRUPTED, REFUSED, Fate, decide, quarantine_report
from gwsandbox.service.spool.incoming import IncomingWatcher
from gwsandbox.service.spool.job_database import Job, JobDatabase
from gwsandbox.service.spool.spool import Spool
from gwsandbox.service.worker_pool import Finished, WorkerPool

MESSAGE_ID = "b1c1f0a6d6a44c0b9f5f3a5d0e7a4c21"
"""Message id of the journal entry at the end of every attempt: ``journalctl MESSAGE_ID=…``."""

_FAILURES_IN_A_ROW = 5
_NOT_A_FILES_FAULT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_PLACES = {Fate.PUBLISH: "done", Fate.QUARANTINE: "quarantined", Fate.GIVE_BACK: "returned"}


@dataclass(slots=True)
class Dispatcher:
    """Moves files between the incoming watcher, the worker pool and the spool.

    Args:
        config: The configuration. A reload replaces it; the new one holds for everything that begins later.
        spool: The folders.
        database: The job database.
        watcher: Yields the files that can be taken.
        pool: Runs the attempts.
        journal: Gets an entry for each attempt.
        metrics: Counts attempts and files.
        is_stopping: Whether the service stops.
    """

    config: ServiceConfig
    spool: Spool
    database: JobDatabase
    watcher: IncomingWatcher
    pool: WorkerPool
    journal: Journal
    metrics: Metrics
    is_stopping: bool = False
    _waiting: list[tuple[float, int, Job]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _failures: int = 0

    # --- the start of an attempt --------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many files wait for another attempt."""
        return len(self._waiting)

    def seconds_to_wait(self) -> float | None:
        """Seconds until the first waiting file may be tried; ``None``: no file waits."""
        return max(self._waiting[0][0] - time.monotonic(), 0) if self._waiting else None

    def has_work(self) -> bool:
        """Whether an attempt could begin now."""
        return len(self.watcher) > 0 or self.seconds_to_wait() == 0

    def begin_one(self) -> None:
        """Begin an attempt on a file that has waited long enough, or else on a new one."""
        if self.seconds_to_wait() == 0:
            job = heapq.heappop(self._waiting)[2]
            self._begin(self.spool.try_again(job, self._limits()))
        elif (name := self.watcher.pop()) is not None:
            self._take(name)

    def _take(self, name: str) -> None:
        try:
            job = self.spool.take(name, self._limits())
        except FileNotFoundError:
            return  # its producer has removed it
        except OSError as error:
            if error.errno in _NOT_A_FILES_FAULT:
                raise
            if self.watcher.skip(name):
                text = f"{shown(name)} cannot be taken and stays in incoming: {error.strerror}"
                self.journal.write(text, WARNING, FILE=_bytes(name))
            return
        if refused := self.spool.why_refused(job):
            self._finish(without_guest(job, self.database.attempts(job), REFUSED, refused))
        else:
            self._begin(job)

    def _begin(self, job: Job) -> None:
        self.pool.start_attempt(job, self.spool.give_to_guest(job))

    def _limits(self) -> dict[str, Any]:
        return dict(self.config.limits.requested())

    # --- the end of an attempt ----------------------------------------------------------------------

    def finish(self, finished: Sequence[Finished]) -> None:
        """Do what the ends of attempts ask for.

        Raises:
            SandboxError: The sandbox itself fails again and again.
        """
        for one in finished:
            self._finish(self._read(one.job, one.result))
        self._check_sandbox(finished)

    def _check_sandbox(self, finished: Sequence[Finished]) -> None:
        failures = [one for one in finished if one.result.outcome is Outcome.SANDBOX_ERROR]
        if len(failures) < len(finished):
            self._failures = 0
            return
        self._failures += bool(finished)
        if self._failures >= _FAILURES_IN_A_ROW:
            raise SandboxError(
                "run a sandbox",
                value=failures[0].result.detail,
                remedy=f"it failed {self._failures} times in a row; see gwsandbox doctor",
            )

    def _read(self, job: Job, result: TaskResult) -> FinishedAttempt:
        output_error = self.spool.prepare_output(job) if result.outcome is Outcome.SUCCEEDED else ""
        return from_result(job, self.database.attempts(job), result, output_error)

    def _finish(self, attempt: FinishedAttempt) -> None:
        job, end = attempt.job, attempt.end
        fate = decide(attempt, self.config, is_stopping=self.is_stopping)
        match fate:
            case Fate.PUBLISH:
                job = self.spool.publish(job, end)
            case Fate.TRY_AGAIN:
                job = self.spool.wait(job, end)
                self._try_again(job, self.config.retry_delay_seconds)
            case Fate.QUARANTINE:
                job = self.spool.reject(job, end, quarantine_report(attempt))
            case Fate.GIVE_BACK:
                job = self.spool.give_back(job, end)
        self._report(job, attempt, fate)

    def _try_again(self, job: Job, delay: float) -> None:
        heapq.heappush(self._waiting, (time.monotonic() + delay, next(self._order), job))

    def _report(self, job: Job, attempt: FinishedAttempt, fate: Fate) -> None:
        """Count the attempt, and write its entry in the journal."""
        end = attempt.end
        self.metrics.attempt(end)
        if fate in _PLACES:
            self.metrics.file(_PLACES[fate])
        text = f"{shown(job.name)}: {end.outcome}, {_WORDS[fate](job)}"
        self.journal.write(
            f"{text}: {end.detail}" if end.detail else text,
            INFO if fate is Fate.PUBLISH else NOTICE,
            MESSAGE_ID=MESSAGE_ID,
            FILE=_bytes(job.name),
            JOB=job.number,
            ATTEMPT=job.attempt,
            FATE=fate.name,
            TARGET=None if job.target is None else _bytes(job.target),
            OUTCOME=end.outcome,
            DETAIL=end.detail,
            EXIT_STATUS=end.exit_code,
            PEAK=end.memory_peak_bytes,
            WALL_SECONDS=end.wall_seconds,
            CPU_SECONDS=end.cpu_seconds,
        )

    # --- the start and the end of the service -------------------------------------------------------

    def recover(self) -> None:
        """Go on with the jobs of an earlier service."""
        found = self.spool.recover()
        for job in found.waiting:
            self._try_again(job, 0)
        for job in found.interrupted:
            detail = "the service ended during the attempt"
            self._finish(without_guest(job, self.database.attempts(job), INTERRUPTED, detail))

    def give_back_waiting(self) -> None:
        """Give back the files that wait for another attempt, so that a stopped service keeps no file."""
        while self._waiting:
            self.spool.give_back(heapq.heappop(self._waiting)[2])


_WORDS: dict[Fate, Callable[[Job], str]] = {
    Fate.PUBLISH: lambda job: f"done as {shown(job.target or '')}",
    Fate.TRY_AGAIN: lambda job: f"to be tried again after attempt {job.attempt}",
    Fate.QUARANTINE: lambda job: f"quarantined as {shown(job.target or '')} after attempt {job.attempt}",
    Fate.GIVE_BACK: lambda _job: "given back",
}


def _bytes(name: str) -> bytes:
    return name.encode(errors="surrogateescape")
