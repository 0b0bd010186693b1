"""Sides and their floors, measured in turns."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.messages import Answer
from benchmarks.row import Entry, Spread
from benchmarks.side import Side

MS = 1e3
# Tools whose processes the side does not wait for, so that their CPU time is not in its account.
_CPU_ELSEWHERE = {"futures forkserver", "systemd-run --scope", "systemd-run --wait"}


@dataclass(frozen=True, slots=True)
class Turn:
    """A side, with what its rounds are ordered by: a number of tasks, and further arguments."""

    side: Side
    count: int
    arguments: Mapping[str, object] = field(default_factory=dict)

    def figure(self) -> tuple[float, Answer]:
        """Seconds per task of one round, and its whole answer."""
        answer = self.side.round(count=self.count, **self.arguments)
        return answer["seconds"] / self.count, answer

    def warm_up(self) -> None:
        """One task that does not count: imports, caches, and what a tool starts once."""
        self.side.round(count=1, **self.arguments)


@dataclass(frozen=True, slots=True)
class Pairs:
    """Rounds of a side: seconds per task, the ratio of each to its floor just before and after, the answers."""

    figures: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)

    def entry(self, who: str, tool: str, count: int) -> Entry:
        """Milliseconds per task, the ratio, and the CPU time per task; a round had ``count`` tasks."""
        note = ""
        if tool not in _CPU_ELSEWHERE:
            cpu = Spread.of([answer["cpu"] / count * MS for answer in self.answers])
            faults = Spread.of([answer["faults"] / count for answer in self.answers])
            note = f"CPU {cpu.median:.2f} ms, {faults.median:.0f} page faults"
        return Entry(who, Spread.of(self.figures).times(MS), "ms", Spread.of(self.ratios), note=note)


class Floor:
    """The bare work that sides are compared with. ``figures`` are seconds per task of all its rounds."""

    def __init__(self, turn: Turn, *, each: int = 1) -> None:
        """A neighbour is the median of ``each`` rounds, where there is time for few rounds of the side."""
        self.figures: list[float] = []
        self._turn = turn
        self._each = each

    def beside(self, other: Turn, rounds: int) -> Pairs:
        """Floor, other, floor, other, …, floor: each round of the other has two neighbours."""
        return self.beside_all([other], rounds)[0]

    def beside_all(self, others: Sequence[Turn], rounds: int) -> list[Pairs]:
        """The same for several, which take turns: floor, one, floor, other, floor, one, …, floor."""
        for other in others:
            other.warm_up()
        floors = [self._figure()]
        found = [Pairs() for _ in others]
        for _ in range(rounds):
            for other, pairs in zip(others, found, strict=True):
                figure, answer = other.figure()
                floors.append(self._figure())
                pairs.figures.append(figure)
                pairs.ratios.append(figure / ((floors[-2] + floors[-1]) / 2))
                pairs.answers.append(answer)
        self.figures += floors
        return found

    def _figure(self) -> float:
        return statistics.median(self._turn.figure()[0] for _ in range(self._each))

    def entry(self, who: str, note: str = "") -> Entry:
        """Milliseconds per task of all rounds so far."""
        if not self.figures:
            return Entry(who, note=note)
        return Entry(who, Spread.of(self.figures).times(MS), "ms", note=note)
