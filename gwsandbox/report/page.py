"""A report as one HTML page with pictures, which opens without a network.

The figures of the tasks are in the page as JSON, and its script draws them. What came from guests is text everywhere:
no ``<`` of theirs is in the page's source, the script sets text and no markup, and a policy of the page lets no other
script run.
"""

from __future__ import annotations

import html
import json
import secrets
from collections.abc import Sequence
from importlib import resources
from typing import Any

from gwsandbox.model.errors import SandboxError
from gwsandbox.report.rows import ReportRow
from gwsandbox.report.summary import slots

_PACKAGE = "gwsandbox.report"


def check_plotting() -> None:
    """See that the package is there that draws pictures.

    Raises:
        SandboxError: It is not.
    """
    import importlib.util  # noqa: PLC0415 - few callers need it

    if importlib.util.find_spec("plotly") is None:
        raise SandboxError("make report: a page needs the package plotly", remedy="pip install 'gwsandbox[report]'")


def make_page(rows: Sequence[ReportRow], title: str) -> str:
    """The page.

    Raises:
        SandboxError: The package that draws pictures is not there.
    """
    check_plotting()
    from plotly.offline import get_plotlyjs  # noqa: PLC0415 - a second, which nothing else needs

    nonce = secrets.token_urlsafe(16)
    parts = {
        "TITLE": html.escape(title),
        "NONCE": nonce,
        "STYLE": _file("page.css"),
        "DATA": _as_script(_data(rows, title)),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": _file("page.js"),
    }
    page = _file("page.html")
    pieces = page.split("@@")  # NAME in every second place: what was put in is not looked at again
    return "".join(parts[piece] if place % 2 else piece for place, piece in enumerate(pieces))


def _file(name: str) -> str:
    return resources.files(_PACKAGE).joinpath(name).read_text(encoding="utf-8")


def _as_script(value: object) -> str:
    """JSON that ends no script element, and begins no comment in it."""
    text = json.dumps(value)  # in ASCII
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _data(rows: Sequence[ReportRow], title: str) -> dict[str, Any]:
    places = slots(rows)
    start = min((row.start for row in rows if row.start is not None), default=0.0)
    return {"title": title, "start": start, "tasks": [_task(row, places.get(id(row)), start) for row in rows]}


def _task(row: ReportRow, slot: int | None, start: float) -> dict[str, Any]:
    return {
        "name": row.name,
        "outcome": row.outcome,
        "detail": row.detail,
        "exit": row.exit_code,
        "begin": None if row.start is None else row.start - start,
        "slot": slot,
        "seconds": row.seconds,
        "cpu": row.cpu_seconds,
        "peak": row.memory_peak,
        "memory": row.limits.get("memory"),
        "wall": row.limits.get("wall_seconds"),
        "attempts": row.attempts,
    }
