"""A row of the table: what is compared, and what came of it. Pure data."""

from dataclasses import asdict, dataclass, field
from typing import Any

from benchlib.contest import Spread

_MIB = 1024**2
_GIB = 1024**3


@dataclass(slots=True)
class Entry:
    """One contender in a row.

    Args:
        who: The tool, and how it was used.
        figure: What was measured, in ``unit``; ``None`` where it was not.
        ratio: Against the row's ``against``.
        reach: What was to be reached, for our own entries.
        met: Whether it was; ``None`` where nothing was to be reached, or this run cannot tell.
        note: Why it was not measured, or what else there is to know.
    """

    who: str
    figure: Spread | None = None
    unit: str = ""
    ratio: Spread | None = None
    reach: str = ""
    met: bool | None = None
    note: str = ""


@dataclass(slots=True)
class Row:
    """One of P1 to P12. ``points`` are for the picture: cost of a tool at a number of tasks, or a heap."""

    name: str
    work: str
    against: str
    entries: list[Entry] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    points: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Args:
        backend: Of gwsandbox.
        quick: So little that the figures mean nothing: whether everything runs.
        full: With what takes many minutes.
        emulated: The processor is software: fewer rounds, smaller sizes.
        rounds: Of each contender.
    """

    backend: str
    quick: bool
    full: bool
    emulated: bool
    rounds: int

    def pick(self, native: int, emulated: int, quick: int) -> int:
        """The one of three numbers that this plan is for."""
        if self.quick:
            return quick
        return emulated if self.emulated else native

    @property
    def result_size(self) -> int:
        return self.pick(256, 32, 8) * _MIB

    @property
    def memory_limit(self) -> int:
        """For P8: what a task is to run into."""
        return self.pick(512, 64, 64) * _MIB

    @property
    def heap(self) -> int:
        return self.pick(2048, 256, 64) * _MIB

    @property
    def large_run(self) -> int:
        return self.pick(3000, 400, 40)

    @property
    def small_run(self) -> int:
        return self.pick(200, 100, 10)


def size_text(size: float) -> str:
    return f"{size / _GIB:g} GiB" if size >= _GIB else f"{size / _MIB:g} MiB"
