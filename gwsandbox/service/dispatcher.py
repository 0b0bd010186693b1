"""The clerk: begins attempts on files, and does with a file what the end of an attempt asks for."""

from __future__ import annotations

import errno
import heapq
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gwsandbox.model.errors import SandboxError
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.text import shown
from gwsandbox.service.config.config import Config
from gwsandbox.service.monitoring.journal import INFO, NOTICE, WARNING, Journal
from gwsandbox.service.monitoring.metrics import Figures
from gwsandbox.service.retry_policy import INTERRUPTED, REFUSED, Fate, conclude, decide, report
from gwsandbox.service.spool.incoming import Intake
from gwsandbox.service.spool.job_database import Ending, Job, Ledger
from gwsandbox.service.spool.spool import NoOutput, Spool
from gwsandbox.service.worker_pool import Crew, Finished

MESSAGE_ID = "b1c1f0a6d6a44c0b9f5f3a5d0e7a4c21"
"""Of the journal entry at the end of every attempt: ``journalctl MESSAGE_ID=…``."""

_FAILURES_IN_A_ROW = 5
_NOT_A_FILES_FAULT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})
_ENDS = {Fate.PUBLISH: "done", Fate.QUARANTINE: "quarantined", Fate.GIVE_BACK: "returned"}


@dataclass(slots=True)
class Clerk:
    """Moves files between the intake, the crew and the spool.

    Args:
        config: May be replaced at any time; holds for what begins after that.
        spool: The folders, and the ledger with them.
        ledger: To be asked.
        intake: Where files come from.
        crew: Who works on them.
        journal: Who is told.
        figures: Who counts.
        is_stopping: Whether the service is.
    """

    config: Config
    spool: Spool
    ledger: Ledger
    intake: Intake
    crew: Crew
    journal: Journal
    figures: Figures
    is_stopping: bool = False
    _waiting: list[tuple[float, int, Job]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _failures: int = 0

    # --- beginning ----------------------------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """How many files wait for another attempt."""
        return len(self._waiting)

    def seconds_to_wait(self) -> float | None:
        """Until the first of those may begin."""
        return max(self._waiting[0][0] - time.monotonic(), 0) if self._waiting else None

    def has_work(self) -> bool:
        """Whether an attempt could begin now."""
        return len(self.intake) > 0 or self.seconds_to_wait() == 0

    def begin_one(self) -> None:
        """Begin an attempt on a file that has waited long enough, or else on a new one."""
        if self.seconds_to_wait() == 0:
            job = heapq.heappop(self._waiting)[2]
            self.spool.try_again(job, self._limits())
            self._begin(job)
        elif (name := self.intake.pop()) is not None:
            self._take(name)

    def _take(self, name: str) -> None:
        try:
            job = self.spool.take(name, self._limits())
        except FileNotFoundError:
            return  # its producer has changed its mind
        except OSError as error:
            if error.errno in _NOT_A_FILES_FAULT:
                raise
            if self.intake.leave(name):
                text = f"{shown(name)} cannot be taken and stays in incoming: {error.strerror}"
                self.journal.write(text, WARNING, FILE=_bytes(name))
            return
        if refused := self.spool.why_refused(job):
            self._settle(job, Ending(outcome=REFUSED, detail=refused), None)
        else:
            self._begin(job)

    def _begin(self, job: Job) -> None:
        self.crew.work_on(job, self.spool.give_to_guest(job))

    def _limits(self) -> dict[str, Any]:
        return dict(self.config.limits.requested())

    # --- ending -------------------------------------------------------------------------------------

    def await_births(self, finished: Sequence[Finished]) -> None:
        """Do what the ends of attempts ask for.

        Raises:
            SandboxError: The sandbox itself fails again and again.
        """
        failures = [one for one in finished if one.result.outcome is Outcome.SANDBOX_ERROR]
        for one in finished:
            self._settle(one.job, conclude(one.result), one.result)
        if len(failures) == len(finished):
            self._failures += bool(finished)
        else:
            self._failures = 0
        if self._failures >= _FAILURES_IN_A_ROW:
            raise SandboxError(
                "run a sandbox",
                value=failures[0].result.detail,
                remedy=f"it failed {self._failures} times in a row; see gwsandbox doctor",
            )

    def _settle(self, job: Job, ending: Ending, result: TaskResult | None) -> None:
        fate = decide(ending.outcome, self.ledger.outcomes(job), self.config, is_stopping=self.is_stopping)
        if fate is Fate.PUBLISH:
            try:
                self.spool.publish(job, ending)
            except NoOutput as error:
                ending = replace(ending, outcome=Outcome.FAILED.name, detail=str(error))
                fate = decide(ending.outcome, self.ledger.outcomes(job), self.config)
        match fate:
            case Fate.TRY_AGAIN:
                self.spool.wait(job, ending)
                self._try_again(job, self.config.retry_delay_seconds)
            case Fate.QUARANTINE:
                told = report(job.name, job.number, ending, self.ledger.attempts(job), result)
                self.spool.reject(job, ending, told)
            case Fate.GIVE_BACK:
                self.spool.give_back(job, ending)
        self._tell(job, ending, fate)

    def _try_again(self, job: Job, delay: float) -> None:
        heapq.heappush(self._waiting, (time.monotonic() + delay, next(self._order), job))

    def _tell(self, job: Job, ending: Ending, fate: Fate) -> None:
        self.figures.attempt(ending)
        if fate in _ENDS:
            self.figures.file(_ENDS[fate])
        text = f"{shown(job.name)}: {ending.outcome}, {_WORDS[fate](job)}"
        self.journal.write(
            f"{text}: {ending.detail}" if ending.detail else text,
            INFO if fate is Fate.PUBLISH else NOTICE,
            MESSAGE_ID=MESSAGE_ID,
            FILE=_bytes(job.name),
            JOB=job.number,
            ATTEMPT=job.attempt,
            FATE=fate.name,
            TARGET=None if job.target is None else _bytes(job.target),
            OUTCOME=ending.outcome,
            DETAIL=ending.detail,
            EXIT_STATUS=ending.exit_code,
            PEAK=ending.memory_peak_bytes,
            WALL_SECONDS=ending.wall_seconds,
            CPU_SECONDS=ending.cpu_seconds,
        )

    # --- the start and the end of the service -------------------------------------------------------

    def recover(self) -> None:
        """Go on where an earlier service ended."""
        found = self.spool.recover()
        for job in found.waiting:
            self._try_again(job, 0)
        for job in found.interrupted:
            self._settle(job, Ending(outcome=INTERRUPTED, detail="the service ended meanwhile"), None)

    def give_back_waiting(self) -> None:
        """Give back what waits for another attempt, so that a stopped service keeps no file."""
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
