"""A ``TaskResult`` for people: in a notebook, and where rich prints it. It is imported by the class."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

from gwsandbox.model.task import words_of
from gwsandbox.model.text import cut, format_size, shorten, shown

_LONGEST = 500  # characters of a cell


def rows_of(result: Any) -> Iterator[tuple[str, str]]:
    """What is worth a line, each with its title; safe for a terminal."""
    usage, enforcement = result.usage, result.enforcement
    yield "task", _cell(" ".join(words_of(result.task)))
    yield "outcome", result.outcome.name
    if result.detail:
        yield "detail", _cell(result.detail)
    if result.result is not None:
        yield "result", _cell(shorten(result.result))
    if result.exit_code is not None:
        yield "exit code", str(result.exit_code)
    if result.elapsed_time is not None:
        yield "time", f"{result.elapsed_time:.2f} s"
    if usage.cpu_user_seconds is not None and usage.cpu_system_seconds is not None:
        yield "CPU time", f"{usage.cpu_user_seconds + usage.cpu_system_seconds:.2f} s"
    if usage.memory_peak_bytes is not None:
        yield "peak memory", f"{format_size(usage.memory_peak_bytes)} ({usage.sources.get('memory_peak_bytes', '?')})"
    held = ", ".join(f"{name} by {by}" for name, by in enforcement.limits.items())
    yield "limits", _cell(f"{enforcement.backend}: {held or 'none'}")
    if enforcement.degraded:
        yield "not fully", _cell(", ".join(enforcement.degraded))


def as_html(result: Any) -> str:
    """A table for a notebook, in which nothing of a guest is markup."""
    cells = "".join(
        f'<tr><th style="text-align:left">{html.escape(title)}</th>'
        f'<td style="text-align:left"><pre style="margin:0">{html.escape(text)}</pre></td></tr>'
        for title, text in rows_of(result)
    )
    return f"<table>{cells}</table>"


def as_rich(result: Any) -> Any:
    """A panel for rich, which has imported this."""
    from rich.panel import Panel  # noqa: PLC0415 - only rich asks for it
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table.grid(padding=(0, 2))
    for title, text in rows_of(result):
        table.add_row(Text(title, style="bold"), Text(text))
    return Panel.fit(table, title="TaskResult", border_style="green" if result.success else "red")


def _cell(text: str) -> str:
    return cut(shown(text), _LONGEST)
