"""What becomes of a file after an attempt: ``conclude`` says how it ended, ``decide`` what follows."""

from __future__ import annotations

import enum
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.serialise import as_object
from gwsandbox.model.task import CommandOutput
from gwsandbox.model.text import shown
from gwsandbox.service.call import failure_of
from gwsandbox.service.config.config import Config
from gwsandbox.service.spool.job_database import Ending

INTERRUPTED = "INTERRUPTED"
"""The service ended while the attempt ran."""
REFUSED = "REFUSED"
"""The file is none that a guest may be given."""

_OURS = (INTERRUPTED, Outcome.SANDBOX_ERROR.name)
_NOT_COUNTED = frozenset({*_OURS, Outcome.CANCELLED.name, REFUSED})
_LONGEST_DETAIL = 2000


class Fate(enum.Enum):
    """What becomes of a file."""

    PUBLISH = enum.auto()
    TRY_AGAIN = enum.auto()
    QUARANTINE = enum.auto()
    GIVE_BACK = enum.auto()


def decide(outcome: str, before: Counter[str], config: Config, *, is_stopping: bool = False) -> Fate:
    """What becomes of a file.

    Args:
        outcome: Of the attempt that ended now.
        before: How often each outcome ended the earlier ones.
        config: How often it may be tried.
        is_stopping: The service is to stop: who kills it may have killed the guest too.
    """
    if outcome == Outcome.SUCCEEDED.name:
        return Fate.PUBLISH
    if outcome == Outcome.CANCELLED.name or (is_stopping and outcome == Outcome.KILLED.name):
        return Fate.GIVE_BACK
    if outcome in _OURS:
        # It may be the file's doing: a guest can take its supervisor, or the whole service, with it.
        is_last = sum(before[name] for name in _OURS) + 1 >= config.interruptions
    elif outcome in {retried.name for retried in config.retry}:
        is_last = sum(n for name, n in before.items() if name not in _NOT_COUNTED) + 1 >= config.attempts
    else:
        is_last = True
    return Fate.QUARANTINE if is_last else Fate.TRY_AGAIN


def conclude(result: TaskResult) -> Ending:
    """How an attempt ended, with what the worker itself says about it."""
    usage = result.usage
    outcome, detail = result.outcome, result.detail
    if told := failure_of(result.result):
        if outcome is Outcome.SUCCEEDED:
            outcome, detail = Outcome.FAILED, "the function raised"
        detail = f"{detail}: {told['type']}: {told['message']}"
    elif outcome is Outcome.FAILED and (words := last_words(result)):
        detail = f"{detail}: {words.splitlines()[-1]}"
    cpu = None
    if usage.cpu_user_seconds is not None and usage.cpu_system_seconds is not None:
        cpu = usage.cpu_user_seconds + usage.cpu_system_seconds
    return Ending(
        outcome=outcome.name,
        detail=shown(detail)[:_LONGEST_DETAIL],
        exit_code=result.exit_code,
        wall_seconds=usage.wall_seconds,
        cpu_seconds=cpu,
        memory_peak_bytes=usage.memory_peak_bytes,
    )


def last_words(result: TaskResult) -> str:
    """The end of what a program wrote to stderr."""
    if not isinstance(result.result, CommandOutput):
        return ""
    return shown(result.result.stderr[-_LONGEST_DETAIL:].decode(errors="replace")).strip()


def report(
    name: str, job: int, ending: Ending, attempts: list[dict[str, Any]], result: TaskResult | None
) -> dict[str, Any]:
    """What is written beside a file in quarantine.

    Args:
        name: Of the file, as it came.
        job: Its number in the ledger.
        ending: Of the last attempt.
        attempts: The rows of all attempts, that of the last as yet without its end.
        result: Of the last attempt, where there is one, with all its figures.
    """
    found: dict[str, Any] = {} if result is None else as_object(result)
    found |= {"outcome": ending.outcome, "detail": ending.detail, "success": False}
    if result is not None:
        told = failure_of(result.result)
        found["exception"] = told or found["exception"]
        found["stderr"] = last_words(result)
    last = {**asdict(ending), "ended_at": time.time() if result is None else result.end_time}
    return {"file": name, "job": job, **found, "attempts": [*attempts[:-1], attempts[-1] | last]}
