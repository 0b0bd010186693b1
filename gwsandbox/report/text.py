"""A report as Markdown, for a message or a page of a repository, and as CSV, for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from gwsandbox.model.text import cut, format_size, one_line, shown
from gwsandbox.report.rows import ReportRow
from gwsandbox.report.summary import causes, largest, outcomes, slowest

_ROWS = 5
_CAUSES = 20
_LONGEST_CELL = 200  # characters
_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|~"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # with which a spreadsheet begins to compute
_COLUMNS = (
    "name",
    "outcome",
    "seconds",
    "cpu_seconds",
    "memory_peak",
    "pids_peak",
    "exit_code",
    "attempts",
    "start",
    "detail",
)


def make_markdown(rows: Sequence[ReportRow], title: str) -> str:
    """The report as Markdown."""
    lines = [f"# {_cell(title)}", "", "| outcome | tasks |", "|---|---:|"]
    lines += [f"| {_cell(outcome)} | {number} |" for outcome, number in outcomes(rows)]
    for heading, found in (("Slowest", slowest(rows, _ROWS)), ("Largest", largest(rows, _ROWS))):
        if not found:
            continue
        lines += ["", f"## {heading}", "", "| time | peak memory | task |", "|---:|---:|---|"]
        lines += [f"| {_seconds(row)} | {_peak(row)} | {_cell(row.name)} |" for row in found]
    if found_causes := causes(rows):
        lines += ["", "## Failures", "", "| outcome | tasks | detail | first |", "|---|---:|---|---|"]
        lines += [
            f"| {_cell(cause.outcome)} | {len(cause.rows)} | {_cell(cause.detail)} | {_cell(cause.rows[0].name)} |"
            for cause in found_causes[:_CAUSES]
        ]
    return "\n".join(lines) + "\n"


def make_csv(rows: Sequence[ReportRow]) -> str:
    """The report as CSV: a line for each task, seconds and bytes as numbers."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in rows:
        values = [getattr(row, name) for name in _COLUMNS]
        writer.writerow([_plain(value) if isinstance(value, str) else value for value in values])
    return text.getvalue()


def _plain(text: str) -> str:
    """A text that a spreadsheet does not take for a formula."""
    text = shown(text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cell(text: str) -> str:
    return cut(one_line(shown(text)), _LONGEST_CELL).replace("\n", " ").translate(_MARKDOWN)


def _seconds(row: ReportRow) -> str:
    return "-" if row.seconds is None else f"{row.seconds:.2f} s"


def _peak(row: ReportRow) -> str:
    return "-" if row.memory_peak is None else format_size(row.memory_peak)
