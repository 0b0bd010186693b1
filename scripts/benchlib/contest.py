"""Sides and their floors, measured in turns; what a series of measurements comes to."""

import contextlib
import marshal
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchlib.tools import PLAIN, Terms

_SCRIPTS = Path(__file__).resolve().parents[1]
_PATIENCE = 1800.0  # seconds; under emulation some peers take half a second per task


class Absent(Exception):
    """A side cannot be measured; the text says why."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A series by its median and quartiles."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))

    def times(self, factor: float) -> Self:
        return type(self)(self.median * factor, self.low * factor, self.high * factor, self.count)


@dataclass(frozen=True, slots=True)
class SideSpec:
    """What a side is to be; see ``works`` and ``tools``."""

    work: str
    tool: str
    terms: Terms = PLAIN
    heap: tuple[str, int] | None = None


class Side:
    """A side's process, from ``with`` to its end."""

    def __init__(self, spec: SideSpec) -> None:
        self.spec = spec
        self.pid = 0

    def __enter__(self) -> Self:
        path = os.pathsep.join([str(_SCRIPTS), str(_SCRIPTS.parent), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "PYTHONPATH": path}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # or ours would be compiled at each start, and only ours
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [*self._own_scope(), sys.executable, "-m", "benchlib.side"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,
        )
        try:
            spec = self.spec
            self._write({"work": spec.work, "tool": spec.tool, "terms": spec.terms._asdict(), "heap": spec.heap})
            self.pid = self.answer()["pid"]
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _own_scope(self) -> list[str]:
        """BenchExec uses the cgroup that it is in, and wants it for itself."""
        if self.spec.tool != "BenchExec" or not os.path.isdir("/run/systemd/system") or os.geteuid():
            return []
        return ["systemd-run", "--scope", "--quiet", "--property=Delegate=yes", "--"]

    def _write(self, content: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        marshal.dump(content, self._process.stdin)
        self._process.stdin.flush()

    def begin(self, **order: Any) -> int:
        """Order a round; the descriptor that can be read when it is done."""
        self._write(order)
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def answer(self) -> dict[str, Any]:
        """What came of the round.

        Raises:
            Absent: The tool is not there, does not work, or did not come back.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], _PATIENCE)[0]:
            raise Absent(f"hangs (nothing came in {_PATIENCE:g} s)")
        try:
            answer: dict[str, Any] = marshal.load(self._process.stdout)
        except EOFError:
            raise Absent(f"its process ended: {self._last_words()}") from None
        if "absent" in answer:
            raise Absent(answer["absent"])
        return answer

    def round(self, **order: Any) -> dict[str, Any]:
        self.begin(**order)
        return self.answer()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)  # its workers too: the session is its own
            self._process.wait()
        self._log.close()


@dataclass(slots=True)
class Pairs:
    """Rounds of a side, each with the figure of its floor from just before and just after."""

    figures: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def add(self, figure: float, floor: float, answer: dict[str, Any]) -> None:
        self.figures.append(figure)
        self.ratios.append(figure / floor)
        self.answers.append(answer)

    def spread(self) -> Spread:
        return Spread.of(self.figures)

    def ratio(self) -> Spread:
        return Spread.of(self.ratios)


@dataclass(frozen=True, slots=True)
class Turn:
    """A side with what its rounds are ordered by; its seconds are divided by ``order["count"]``."""

    side: Side
    order: dict[str, Any]

    def figure(self) -> tuple[float, dict[str, Any]]:
        answer = self.side.round(**self.order)
        return answer["seconds"] / self.order["count"], answer

    def warm_up(self) -> None:
        """Imports, caches, and what a tool starts once."""
        self.side.round(**{**self.order, "count": 1})


def in_turns(floor: Turn, other: Turn, rounds: int, *, each: int = 1) -> tuple[list[float], Pairs]:
    """A B A B … A: seconds per task of the floor, and of the other beside the mean of its two neighbours.

    A neighbour is the median of ``each`` rounds of the floor, for where few rounds of the other can be had.
    """
    other.warm_up()
    floors = [_median_figure(floor, each)]
    pairs = Pairs()
    for _ in range(rounds):
        figure, answer = other.figure()
        floors.append(_median_figure(floor, each))
        pairs.add(figure, (floors[-2] + floors[-1]) / 2, answer)
    return floors, pairs


def _median_figure(turn: Turn, rounds: int) -> float:
    return statistics.median(turn.figure()[0] for _ in range(rounds))


@contextlib.contextmanager
def turn(spec: SideSpec, **order: Any) -> Iterator[Turn]:
    with Side(spec) as side:
        yield Turn(side, order)
