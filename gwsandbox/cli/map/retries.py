"""Further attempts of ``gwsandbox map`` at an input, with more memory and time."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from gwsandbox.cli.map.options import FailureOptions
from gwsandbox.model.limits import LARGEST_SIZE, LONGEST_SECONDS, Limits
from gwsandbox.model.result import TaskResult
from gwsandbox.model.serialise import as_object

_KEPT = ("success", "exit_code", "start_time", "elapsed_time", "outcome", "detail", "usage")


def may_retry(result: TaskResult, attempt: int, options: FailureOptions) -> bool:
    """Whether an input is worked on again.

    Args:
        result: Of its last attempt.
        attempt: The number of that; the first is 1.
        options: How often, and after which outcomes.
    """
    return attempt <= options.retries and result.outcome in options.retry_on


def limits_of_attempt(
    attempt: int, limits: Limits, options: FailureOptions, most_memory: int = LARGEST_SIZE
) -> Limits | None:
    """The limits of an attempt that differ from those of the run; ``None`` where none does.

    Args:
        attempt: Its number; the first is 1.
        limits: Of the run.
        options: By what they grow.
        most_memory: Bytes past which the memory limit does not grow.
    """
    factors = {"memory": options.retry_memory, "wall_seconds": options.retry_timeout}
    most = {"memory": most_memory, "wall_seconds": LONGEST_SECONDS}
    changed: dict[str, Any] = {}
    for name, value in limits.requested().items():
        if attempt > 1 and factors.get(name):
            grown = min(value * factors[name] ** (attempt - 1), most[name])
            changed[name] = int(grown) if name == "memory" else grown
    return Limits(**changed) if changed else None


def as_earlier(result: TaskResult, limits: Limits) -> dict[str, Any]:
    """An attempt that was followed by another one, for the row of its input."""
    whole = as_object(result)
    return {**{name: whole[name] for name in _KEPT}, "limits": said_limits(limits)}


def said_limits(limits: Limits) -> dict[str, float]:
    """The limits that are to be held, by name, in the order of ``Limits``."""
    requested = limits.requested()
    return {field.name: requested[field.name] for field in fields(Limits) if field.name in requested}
