"""The row of one finished input in the report of ``gwsandbox map``."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

from gwsandbox.cli import repeating
from gwsandbox.cli.map.inputs import Input
from gwsandbox.cli.map.retries import said_limits
from gwsandbox.cli.map.values import unpack
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import TaskResult
from gwsandbox.model.serialise import as_object, said_version
from gwsandbox.model.task import Command, CommandOutput

_LONGEST_OUTPUT = 1 << 16  # bytes of a program's stdout or stderr in a row


@dataclass(slots=True)
class PendingInput:
    """An input whose task is queued or runs.

    Args:
        file: The input.
        staged: Path that the task writes to; ``None`` without an output folder.
        output: Final path of the output; likewise.
        words: The work, as the report has it.
        limits: Of this attempt.
        attempt: Its number; the first is 1.
        earlier: Attempts before it, as the report has them.
    """

    file: Input
    staged: str | None
    output: str | None
    words: list[str]
    limits: Limits
    attempt: int = 1
    earlier: list[dict[str, Any]] = field(default_factory=list)

    def repeat(self, output_dir: str | None, *, is_program: bool) -> list[str]:
        """The words that work on this input alone, in a folder of its own."""
        limits = said_limits(self.limits)
        if is_program:
            return repeating.repeat_program(self.words, limits)
        return repeating.repeat_function(self.words[0], self.file.path, output_dir, limits)


@dataclass(frozen=True, slots=True)
class Content:
    """What a task gave.

    Args:
        fields: Fields of the row: ``result`` of a function, ``stdout`` and ``stderr`` of a program.
        why_not: Why the value of a function is not among them; empty where nothing is missing.
    """

    fields: dict[str, Any]
    why_not: str = ""


def content_of(result: TaskResult) -> Content:
    """What the function returned, or the program wrote; nothing where that is nothing."""
    if isinstance(result.result, CommandOutput):
        written = {"stdout": result.result.stdout, "stderr": result.result.stderr}
        return Content({name: _tail(data) for name, data in written.items() if data})
    value = unpack(result.result)
    return Content({} if value.json is None else {"result": value.json}, value.why_not)


def make_row(pending: PendingInput, result: TaskResult, content: Content, output_dir: str | None) -> dict[str, Any]:
    """The row: the input, the fields of its last attempt, earlier attempts, what it gave, and how to repeat it."""
    file = pending.file
    row = {
        "input": file.path,
        "output": pending.output,
        "input_size": file.size,
        "input_mtime_ns": file.mtime_ns,
        "output_size": _size(pending.output) if result.success else None,
        **as_object(result),
        "task": pending.words,
        "limits": said_limits(pending.limits),
        "folder": os.getcwd(),
        "repeat": pending.repeat(output_dir, is_program=isinstance(result.task, Command)),
        "report": said_version("map"),
        **content.fields,
    }
    return {**row, "attempts": pending.earlier} if pending.earlier else row


def _size(path: str | None) -> int | None:
    with contextlib.suppress(OSError):
        return None if path is None else os.stat(path).st_size
    return None


def _tail(data: bytes) -> str:
    """The end of what a program wrote, as text."""
    text = data[-_LONGEST_OUTPUT:].decode(errors="replace")
    return text if len(data) <= _LONGEST_OUTPUT else f"... {text}"
