"""Limits that fit what tasks were measured to use, with headroom, and why each is what it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gwsandbox.model.limits import MIB, OPTIONS
from gwsandbox.report.rows import ReportRow

_UNIT_LINES = {
    "memory": "MemoryMax={}",
    "wall_seconds": "RuntimeMaxSec={}",
    "cpu_seconds": "LimitCPU={}",
    "pids": "TasksMax={}",
    "file_size": "LimitFSIZE={}",
}


class Rule(NamedTuple):
    """How one limit is made of what was measured.

    Args:
        limit: A field of ``Limits``.
        figure: What a row says.
        field: The field of ``Usage`` whose source is named; empty for a figure that is none of these.
        factor: The limit is so many times the largest figure.
        step: It is a multiple of this, and no less.
    """

    limit: str
    figure: Callable[[ReportRow], float | None]
    field: str
    factor: float
    step: int


_RULES = (
    Rule("memory", lambda row: row.memory_peak, "memory_peak_bytes", 1.5, 32 * MIB),
    Rule("wall_seconds", lambda row: row.seconds, "wall_seconds", 3.0, 1),
    Rule("cpu_seconds", lambda row: row.cpu_seconds, "cpu_user_seconds", 3.0, 1),
    Rule("pids", lambda row: row.pids_peak, "pids_peak", 2.0, 8),
    Rule("file_size", lambda row: row.output_size, "", 2.0, MIB),
)


class Proposal(NamedTuple):
    """A limit that is proposed.

    Args:
        limit: A field of ``Limits``.
        value: Bytes, seconds or a number.
        largest: The largest figure.
        row: That it is of.
        measured: How many rows have a figure.
        source: Where it is from.
        factor: Of the headroom.
    """

    limit: str
    value: int
    largest: float
    row: ReportRow
    measured: int
    source: str
    factor: float


def propose(rows: Sequence[ReportRow]) -> list[Proposal]:
    """The limits that fit the rows that succeeded; those for which nothing was measured are left out."""
    found = []
    for rule in _RULES:
        measured = [(figure, row) for row in rows if row.succeeded and (figure := rule.figure(row)) is not None]
        if measured:
            largest, row = max(measured, key=lambda each: each[0])
            value = max(math.ceil(largest * rule.factor / rule.step), 1) * rule.step
            source = row.sources.get(rule.field, "") if rule.field else "the size of the output"
            found.append(Proposal(rule.limit, value, largest, row, len(measured), source, rule.factor))
    return found


def as_flags(proposals: Sequence[Proposal]) -> str:
    """The limits as options of the command line."""
    return " ".join(f"{OPTIONS[each.limit]} {_short(each)}" for each in proposals)


def as_profile(proposals: Sequence[Proposal], name: str) -> list[str]:
    """The limits as lines of profiles.toml; in a file of the service they go below [limits]."""
    lines = [f"[{name}]"]
    for each in proposals:
        value = str(each.value) if each.limit == "pids" else f'"{_short(each)}"'
        lines.append(f"{each.limit} = {value}")
    return lines


def as_unit(proposals: Sequence[Proposal]) -> list[str]:
    """The limits as lines of a unit of systemd."""
    return ["[Service]", *(_UNIT_LINES[each.limit].format(_short(each).replace("iB", "")) for each in proposals)]


def _short(each: Proposal) -> str:
    if each.limit in {"memory", "file_size"}:
        return f"{each.value // MIB}MiB"
    return str(each.value) if each.limit == "pids" else f"{each.value}s"
