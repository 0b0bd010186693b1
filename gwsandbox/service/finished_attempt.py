"""``FinishedAttempt``: everything that is known of an attempt when it ends, read once.

The retry policy and the report in ``quarantine/`` are pure functions over this record.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import CommandOutput
from gwsandbox.model.text import shown
from gwsandbox.service.spool.job_database import AttemptEnd, AttemptRow, Job
from gwsandbox.service.worker_function import WorkerFailure, parse_failure

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


def without_guest(job: Job, rows: Sequence[AttemptRow], outcome: str, detail: str) -> FinishedAttempt:
    """The record of an attempt whose guest never ran, or ran under an earlier service."""
    return FinishedAttempt(job=job, rows=tuple(rows), end=AttemptEnd(outcome, detail, ended_at=time.time()))


def from_result(job: Job, rows: Sequence[AttemptRow], result: TaskResult, output_error: str) -> FinishedAttempt:
    """The record of an attempt whose guest ran.

    Args:
        job: The file that was worked on.
        rows: The job's attempts in the database.
        result: The engine's result.
        output_error: Why the output cannot be published; empty where it can, or where the guest did not succeed.
    """
    failure = parse_failure(result.result)
    stderr = _end_of_stderr(result)
    outcome, detail = _outcome(result, failure, stderr, output_error)
    usage = result.usage
    cpu = None
    if usage.cpu_user_seconds is not None and usage.cpu_system_seconds is not None:
        cpu = usage.cpu_user_seconds + usage.cpu_system_seconds
    end = AttemptEnd(
        outcome.name,
        shown(detail)[:_LONGEST_DETAIL],
        ended_at=time.time() if result.end_time is None else result.end_time,
        exit_code=result.exit_code,
        wall_seconds=usage.wall_seconds,
        cpu_seconds=cpu,
        memory_peak_bytes=usage.memory_peak_bytes,
    )
    return FinishedAttempt(job=job, end=end, rows=tuple(rows), result=result, failure=failure, stderr=stderr)


def _outcome(result: TaskResult, failure: WorkerFailure | None, stderr: str, output_error: str) -> tuple[Outcome, str]:
    """The outcome of the attempt, and its detail with the worker's own words."""
    outcome, detail = result.outcome, result.detail
    if failure is not None:
        if outcome is Outcome.SUCCEEDED:
            outcome, detail = Outcome.FAILED, "the function raised"
        return outcome, f"{detail}: {failure.type}: {failure.message}"
    if outcome is Outcome.SUCCEEDED and output_error:
        return Outcome.FAILED, output_error
    if outcome is Outcome.FAILED and stderr:
        return outcome, f"{detail}: {stderr.splitlines()[-1]}"
    return outcome, detail


def _end_of_stderr(result: TaskResult) -> str:
    if not isinstance(result.result, CommandOutput):
        return ""
    return shown(result.result.stderr[-_LONGEST_DETAIL:].decode(errors="replace")).strip()
