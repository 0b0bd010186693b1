"""A row of the table: what is compared, and what came of it. Pure data."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Spread:
    """A series by its median and quartiles."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """That of a series, which is not empty."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def times(self, factor: float) -> Self:
        """That of the series with each value multiplied."""
        return type(self)(self.median * factor, self.low * factor, self.high * factor, self.count)


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender in a row.

    Args:
        who: The tool, and how it was used.
        figure: What was measured, in ``unit``; ``None`` where nothing was.
        ratio: To the row's ``against``.
        reach: The target, for entries of gwsandbox.
        met: Whether the target is met; ``None`` where there is none, or this run cannot show it.
        note: Why nothing was measured, or a further fact.
    """

    who: str
    figure: Spread | None = None
    unit: str = ""
    ratio: Spread | None = None
    reach: str = ""
    met: bool | None = None
    note: str = ""

    def judged(self, reach: str, *, met: bool | None) -> "Entry":
        """The same with a target."""
        return replace(self, reach=reach, met=met)

    def judged_by_ratio(self, at_most: float, of: str = "") -> "Entry":
        """The same with the target that the ratio's median is at most this."""
        reach = f"≤ {at_most:g}{of and f' x {of}'}"
        return self.judged(reach, met=None if self.ratio is None else self.ratio.median <= at_most)

    def noting(self, more: str) -> "Entry":
        """The same with more in its note."""
        return replace(self, note=self.note + more)


@dataclass(frozen=True, slots=True)
class Point:
    """For the picture: milliseconds per task of a tool, at a number of tasks or a heap's size (``x``)."""

    axis: str
    tool: str
    x: float
    ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """One of P1 to P14. ``against`` is what the ratios are to."""

    name: str
    work: str
    against: str
    entries: Sequence[Entry] = ()
    remarks: Sequence[str] = ()
    points: Sequence[Point] = ()

    def as_json(self) -> dict[str, Any]:
        """The row as JSON holds it."""
        return asdict(self)
