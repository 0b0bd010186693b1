"""A ``TaskResult`` as plain data and as one line of JSON."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from gwsandbox.model.errors import RemoteError, RemoteTraceback
from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import words_of
from gwsandbox.model.text import cut, safe_text, type_name

_VERSION = 1  # of report/report.schema.json; a field that goes or changes its meaning makes another
_LONGEST_TRACEBACK = 8000  # characters


def said_version(kind: str) -> dict[str, Any]:
    """What each report says of itself under ``report``: its kind, and the version of its schema.

    Args:
        kind: "run", "map", "service" or "doctor".
    """
    return {"kind": kind, "version": _VERSION}


def as_object(result: TaskResult) -> dict[str, Any]:
    """The fields of a result under their own names; ``result`` itself is left out."""
    found = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "result"}
    found["task"] = words_of(result.task)
    found["exception"] = _exception(result.exception)
    found["outcome"] = result.outcome.name
    for name in ("usage", "enforcement"):
        part = found[name]
        found[name] = {field.name: _plain(getattr(part, field.name)) for field in fields(part)}
    return found


def _plain(value: Any) -> Any:
    return dict(value) if hasattr(value, "keys") else value


def _exception(error: BaseException | None) -> dict[str, str] | None:
    if error is None:
        return None
    found = {"type": type_name(error), "message": safe_text(error)}
    if isinstance(error, RemoteError):
        found = {"type": error.type_name, "message": error.text}
    if isinstance(error.__cause__, RemoteTraceback):
        found["traceback"] = cut(safe_text(error.__cause__), _LONGEST_TRACEBACK)
    return found


def as_line(value: dict[str, Any]) -> str:
    """``value`` as one line of JSON; ASCII, since file names need not be text."""
    return json.dumps(value) + "\n"
