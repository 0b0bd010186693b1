"""The lines of ``gwsandbox map`` on inputs that failed; many that are alike become one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gwsandbox.cli.map.inputs import NAMED, first_of
from gwsandbox.model.result import TaskResult
from gwsandbox.model.text import shorten_detail, shown

_ALIKE = 4  # failures that become one line
_FIRST_SECONDS = 1.0  # between a failure and its line; each time a failure of its kind is printed, twice as long
_MOST_KINDS = 1000


@dataclass(slots=True)
class _Kind:
    """Failures with the same outcome and detail, and those of them that were not printed yet.

    Args:
        outcome: Its name.
        detail: With ``{input}`` in the place of the path.
        seconds: Between the next failure and the line on it.
        due: When they are to be printed, on the monotonic clock.
        count: Their number.
        lines: A line for each of the first.
        paths: The inputs of the first.
    """

    outcome: str
    detail: str
    seconds: float = _FIRST_SECONDS
    due: float = 0.0
    count: int = 0
    lines: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)


class Failures:
    """Prints inputs that failed: soon, and many alike in one line.

    Args:
        print_line: Prints a line.
    """

    def __init__(self, print_line: Callable[[str], None]) -> None:
        self._print = print_line
        self._kinds: dict[tuple[str, str], _Kind] = {}

    def add(self, path: str, result: TaskResult) -> None:
        """Print the failure of one input, now or soon."""
        outcome, detail, name = result.outcome.name, shorten_detail(result.detail), shown(path)
        line = f"{outcome} {name}: {detail}"
        alike = outcome, detail.replace(name, "{input}")
        kind = self._kinds.get(alike)
        if kind is None:
            if len(self._kinds) >= _MOST_KINDS:
                self._print(line)
                return
            kind = self._kinds[alike] = _Kind(*alike)
        if not kind.count:
            kind.due = time.monotonic() + kind.seconds
        kind.count += 1
        if len(kind.lines) < _ALIKE:
            kind.lines.append(line)
        if len(kind.paths) < NAMED:
            kind.paths.append(name)

    def seconds_to_wait(self) -> float | None:
        """Seconds until ``print_due`` has something to print; ``None`` where nothing waits."""
        moments = [kind.due for kind in self._kinds.values() if kind.count]
        return max(min(moments) - time.monotonic(), 0.0) if moments else None

    def print_due(self, *, everything: bool = False) -> None:
        """Print what is due; at the end, ``everything``."""
        now = time.monotonic()
        for kind in self._kinds.values():
            if kind.count and (everything or now >= kind.due):
                self._print_kind(kind)

    def _print_kind(self, kind: _Kind) -> None:
        if kind.count < _ALIKE:
            for line in kind.lines:
                self._print(line)
        else:
            self._print(f"{kind.outcome} {kind.count} inputs: {kind.detail}: {first_of(kind.paths, of=kind.count)}")
        kind.lines.clear()
        kind.paths.clear()
        kind.count = 0
        kind.seconds *= 2
