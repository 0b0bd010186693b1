"""``gwsandbox why``: what ended a task, from its report alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from gwsandbox.cli.map.inputs import first_of
from gwsandbox.cli.messages import say
from gwsandbox.cli.plan import say_limit
from gwsandbox.cli.repeating import as_line
from gwsandbox.cli.streams import print_lines
from gwsandbox.model.text import format_size, one_line, shorten_detail, shown
from gwsandbox.report.rows import ReportRow, read_rows
from gwsandbox.report.summary import Cause, causes, outcomes

_LINES = 12  # of stderr, and of a traceback
_CAUSES = 20
_NAMED = 3  # inputs of a cause


def explain_report(path: str, name: str | None) -> int:
    """Print why tasks failed: one of them, or all by their causes; the exit code.

    Args:
        path: Of the report.
        name: Of one input, or the end of its path.

    Raises:
        Failure, SandboxError: The report cannot be read, or stdout not be written.
    """
    rows = read_rows(path)
    if name is not None:
        found = _named(rows, name)
        if not found:
            say(
                f"the report {shown(path)} has no row on {shown(name)}; it has {len(rows)} rows",
                prefix="gwsandbox why: ",
            )
            return 1
        _print(line for row in found for line in (*_screen(row), ""))
        return 0
    failed = causes(rows)
    if sum(len(cause.rows) for cause in failed) == 1:
        _print(_screen(failed[0].rows[0]))
    else:
        _print(_overview(path, rows, failed))
    return 0


def _named(rows: Sequence[ReportRow], name: str) -> list[ReportRow]:
    exact = [row for row in rows if row.name == name]
    return exact or [row for row in rows if row.name.endswith(f"/{name}")]


def _overview(path: str, rows: Sequence[ReportRow], failed: Sequence[Cause]) -> Iterator[str]:
    yield ", ".join(f"{number} {shown(outcome)}" for outcome, number in outcomes(rows))
    for cause in failed[:_CAUSES]:
        yield ""
        yield f"{len(cause.rows)} {cause.outcome}: {shorten_detail(cause.detail)}"
        names = [one_line(shown(row.name)) for row in cause.rows[:_NAMED]]
        more = len(cause.rows) - len(names)
        yield f"  {first_of(names)}" + (f"; and {more} more" if more > 0 else "")
        yield f"  more: gwsandbox why {shlex.quote(shown(path))} {shlex.quote(names[0])}"
    if len(failed) > _CAUSES:
        yield f"and {len(failed) - _CAUSES} more causes"
    if not failed:
        yield "nothing failed"


def _screen(row: ReportRow) -> Iterator[str]:
    """One screen on one task."""
    yield f"{one_line(row.name)}: {row.outcome}"
    if row.detail:
        yield f"  {shorten_detail(row.detail)}"
    for name, value in row.limits.items():
        held = f", held by {row.held[name]}" if name in row.held else ", held by nothing"
        yield f"  {'limit':<10} {name} {say_limit(name, value)}{held}"
        if name in row.degraded:
            yield f"  {'':<10} not fully: {one_line(row.degraded[name])}"
    yield from (f"  {title:<10} {text}" for title, text in _figures(row))
    yield from _quoted("stderr", row.stderr)
    yield from _quoted("raised", row.traceback)
    if row.repeat:
        folder = f"cd {as_line([row.folder])} && " if row.folder else ""
        yield f"  {'again':<10} {folder}{as_line(row.repeat)}"


def _figures(row: ReportRow) -> Iterator[tuple[str, str]]:
    if row.memory_peak is not None:
        source = row.sources.get("memory_peak_bytes")
        yield "peak", format_size(row.memory_peak) + (f" ({one_line(source)})" if source else "")
    if row.seconds is not None:
        yield "time", f"{row.seconds:.2f} s" + ("" if row.cpu_seconds is None else f", CPU {row.cpu_seconds:.2f} s")
    if row.pids_peak is not None:
        yield "processes", f"{row.pids_peak} at a time"
    if row.exit_code is not None:
        yield "exit code", str(row.exit_code)
    if row.attempts > 1:
        yield "attempts", str(row.attempts)
    if row.backend:
        yield "backend", row.backend


def _quoted(title: str, text: str) -> Iterator[str]:
    lines = text.rstrip().splitlines()
    for number, line in enumerate(lines[-_LINES:]):
        yield f"  {title if number == 0 else '':<10} | {line.expandtabs(4)}"


def _print(lines: Iterator[str]) -> None:
    print_lines("\n".join(map(shown, lines)))
