"""What becomes of a file after an attempt, and the report on it. Pure functions over ``FinishedAttempt``."""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import asdict
from typing import Any

from gwsandbox.model.result import Outcome
from gwsandbox.model.serialise import as_object, said_version
from gwsandbox.service.config.config import ServiceConfig
from gwsandbox.service.finished_attempt import CHANGED, INTERRUPTED, REFUSED, FinishedAttempt

_OURS = (INTERRUPTED, Outcome.SANDBOX_ERROR.name)
_NOT_COUNTED = frozenset({*_OURS, Outcome.CANCELLED.name, REFUSED, CHANGED})


class Fate(enum.Enum):
    """What becomes of a file."""

    PUBLISH = enum.auto()
    TRY_AGAIN = enum.auto()
    QUARANTINE = enum.auto()
    GIVE_BACK = enum.auto()


def decide(attempt: FinishedAttempt, config: ServiceConfig, *, is_stopping: bool = False) -> Fate:
    """Decide what becomes of the file of an attempt.

    Args:
        attempt: The attempt and the job's history.
        config: How often a file may be tried.
        is_stopping: The service is stopping: a kill of the service may have killed the guest too.
    """
    outcome, before = attempt.end.outcome, Counter(attempt.earlier)
    if outcome == Outcome.SUCCEEDED.name:
        return Fate.PUBLISH
    if outcome in {Outcome.CANCELLED.name, CHANGED} or (is_stopping and outcome == Outcome.KILLED.name):
        return Fate.GIVE_BACK
    if outcome in _OURS:
        # The file may be the cause: a guest can end its supervisor, or the whole service.
        is_last = sum(before[name] for name in _OURS) + 1 >= config.interruptions
    elif outcome in {retried.name for retried in config.retry}:
        is_last = sum(n for name, n in before.items() if name not in _NOT_COUNTED) + 1 >= config.attempts
    else:
        is_last = True
    return Fate.QUARANTINE if is_last else Fate.TRY_AGAIN


def quarantine_report(attempt: FinishedAttempt) -> dict[str, Any]:
    """The report beside a file in ``quarantine/``: the last attempt's result, and a row for each attempt."""
    job, end, result = attempt.job, attempt.end, attempt.result
    found: dict[str, Any] = {} if result is None else as_object(result)
    found |= {"outcome": end.outcome, "detail": end.detail, "success": False}
    if result is not None:
        found["exception"] = found["exception"] if attempt.failure is None else asdict(attempt.failure)
        found["stderr"] = attempt.stderr
    rows = [asdict(row) for row in attempt.rows]
    rows[-1] |= asdict(end)
    return {"file": job.name, "job": job.number, **found, "attempts": rows, "report": said_version("service")}
