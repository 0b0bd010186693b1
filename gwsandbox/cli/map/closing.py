"""What ``gwsandbox map`` says at the end: which inputs took longest and most, which failed, and how to repeat one."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from gwsandbox.cli.map.row import PendingInput
from gwsandbox.cli.repeating import as_line
from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import Command
from gwsandbox.model.text import format_size, shown

_ROWS = 3  # of each kind

_Ranked = tuple[float, int, str, TaskResult]


@dataclass(slots=True)
class Closing:
    """What is kept of finished inputs for the end of a run.

    Args:
        rows: Path and result of each, where all are asked for.
        slowest: Those that took longest, as a heap.
        largest: Those that used most memory, as a heap.
        failed: The first that failed.
        repeat: The words that repeat the first failure alone.
    """

    rows: list[tuple[str, TaskResult]] = field(default_factory=list)
    slowest: list[_Ranked] = field(default_factory=list)
    largest: list[_Ranked] = field(default_factory=list)
    failed: list[tuple[str, TaskResult]] = field(default_factory=list)
    repeat: list[str] = field(default_factory=list)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    def add(self, pending: PendingInput, result: TaskResult, output_dir: str | None, *, keeps_all: bool) -> None:
        """Note a finished input."""
        path, light = pending.file.path, replace(result, result=None, exception=None)
        if keeps_all:
            self.rows.append((path, light))
        number = next(self._numbers)
        _rank(self.slowest, (result.elapsed_time or 0.0, -number, path, light))
        if (peak := result.usage.memory_peak_bytes) is not None:
            _rank(self.largest, (peak, -number, path, light))
        if not result.success and len(self.failed) < _ROWS:
            self.failed.append((path, light))
            if not self.repeat:
                self.repeat = pending.repeat(output_dir, is_program=isinstance(result.task, Command))

    def lines(self) -> list[str]:
        """The closing table; empty where it would say nothing that is not on the screen already."""
        if len(self.slowest) < 2:
            return []
        found = _section("slowest", [(path, result) for _, _, path, result in sorted(self.slowest, reverse=True)])
        found += _section("largest", [(path, result) for _, _, path, result in sorted(self.largest, reverse=True)])
        found += _section("failed", self.failed)
        if self.repeat:
            found.append(f"one alone: {as_line(self.repeat)}")
        return found


def _rank(heap: list[_Ranked], entry: _Ranked) -> None:
    if len(heap) < _ROWS:
        heapq.heappush(heap, entry)
    else:
        heapq.heappushpop(heap, entry)


def _section(title: str, rows: Sequence[tuple[str, TaskResult]]) -> list[str]:
    return [
        f"{title if number == 0 else '':<8} {seconds_of(result):>9} {peak_of(result):>10}  {_name(path, result)}"
        for number, (path, result) in enumerate(rows)
    ]


def _name(path: str, result: TaskResult) -> str:
    return shown(path).replace("\n", "\\n") + ("" if result.success else f" ({result.outcome.name})")


def seconds_of(result: TaskResult) -> str:
    """The time of a task, for a table."""
    return "-" if result.elapsed_time is None else f"{result.elapsed_time:.2f} s"


def peak_of(result: TaskResult) -> str:
    """The peak memory of a task, for a table."""
    peak = result.usage.memory_peak_bytes
    return "-" if peak is None else format_size(peak)
