"""The progress, the summary and the table of ``gwsandbox map``."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TextIO

from gwsandbox.cli.map.closing import peak_of, seconds_of
from gwsandbox.cli.map.running import RunningRow
from gwsandbox.cli.messages import is_quiet, note
from gwsandbox.cli.streams import print_lines
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.text import shown

if TYPE_CHECKING:  # rich is imported where there is a terminal to show it
    from gwsandbox.cli.map.live import LiveDisplay

PREFIX = "gwsandbox map: "

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
    """A live display where stderr is a terminal, and lines above it.

    Args:
        total: Number of inputs to work on.
        running: The path, the task and the limits of each input whose task runs.
    """

    def __init__(self, total: int, running: Callable[[], Sequence[RunningRow]]) -> None:
        self._total = total
        self._running = running
        self._live: LiveDisplay | None = None

    def __enter__(self) -> Self:
        # A dumb terminal cannot move its cursor.
        if is_live() and self._total:
            from gwsandbox.cli.map.live import LiveDisplay

            self._live = LiveDisplay(self._total, _WORDS)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.draw(list, now=True)
            self._live.stop()

    def suspend(self, stop: Callable[[], None]) -> None:
        """Take the display off the terminal while ``stop`` stops this process."""
        if self._live is None:
            stop()
        else:
            self._live.stop()
            stop()
            self._live.start()

    def guest_line(self, stream: TextIO, text: str) -> None:
        """Print a line of a guest on ``stream``; above the display, where there is one."""
        if self._live is None:
            print(text, file=stream)
        else:
            self._live.line(text)

    def line(self, text: str) -> None:
        """Print a line above the display."""
        if self._live is None:
            note(text, prefix="")
        else:
            self._live.line(text)

    def seconds_to_wait(self) -> float | None:
        """Seconds until ``draw`` has something to do; ``None``: it has not."""
        return None if self._live is None else self._live.seconds_to_wait()

    def draw(self) -> None:
        """Draw the display again, where that is due."""
        if self._live is not None:
            self._live.draw(self._running)

    def advance(self, outcome: Outcome) -> None:
        """Count one more finished input."""
        if self._live is not None:
            self._live.done += 1
            if outcome is not Outcome.SUCCEEDED:
                self._live.failures[outcome] += 1


def is_live() -> bool:
    """Whether stderr is a terminal that can show something that changes."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not is_quiet()


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
