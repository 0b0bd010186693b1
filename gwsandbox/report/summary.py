"""What many rows say together: how they ended, which stand out, and which ran side by side."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from gwsandbox.report.rows import ReportRow

_SLACK = 0.005  # seconds: the clock of one end and the next start is not read at the same moment
_NUMBERS = re.compile(r"\d+(?:\.\d+)?")


def outcomes(rows: Sequence[ReportRow]) -> list[tuple[str, int]]:
    """Each outcome with the number of its rows; success first, then the most frequent."""
    counted = Counter(row.outcome for row in rows)
    return sorted(counted.items(), key=lambda each: (each[0] != "SUCCEEDED", -each[1], each[0]))


def slowest(rows: Sequence[ReportRow], most: int) -> list[ReportRow]:
    """Those that took longest."""
    return heapq.nlargest(most, (row for row in rows if row.seconds is not None), key=lambda row: row.seconds or 0.0)


def largest(rows: Sequence[ReportRow], most: int) -> list[ReportRow]:
    """Those that used most memory."""
    known = (row for row in rows if row.memory_peak is not None)
    return heapq.nlargest(most, known, key=lambda row: row.memory_peak or 0.0)


def slots(rows: Sequence[ReportRow]) -> dict[int, int]:
    """For the identity of each row the number of a worker that may have run it: no two at a time have the same."""
    free: list[tuple[float, int]] = []  # the moment at which each worker comes free, and its number
    found = {}
    for row in sorted((row for row in rows if row.start is not None), key=lambda row: row.start or 0.0):
        start = row.start or 0.0
        number = heapq.heappop(free)[1] if free and free[0][0] <= start + _SLACK else len(free)
        end = max(start, row.end if row.end is not None else start + (row.seconds or 0.0))
        heapq.heappush(free, (end, number))
        found[id(row)] = number
    return found


class Cause(NamedTuple):
    """Failures that are alike.

    Args:
        outcome: Its name.
        detail: Of the first of them.
        rows: All of them.
    """

    outcome: str
    detail: str
    rows: list[ReportRow]


def causes(rows: Sequence[ReportRow]) -> list[Cause]:
    """The failures, those that differ in names and numbers alone together; the most frequent first."""
    found: dict[tuple[str, str], Cause] = {}
    for row in rows:
        if not row.succeeded:
            alike = _NUMBERS.sub("N", row.detail.replace(row.name, "{input}"))
            found.setdefault((row.outcome, alike), Cause(row.outcome, row.detail, [])).rows.append(row)
    return sorted(found.values(), key=lambda cause: -len(cause.rows))
