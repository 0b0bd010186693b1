"""P6: how fast large results come back, and how much memory that takes."""

from collections.abc import Iterator

from benchmarks.messages import terms
from benchmarks.pairs import Floor, Pairs, Turn
from benchmarks.plan import GIB, Plan, size_text
from benchmarks.row import Entry, Row, Spread
from benchmarks.rows.common import attempt
from benchmarks.side import Side, SideSpec

_COUNT = 2  # results of a round


def p6(plan: Plan) -> Row:
    """The rate of each tool, against a bare fork and a pipe."""
    size = plan.result_size
    rates: dict[str, float] = {}
    with Side(SideSpec("piped_values", "fork")) as side:
        floor = Floor(Turn(side, _COUNT, {"size": size}))
        entries = [
            entry
            for tool in ("gwsandbox", "gwsandbox forkserver", "glasswall", "pebble", "futures forkserver")
            for entry in attempt(tool, _rate_of, plan, tool, floor, rates)
        ]
    first = Entry("floor", _rate(floor.figures, size) if floor.figures else None, "GiB/s")
    work = f"{size_text(size)} of bytes returned, twice, both kept"
    return Row("P6", work, "fork + 1 MiB pipe into one buffer", [first, *entries, *_against_glasswall(rates)])


def _rate_of(plan: Plan, tool: str, floor: Floor, rates: dict[str, float]) -> Iterator[Entry]:
    size = plan.result_size
    with Side(SideSpec("big_values", tool, terms(backend=plan.backend))) as side:
        pairs = floor.beside(Turn(side, _COUNT, {"size": size}), min(plan.rounds, 5))
    figure, peak = _rate(pairs.figures, size), _peak(pairs, size)
    ratio = Spread.of([1 / ratio for ratio in pairs.ratios])
    whole = all(answer["whole"] for answer in pairs.answers)
    note = f"caller's peak {peak.median:.2f} x both results" if whole else "results were NOT whole"
    entry = Entry(tool, figure, "GiB/s", ratio, note=note)
    rates[tool] = figure.median
    if not tool.startswith("gwsandbox"):
        yield entry
        return
    yield entry.judged("≥ 0.8 x floor", met=ratio.median >= 0.8)
    yield Entry("  caller's peak / results", ratio=peak).judged("≤ 1.1", met=peak.median <= 1.1)


def _rate(seconds: list[float], size: int) -> Spread:
    return Spread.of([size / GIB / each for each in seconds])


def _peak(pairs: Pairs, size: int) -> Spread:
    """The peak of the caller's memory, in sizes of both results together."""
    return Spread.of([(answer["peak"] or 0) / (_COUNT * size) for answer in pairs.answers])


def _against_glasswall(rates: dict[str, float]) -> Iterator[Entry]:
    if "gwsandbox" in rates and "glasswall" in rates:
        times = rates["gwsandbox"] / rates["glasswall"]
        yield Entry("gwsandbox / glasswall", ratio=Spread.of([times])).judged("≥ 4 x glasswall", met=times >= 4)
