"""Reports in the format that a file's name asks for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

from gwsandbox.model.errors import SandboxError
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import TaskResult
from gwsandbox.model.serialise import as_object
from gwsandbox.report.page import make_page
from gwsandbox.report.rows import ReportRow, make_row, title_of
from gwsandbox.report.text import make_csv, make_markdown

FORMATS: Mapping[str, Callable[[Sequence[ReportRow], str], str]] = {
    "html": make_page,
    "md": make_markdown,
    "csv": lambda rows, _title: make_csv(rows),
}
"""What makes a report of rows and a title, by the suffix of its file."""


def report_results(results: Iterable[TaskResult], limits: Limits, path: str) -> None:
    """Write a report of results, in the format that the suffix of ``path`` asks for.

    Args:
        results: How tasks ended.
        limits: Of each, where it has no others.
        path: Of the file.

    Raises:
        SandboxError: It cannot be written, its suffix is of no format, or a package is missing.
    """
    form = format_of(path)
    rows = []
    for result in results:
        own = limits.overridden_by(result.task.limits)
        rows.append(make_row({**as_object(result), "limits": dict(own.requested())}))
    write_whole(path, FORMATS[form](rows, title_of(path, rows)))


def format_of(path: str) -> str:
    """The format that the name of a file asks for.

    Raises:
        SandboxError: It asks for none that there is.
    """
    suffix = os.path.splitext(path)[1].lower().removeprefix(".")
    if suffix not in FORMATS:
        remedy = f"give it one of these suffixes: {', '.join(f'.{name}' for name in FORMATS)}"
        raise SandboxError("make report: no format has this suffix", path=path, remedy=remedy)
    return suffix


def write_whole(path: str, text: str) -> None:
    """Write a file so that it is there whole or not at all; what is no regular file is written to.

    Raises:
        SandboxError: It cannot be written.
    """
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        else:
            _replace(os.path.realpath(path), text)
    except OSError as error:
        raise SandboxError("write report", path=path, errno=error.errno or 0) from error


def _replace(path: str, text: str) -> None:
    staged = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{os.getpid()}"
    try:
        with open(staged, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
        os.replace(staged, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(staged)
        raise
