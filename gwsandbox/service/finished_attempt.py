"""``FinishedAttempt``: everything that is known of an attempt when it ends, read once.

The retry policy and the report in ``quarantine/`` are pure functions over this record.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import CommandOutput
from gwsandbox.model.text import shown
from gwsandbox.service.spool.job_database import AttemptEnd, AttemptRow, Job
from gwsandbox.service.worker_function import WorkerFailure, parse_failure

CHANGED = "CHANGED"
"""A producer still wrote the file when the attempt began, or during it."""
INTERRUPTED = "INTERRUPTED"
"""The service ended during the attempt, or its disk failed."""
REFUSED = "REFUSED"
"""The service does not give such a file to a guest."""

_LONGEST_DETAIL = 2000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedAttempt:
    """An attempt at its end, and the job's history.

    Args:
        job: The file that was worked on.
        end: How the attempt ended: the part that the job database keeps.
        rows: The job's attempts in the database, oldest first. The last one is this attempt, without its end.
        result: The engine's result; ``None`` where no guest ran.
        failure: The exception of the worker function; ``None`` where it raised none.
        stderr: The end of what a worker program wrote to stderr.
    """

    job: Job
    end: AttemptEnd
    rows: tuple[AttemptRow, ...]
    result: TaskResult | None = None
    failure: WorkerFailure | None = None
    stderr: str = ""

    @property
    def earlier(self) -> list[str]:
        """The outcomes of the job's earlier attempts."""
        return [row.outcome for row in self.rows[:-1] if row.outcome is not None]

    def overruled(self, outcome: str, detail: str) -> FinishedAttempt:
        """The same attempt with the outcome that the state of its input or output gives it."""
        return replace(self, end=replace(self.end, outcome=outcome, detail=detail))


def without_guest(job: Job, rows: Sequence[AttemptRow], outcome: str, detail: str) -> FinishedAttempt:
    """The record of an attempt without a result: its guest never ran, or ran under an earlier service."""
    return FinishedAttempt(job=job, rows=tuple(rows), end=AttemptEnd(outcome, detail=detail, ended_at=time.time()))


def from_result(job: Job, rows: Sequence[AttemptRow], result: TaskResult) -> FinishedAttempt:
    """The record of an attempt whose guest ran."""
    failure = parse_failure(result.result)
    stderr = _end_of_stderr(result)
    outcome, detail = _outcome(result, failure, stderr)
    usage = result.usage
    cpu = None
    if usage.cpu_user_seconds is not None and usage.cpu_system_seconds is not None:
        cpu = usage.cpu_user_seconds + usage.cpu_system_seconds
    end = AttemptEnd(
        outcome,
        detail=shown(detail)[:_LONGEST_DETAIL],
        ended_at=time.time() if result.end_time is None else result.end_time,
        exit_code=result.exit_code,
        wall_seconds=usage.wall_seconds,
        cpu_seconds=cpu,
        memory_peak_bytes=usage.memory_peak_bytes,
    )
    return FinishedAttempt(job=job, end=end, rows=tuple(rows), result=result, failure=failure, stderr=stderr)


def _outcome(result: TaskResult, failure: WorkerFailure | None, stderr: str) -> tuple[str, str]:
    """The outcome of the attempt, and its detail with the worker's own words."""
    outcome, detail = result.outcome, result.detail
    if failure is not None:
        if outcome is Outcome.SUCCEEDED:
            outcome, detail = Outcome.FAILED, "the function raised"
        detail = f"{detail}: {failure.type}: {failure.message}"
    elif outcome is Outcome.FAILED and stderr:
        detail = f"{detail}: {stderr.splitlines()[-1]}"
    return outcome.name, detail


def _end_of_stderr(result: TaskResult) -> str:
    if not isinstance(result.result, CommandOutput):
        return ""
    return shown(result.result.stderr[-_LONGEST_DETAIL:].decode(errors="replace")).strip()
