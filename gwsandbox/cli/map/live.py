"""The live display of ``gwsandbox map`` at a terminal: a row for each task that runs, and one for the whole run.

No thread refreshes it: guests are forked from this process, and inherit the locks that a thread holds.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gwsandbox.cli.map.running import RunningRow
from gwsandbox.cli.watch.memory import memory_now
from gwsandbox.model.result import Outcome
from gwsandbox.model.text import format_size, shown

SECONDS_BETWEEN_REFRESHES = 0.25
_SECONDS_BETWEEN_LOOKS = 1.0  # at the memory of guests, which costs more
_MOST_ROWS = 8
_NARROW = 80  # columns below which bars are left out


@dataclass(slots=True)
class LiveDisplay:
    """The display.

    Args:
        total: Number of inputs to work on.
        words: For each outcome, how it is counted.
        done: Inputs that are finished.
        failures: Of those, the ones that failed, by outcome.
    """

    total: int
    words: dict[Outcome, str]
    done: int = 0
    failures: Counter[Outcome] = field(default_factory=Counter)
    _live: Live = field(init=False)
    _started: float = field(default_factory=time.monotonic)
    _shown_at: float = 0.0
    _looked_at: float = 0.0
    _memory: dict[int, int | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._live = Live(
            console=Console(stderr=True),
            transient=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )

    def start(self) -> None:
        """Put it on the terminal."""
        self._live.start()

    def stop(self) -> None:
        """Take it off the terminal."""
        self._live.stop()

    def line(self, text: str) -> None:
        """Print a line above it."""
        self._live.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def seconds_to_wait(self) -> float:
        """Seconds until it is to be drawn again."""
        return max(self._shown_at + SECONDS_BETWEEN_REFRESHES - time.monotonic(), 0.0)

    def draw(self, running: Callable[[], Sequence[RunningRow]], *, now: bool = False) -> None:
        """Draw it, unless it was drawn a moment ago.

        Args:
            running: The path, the task and the limits of each input whose task runs.
            now: Draw it in any case.
        """
        if not now and self.seconds_to_wait():
            return
        self._shown_at = time.monotonic()
        rows = running()
        if self._shown_at - self._looked_at >= _SECONDS_BETWEEN_LOOKS:
            self._looked_at = self._shown_at
            self._memory = {task.pid: memory_now(task.pid) for _, task, _ in rows[:_MOST_ROWS]}
        most = max(min(_MOST_ROWS, self._live.console.height - 4), 0)
        parts = [self._tasks(rows[:most]), self._whole(len(rows) - most)]
        self._live.update(Group(*parts), refresh=True)

    def _tasks(self, rows: Sequence[RunningRow]) -> Table:
        table = Table.grid(padding=(0, 1))
        is_wide = self._live.console.width >= _NARROW
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        for _ in range(2):
            if is_wide:
                table.add_column(width=10)
            table.add_column(justify="right", no_wrap=True)
        table.expand = True
        for path, task, limits in rows:
            seconds, peak = time.monotonic() - task.started, self._memory.get(task.pid)
            wall, memory = limits.requested().get("wall_seconds"), limits.requested().get("memory")
            time_text = f"{seconds:.1f} s" + (f" of {wall:g} s" if wall else "")
            memory_text = "" if peak is None else format_size(peak) + (f" of {format_size(memory)}" if memory else "")
            cells = [(wall, seconds, time_text), (memory, peak or 0, memory_text)]
            flat: list[Text | ProgressBar] = [Text(_end_of(path, self._live.console.width // 3))]
            for most, value, text in cells:
                flat += [_bar(most, value)] if is_wide else []
                flat.append(Text(text))
            table.add_row(*flat)
        return table

    def _whole(self, hidden: int) -> Table:
        seconds = max(time.monotonic() - self._started, 1e-6)
        rate = self.done / seconds
        parts = [f"{self.done}/{self.total}", f"{rate:.3g}/s"]
        if self.done:
            parts.append(f"{_clock((self.total - self.done) / rate)} left")
        if hidden > 0:
            parts.append(f"{hidden} more run")
        failed = [f"{number} {self.words[outcome]}" for outcome, number in self.failures.items()]
        table = Table.grid(padding=(0, 1))
        table.expand = True
        table.add_column(ratio=1)
        table.add_column(no_wrap=True)
        table.add_row(ProgressBar(total=self.total, completed=self.done), Text("  ".join(parts)))
        if failed:
            table.add_row(Text(", ".join(failed), style="red"), "")
        return table


def _bar(most: float | None, value: float) -> ProgressBar | Text:
    return Text("") if not most else ProgressBar(total=most, completed=min(value, most), width=10)


def _end_of(path: str, width: int) -> str:
    """The end of a path, where files differ."""
    text = shown(path).replace("\n", "\\n")
    return text if len(text) <= width else "…" + text[-(width - 1) :]


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"
