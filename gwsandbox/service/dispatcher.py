"""The dispatcher: begins attempts on files, and does with each file what the end of its attempt asks for.

Each method that works with files or the job database is a step for the ``StorageGuard``: where it fails, it can be
done again. So a step either does one thing, or hands the next thing over as a step of its own.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import time
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from gwsandbox.model.errors import SandboxError
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.text import shown
from gwsandbox.service.config.config import ServiceConfig
from gwsandbox.service.finished_attempt import (
    CHANGED,
    INTERRUPTED,
    REFUSED,
    FinishedAttempt,
    from_result,
    without_guest,
)
from gwsandbox.service.monitoring.attempt_entry import write_entry
from gwsandbox.service.monitoring.journal import WARNING, Journal
from gwsandbox.service.monitoring.metrics import Metrics
from gwsandbox.service.retry_policy import Fate, decide, quarantine_report
from gwsandbox.service.spool.files import Refused
from gwsandbox.service.spool.incoming import IncomingWatcher
from gwsandbox.service.spool.job_database import Job, JobDatabase, State
from gwsandbox.service.spool.output import NotOnDisk, StillWritten
from gwsandbox.service.spool.spool import Spool, StagedAttempt
from gwsandbox.service.storage_guard import FAILURES, StorageGuard
from gwsandbox.service.worker_pool import Finished, WorkerPool

_FAILURES_IN_A_ROW = 5
_PROBES = 3
_NOT_A_FILES_FAULT = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE})
_OUTPUT_SECONDS = 0.05  # between two looks whether a dying process still has the output open
_OUTPUT_LOOKS = 100


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
    """

    def __init__(
        self,
        config: ServiceConfig,
        *,
        spool: Spool,
        database: JobDatabase,
        watcher: IncomingWatcher,
        pool: WorkerPool,
        journal: Journal,
        metrics: Metrics,
    ) -> None:
        self.config = config
        self._spool, self._database = spool, database
        self._watcher, self._pool = watcher, pool
        self._journal, self._metrics = journal, metrics
        self.storage = StorageGuard(journal, spool.check_storage)
        self.is_stopping = False
        self._waiting: list[tuple[float, int, Job]] = []
        self._order: Iterator[int] = itertools.count()
        self._copying: deque[StagedAttempt] = deque()
        self._staged: deque[StagedAttempt] = deque()
        self._failures = 0
        self._failed_probes = 0
        self._wants_probe = False
        self._is_recovered = False  # until then a running job in the database is one of an earlier service

    # --- the start of an attempt --------------------------------------------------------------------

    def __len__(self) -> int:
        """How many files are in work."""
        return len(self._pool) + len(self._copying) + len(self._staged)

    @property
    def waiting(self) -> int:
        """How many files wait for another attempt."""
        return len(self._waiting)

    def seconds_to_wait(self) -> float | None:
        """Seconds until the first waiting file may be tried; ``None``: no file waits."""
        return max(self._waiting[0][0] - time.monotonic(), 0) if self._waiting else None

    @property
    def is_held(self) -> bool:
        """Whether no attempt may begin now, as a disk fails or the sandbox may not work."""
        return not self._is_recovered or bool(self.storage.failure) or self._wants_probe or self._pool.is_probing

    def has_work(self) -> bool:
        """Whether an attempt could begin now."""
        return not self.is_held and (len(self._watcher) > 0 or self.seconds_to_wait() == 0)

    def begin_one(self) -> None:
        """Begin an attempt on a file that has waited long enough, or else on a new one."""
        if self.seconds_to_wait() == 0:
            self.storage.run(partial(self._begin_again, heapq.heappop(self._waiting)[2].number))
        elif (name := self._watcher.pop()) is not None:
            self._take(name)

    def _begin_again(self, number: int) -> None:
        job = self._database.job(number)
        if job.state is State.WAITING:
            job = self._database.begin(job, self._limits())
        self.storage.run(partial(self._stage, job))

    def _take(self, name: str) -> None:
        try:
            job = self._spool.open_job(name, self._limits())
        except FileNotFoundError:
            return  # its producer has removed it
        except FAILURES as error:
            # The job may be on the disk, as SQLite cannot always say whether a transaction is.
            self.storage.fail(error, self._spool.forget_unfetched)
            self._watcher.put_back(name)
            return
        try:
            self._spool.fetch(job)
        except OSError as error:
            self.storage.run(partial(self._recover, job.number))
            self._leave(name, error)
        else:
            self.storage.run(partial(self._stage, job))

    def _leave(self, name: str, error: OSError) -> None:
        """Leave a file in ``incoming/`` that could not be moved from there."""
        if error.errno in _NOT_A_FILES_FAULT:
            self.storage.fail(error)
            self._watcher.put_back(name)
        elif not isinstance(error, FileNotFoundError) and self._watcher.skip(name):
            text = f"{shown(name)} cannot be taken and stays in incoming: {error.strerror}"
            self._journal.write(text, WARNING, FILE=name.encode(errors="surrogateescape"))

    def _stage(self, job: Job) -> None:
        if self.is_stopping:
            self._end_without_guest(job, Outcome.CANCELLED.name, "the service stops")
            return
        try:
            self._copying.append(self._spool.stage(job))
        except Refused as error:
            self._end_without_guest(job, REFUSED, str(error))
        except StillWritten:
            self._end_without_guest(job, CHANGED, "its producer has it open for writing")
        except OSError as error:
            self._fail_to_copy(job, error)

    def copy_inputs(self, seconds: float) -> None:
        """Copy inputs for up to ``seconds``, and start the attempts whose copies are complete."""
        deadline = time.monotonic() + seconds
        while self._copying and time.monotonic() < deadline:
            staged = self._copying[0]
            try:
                is_complete = staged.copy.advance(deadline)
            except OSError as error:
                self._copying.popleft().copy.close()
                self.storage.run(partial(self._fail_to_copy, staged.job, error))
                continue
            if is_complete:
                self._staged.append(self._copying.popleft())
        while self._staged and self._pool.has_room:
            self._pool.start_attempt(self._staged.popleft())
        if self._wants_probe and self._pool.has_room:
            self._wants_probe = False
            self._pool.start_probe()

    @property
    def is_copying(self) -> bool:
        """Whether ``copy_inputs`` has something to copy."""
        return bool(self._copying)

    def _fail_to_copy(self, job: Job, error: OSError) -> None:
        if error.errno in _NO_ROOM:
            self.storage.fail(error, partial(self._stage, job))
        else:
            self.storage.fail(error)
            self._end_without_guest(job, INTERRUPTED, f"its input could not be copied: {error.strerror}")

    def _limits(self) -> dict[str, Any]:
        return dict(self.config.limits.requested())

    # --- the end of an attempt ----------------------------------------------------------------------

    def finish(self, finished: Sequence[Finished]) -> None:
        """Do what the ends of attempts ask for.

        Raises:
            SandboxError: The sandbox itself fails, even for a task that does nothing.
        """
        for one in finished:
            if one.staged is None:
                self._finish_probe(one.result)
            else:
                self._count_failures(one.result)
                self.storage.run(partial(self._finish, one.staged, one.result, _OUTPUT_LOOKS))

    def _finish(self, staged: StagedAttempt, result: TaskResult, looks: int) -> None:
        attempt = from_result(staged.job, self._database.attempts(staged.job), result)
        if result.outcome is not Outcome.CANCELLED and self._spool.is_changed(staged):
            attempt = attempt.overruled(CHANGED, "its producer changed it during the attempt")
        elif attempt.end.outcome == Outcome.SUCCEEDED.name:
            try:
                self._spool.take_output(staged.job)
            except Refused as error:
                attempt = attempt.overruled(Outcome.FAILED.name, f"the worker succeeded, but {error}")
            except StillWritten:
                if looks > 0:
                    self.storage.run_later(_OUTPUT_SECONDS, partial(self._finish, staged, result, looks - 1))
                    return
                detail = "the worker succeeded, but a process that it left behind still writes its output"
                attempt = attempt.overruled(Outcome.FAILED.name, detail)
            except NotOnDisk as error:
                self.storage.fail(error)
                attempt = attempt.overruled(INTERRUPTED, f"the disk did not take the output: {error}")
        self._conclude(attempt)

    def _end_without_guest(self, job: Job, outcome: str, detail: str) -> None:
        self._conclude(without_guest(job, self._database.attempts(job), outcome, detail))

    def _conclude(self, attempt: FinishedAttempt) -> None:
        fate = decide(attempt, self.config, is_stopping=self.is_stopping)
        self.storage.run(
            partial(self._carry_out, attempt, attempt.job, fate), partial(self._carry_out_again, attempt, fate)
        )

    def _carry_out_again(self, attempt: FinishedAttempt, fate: Fate) -> None:
        """Go on where ``_carry_out`` failed: the job database says how far it came."""
        self._carry_out(attempt, self._database.job(attempt.job.number), fate)

    def _carry_out(self, attempt: FinishedAttempt, job: Job, fate: Fate) -> None:
        end = attempt.end
        if job.state is not State.RUNNING:
            job = self._spool.resume(job)
        elif fate is Fate.PUBLISH:
            job = self._spool.publish(job, end)
        elif fate is Fate.TRY_AGAIN:
            job = self._spool.wait(job, end)
        elif fate is Fate.QUARANTINE:
            job = self._spool.reject(job, end, quarantine_report(attempt))
        else:
            job = self._spool.give_back(job, end)
        if fate is Fate.TRY_AGAIN:
            self._try_again(job, self.config.retry_delay_seconds)
        elif end.outcome == CHANGED:
            self._watcher.settle(job.target or job.name)
        self._metrics.attempt(end, fate)
        write_entry(self._journal, job, end, fate)

    def _try_again(self, job: Job, delay: float) -> None:
        heapq.heappush(self._waiting, (time.monotonic() + delay, next(self._order), job))

    # --- sandboxes that fail ------------------------------------------------------------------------

    def _count_failures(self, result: TaskResult) -> None:
        """Find out whether the sandbox itself fails. Guests can make theirs fail, so a task without a file decides."""
        self._failures = self._failures + 1 if result.outcome is Outcome.SANDBOX_ERROR else 0
        if self._failures >= _FAILURES_IN_A_ROW and not self._pool.is_probing:
            self._wants_probe = True

    def _finish_probe(self, result: TaskResult) -> None:
        if result.outcome in {Outcome.SUCCEEDED, Outcome.CANCELLED}:
            text = f"{self._failures} attempts in a row failed in the sandbox, but an empty task works: it goes on"
            self._journal.write(text, WARNING)
            self._failures = self._failed_probes = 0
        elif self._pool.needs_another and self._failed_probes < _PROBES:
            self._failed_probes += 1
            self._wants_probe = True  # a guest beside it may have ended the supervisor
        else:
            remedy = f"it failed {self._failures} times in a row, then for an empty task; see gwsandbox doctor"
            raise SandboxError("run a sandbox", value=result.detail, remedy=remedy)

    # --- the start and the end of the service -------------------------------------------------------

    def recover(self) -> None:
        """Go on with the jobs of an earlier service."""
        self.storage.run(self._recover_all)
        self.storage.run(self._spool.adopt_unknown)

    def _recover_all(self) -> None:
        for job in self._database.unfinished():
            self.storage.run(partial(self._recover, job.number))
        self._is_recovered = True

    def _recover(self, number: int) -> None:
        job = self._spool.recover(self._database.job(number))
        if job.state is State.WAITING:
            self._try_again(job, 0)
        elif job.state is State.RUNNING:
            self._end_without_guest(job, INTERRUPTED, "the service ended during the attempt")

    def stop(self) -> None:
        """Begin no attempt any more, and give back the files whose attempts have not begun."""
        self.is_stopping = True
        not_begun = [*self._copying, *self._staged]
        self._copying.clear()
        self._staged.clear()
        for staged in not_begun:
            staged.copy.close()
            self.storage.run(partial(self._end_without_guest, staged.job, Outcome.CANCELLED.name, "the service stops"))

    def give_back_waiting(self) -> None:
        """Give back the files that wait for another attempt, so that a stopped service keeps no file."""
        while self._waiting:
            job = heapq.heappop(self._waiting)[2]
            self.storage.run(partial(self._give_back, job.number))

    def _give_back(self, number: int) -> None:
        job = self._database.job(number)
        if job.state is State.WAITING:
            self._spool.give_back(job)
        else:
            self._spool.resume(job)
