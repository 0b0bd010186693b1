"""The progress bar, the summary and the table of ``gwsandbox map``."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self, TextIO

from gwsandbox.cli.map.closing import peak_of, seconds_of
from gwsandbox.cli.messages import note
from gwsandbox.cli.streams import print_lines
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.text import shown

PREFIX = "gwsandbox map: "
_SECONDS_BETWEEN_REFRESHES = 0.1

_WORDS = {
    Outcome.SUCCEEDED: "succeeded",
    Outcome.FAILED: "failed",
    Outcome.TIMED_OUT: "timed out",
    Outcome.CPU_TIME_EXCEEDED: "out of CPU time",
    Outcome.OUT_OF_MEMORY: "out of memory",
    Outcome.OUTPUT_EXCEEDED: "wrote too much",
    Outcome.CRASHED: "crashed",
    Outcome.KILLED: "killed",
    Outcome.CANCELLED: "cancelled",
    Outcome.SANDBOX_ERROR: "not run as gwsandbox failed",
}


@dataclass(slots=True)
class Counts:
    """How many inputs there are, and how they ended.

    Args:
        inputs: All inputs.
        unreadable: Files in folders that cannot be read, and were left out.
        skipped: Inputs that an earlier run finished.
        failed_before: Of the skipped, those that did not succeed.
        retries: Attempts of this run that were followed by another one.
        stopped: Inputs whose tasks --fail-fast has ended.
        outcomes: Inputs that this run finished, by outcome.
    """

    inputs: int = 0
    unreadable: int = 0
    skipped: int = 0
    failed_before: int = 0
    retries: int = 0
    stopped: int = 0
    outcomes: Counter[Outcome] = field(default_factory=Counter)

    @property
    def done(self) -> int:
        """Inputs that this run or an earlier one finished."""
        return self.outcomes.total() + self.skipped

    def summary(self, seconds: float) -> str:
        parts = [f"{self.outcomes[Outcome.SUCCEEDED]} succeeded"]
        parts += [
            f"{number} {_WORDS[outcome]}"
            for outcome in Outcome
            if outcome is not Outcome.SUCCEEDED and (number := self.outcomes[outcome])
        ]
        if self.skipped:
            parts.append(f"{self.skipped} skipped")
        if self.unreadable:
            parts.append(f"{self.unreadable} not readable")
        if self.retries:
            parts.append(f"{self.retries} further attempt{'' if self.retries == 1 else 's'}")
        text = f"{', '.join(parts)} in {seconds:.1f} s"
        if self.failed_before:
            text += f"; {self.failed_before} of the skipped did not succeed: --retry-failed does them again"
        return text


class Progress:
    """A progress bar where stderr is a terminal, and lines above it."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: Any = None
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        # A dumb terminal cannot move its cursor.
        if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and self._total:
            self._bar = _rich_bar(self._total)
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def suspend(self, stop: Callable[[], None]) -> None:
        """Take the bar off the terminal while ``stop`` stops this process."""
        if self._bar is None:
            stop()
        else:
            self._bar.stop()
            stop()
            self._bar.start()

    def guest_line(self, stream: TextIO, text: str) -> None:
        """Print a line of a guest on ``stream``; above the bar, where there is one."""
        if self._bar is None:
            print(text, file=stream)
        else:
            self.line(text)

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            note(text, prefix="")
        else:
            self._bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def advance(self) -> None:
        """Count one more finished input."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0])
            if time.monotonic() - self._shown_at >= _SECONDS_BETWEEN_REFRESHES:
                self._bar.refresh()
                self._shown_at = time.monotonic()


def _rich_bar(total: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    bar = RichProgress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        # No thread refreshes the bar: guests are forked from this process, and inherit the locks that a thread holds.
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    bar.add_task("", total=total)
    return bar


def print_table(rows: Iterable[tuple[str, TaskResult]]) -> None:
    """Print outcome, time, peak memory and file of each input on stdout, sorted by file."""
    lines = [("OUTCOME", "TIME", "PEAK MEMORY", "FILE")]
    for path, result in sorted(rows, key=lambda row: row[0]):
        lines.append((result.outcome.name, seconds_of(result), peak_of(result), shown(path)))
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    print_lines(
        "\n".join(
            f"{outcome:<{widths[0]}}  {seconds:>{widths[1]}}  {size:>{widths[2]}}  {path}"
            for outcome, seconds, size, path in lines
        )
    )
