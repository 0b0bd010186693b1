"""A span of OpenTelemetry for each task, in the trace of the caller.

The caller's own use of OpenTelemetry turns it on: nothing is imported here, and nothing is done where the caller does
not use it. A span begins and ends as the guest did.
"""

from __future__ import annotations

import sys
from typing import Any

from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import Command
from gwsandbox.model.text import shorten_detail, type_name

_NANOSECONDS = 1_000_000_000
_NAME = "gwsandbox"


def trace_result(result: TaskResult) -> None:
    """Give the caller's tracer a span of a finished task, as a child of the span that is current."""
    api = sys.modules.get("opentelemetry.trace")
    if api is None or result.start_time is None or result.end_time is None:
        return
    task = result.task
    name = task.argv[0] if isinstance(task, Command) else getattr(task.func, "__qualname__", "task")
    span = api.get_tracer(_NAME).start_span(name, start_time=int(result.start_time * _NANOSECONDS))
    if span.is_recording():
        span.set_attributes(_attributes(result))
        if not result.success:
            span.set_status(api.StatusCode.ERROR, shorten_detail(result.detail))
    span.end(int(result.end_time * _NANOSECONDS))


def _attributes(result: TaskResult) -> dict[str, Any]:
    """By the names of OpenTelemetry's conventions, where they have one."""
    usage = result.usage
    found = {
        "process.exit.code": result.exit_code,
        "error.type": None if result.success else _error_type(result),
        "gwsandbox.outcome": result.outcome.name,
        "gwsandbox.backend": result.enforcement.backend,
        "gwsandbox.memory_peak_bytes": usage.memory_peak_bytes,
        "gwsandbox.cpu_user_seconds": usage.cpu_user_seconds,
        "gwsandbox.cpu_system_seconds": usage.cpu_system_seconds,
    }
    return {name: value for name, value in found.items() if value is not None}


def _error_type(result: TaskResult) -> str:
    return result.outcome.name if result.exception is None else type_name(result.exception)
