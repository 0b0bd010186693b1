"""Reports of ``run``, ``map`` and the service, read back: one row for each task.

A row holds texts and figures of guests, and somebody may have written the file by hand. So every field is checked, and
one that is not what it should be counts as not there.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gwsandbox.model.errors import SandboxError
from gwsandbox.model.result import Outcome

_GIB = 1024**3
_LONGEST = 4000  # characters of a text of a guest
_LARGEST_FILE = 1 << 31  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportRow:
    """How one task ended, as a report has it.

    Args:
        name: The input file, else the command line.
        outcome: Its name: of ``Outcome``, or one of the service's own.
        detail: One sentence.
        exit_code: Of the task.
        start: Seconds since the Epoch.
        end: Likewise.
        seconds: Of wall-clock time.
        cpu_seconds: User and system time together.
        memory_peak: Bytes.
        pids_peak: Processes and threads at a time.
        output_size: Bytes of the output file.
        sources: For each figure, where it is from.
        limits: Those that were to be held, by name.
        held: For each limit, what held it.
        degraded: For each limit that was held less than fully, why.
        backend: What held them.
        exception: Type and message of what a function raised.
        traceback: Of that, where there is one.
        stderr: The end of what the program wrote there.
        words: The function or program, and its arguments.
        attempts: How many there were.
        folder: Where it ran.
        repeat: The words of the command line that repeats it alone.
    """

    name: str
    outcome: str
    detail: str = ""
    exit_code: int | None = None
    start: float | None = None
    end: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    memory_peak: float | None = None
    pids_peak: int | None = None
    output_size: float | None = None
    sources: Mapping[str, str] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    held: Mapping[str, str] = field(default_factory=dict)
    degraded: Mapping[str, str] = field(default_factory=dict)
    backend: str = ""
    exception: str = ""
    traceback: str = ""
    stderr: str = ""
    words: tuple[str, ...] = ()
    attempts: int = 1
    folder: str = ""
    repeat: tuple[str, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether the task did what it was for."""
        return self.outcome == Outcome.SUCCEEDED.name


def read_rows(path: str) -> list[ReportRow]:
    """The rows of a report: of ``map`` (JSON lines), of ``run`` or of the service (one object).

    Of several rows on one input the last stands.

    Raises:
        SandboxError: The file cannot be read, or is no report.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST_FILE)
    except OSError as error:
        raise SandboxError("read report", path=path, errno=error.errno or 0) from error
    rows = {}
    for number, value in enumerate(_objects(data, path), 1):
        if not isinstance(value, dict) or not isinstance(value.get("outcome"), str):
            raise SandboxError("read report: it is none", path=path, value=f"object {number}", remedy=_REMEDY)
        row = make_row(value)
        rows[row.name if "input" in value else f"{row.name}\0{number}"] = row
    return list(rows.values())


_REMEDY = "give a file that --report of gwsandbox run or map has written, or a .report.json of the service"


def _objects(data: bytes, path: str) -> Iterator[Any]:
    lines = data.splitlines(keepends=True)
    try:
        if lines and lines[0].strip() != b"{":
            # The last line of a run that was killed may be torn.
            whole = lines if len(lines) == 1 or lines[-1].endswith(b"\n") else lines[:-1]
            yield from (json.loads(line) for line in whole if line.strip())
        elif lines:
            yield json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SandboxError("read report: it is no JSON", path=path, remedy=_REMEDY) from error


def make_row(value: Mapping[str, Any]) -> ReportRow:
    """One object of a report as a row."""
    usage, enforcement = _mapping(value.get("usage")), _mapping(value.get("enforcement"))
    exception = _mapping(value.get("exception"))
    words = _texts(value.get("task"))
    earlier = value.get("attempts")
    name = _text(value.get("input")) or _text(value.get("file")) or " ".join(words)
    cpu = [_number(usage.get(key)) for key in ("cpu_user_seconds", "cpu_system_seconds")]
    kind, message = _text(exception.get("type")), _text(exception.get("message"))
    return ReportRow(
        name=name or "(without a name)",
        outcome=_text(value.get("outcome")),
        detail=_text(value.get("detail")),
        exit_code=_whole(value.get("exit_code")),
        start=_number(value.get("start_time")),
        end=_number(value.get("end_time")),
        seconds=_number(value.get("elapsed_time")),
        cpu_seconds=None if None in cpu else sum(part for part in cpu if part is not None),
        memory_peak=_number(usage.get("memory_peak_bytes")),
        pids_peak=_whole(usage.get("pids_peak")),
        output_size=_number(value.get("output_size")),
        sources=_text_mapping(usage.get("sources")),
        limits=_limits(value),
        held=_text_mapping(enforcement.get("limits")),
        degraded=_text_mapping(enforcement.get("degraded")),
        backend=_text(enforcement.get("backend")),
        exception=f"{kind}: {message}" if kind else "",
        traceback=_end(exception.get("traceback")),
        stderr=_end(value.get("stderr")),
        words=words,
        attempts=1 + len(earlier) if isinstance(earlier, list) and "file" not in value else 1,
        folder=_text(value.get("folder")),
        repeat=_texts(value.get("repeat")),
    )


def _limits(value: Mapping[str, Any]) -> dict[str, float]:
    found = {name: number for name, each in _mapping(value.get("limits")).items() if (number := _number(each))}
    gib, seconds = _number(value.get("memory_limit_in_gib")), _number(value.get("timeout_seconds"))
    if gib:
        found.setdefault("memory", gib * _GIB)
    if seconds:
        found.setdefault("wall_seconds", seconds)
    return found


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text_mapping(value: object) -> dict[str, str]:
    return {name: each[:_LONGEST] for name, each in _mapping(value).items() if isinstance(each, str)}


def _text(value: object) -> str:
    return value[:_LONGEST] if isinstance(value, str) else ""


def _end(value: object) -> str:
    return value[-_LONGEST:] if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(value) if isinstance(value, list) and all(isinstance(word, str) for word in value) else ()


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) and value >= 0 else None
    except OverflowError:
        return None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63 else None


def title_of(path: str, rows: Iterable[ReportRow]) -> str:
    """A title for a report: what was run, else its name."""
    words = next((row.words for row in rows if row.words), ())
    return os.path.basename(words[0]) if words else os.path.basename(path)
