"""P3: what a task costs in long runs, and what the run's processes hold at its end."""

from collections.abc import Iterator

from benchmarks.messages import terms
from benchmarks.pairs import MS, Floor, Pairs, Turn
from benchmarks.plan import Plan
from benchmarks.row import Entry, Point, Row, Spread
from benchmarks.rows.common import attempt
from benchmarks.side import Side, SideSpec

_BUDGET = 45.0  # seconds for the long run of a peer


def p3(plan: Plan) -> Row:
    """A long run against short ones, of each tool."""
    points: list[Point] = []
    entries = [
        entry
        for tool in ("gwsandbox", "glasswall", "pebble", "futures forkserver")
        for entry in attempt(tool, _runs, plan, tool, points)
    ]
    work = f"{plan.large_run} no-ops through queue_tasks: per task"
    return Row("P3", work, f"per task of {plan.small_run}", entries, points=points)


def _runs(plan: Plan, tool: str, points: list[Point]) -> Iterator[Entry]:
    is_ours = tool == "gwsandbox"
    with Side(SideSpec("long_run", tool, terms(backend=plan.backend))) as side:
        short = Turn(side, plan.small_run if is_ours else plan.small_run // 4)
        short.warm_up()
        first = short.figure()[0]
        large = plan.large_run if is_ours else min(plan.large_run, int(_BUDGET / first))
        for length in [large, 100_000] if is_ours and plan.full else [large]:
            floor = Floor(short, each=5)
            pairs = floor.beside(Turn(side, length), 1 if length > plan.large_run else plan.few_rounds)
            points += [
                Point("tasks", tool, count, Spread.of(figures).median * MS)
                for count, figures in ((short.count, floor.figures), (length, pairs.figures))
            ]
            entry = pairs.entry(f"{tool}, {length} against {short.count}", tool, length)
            yield entry.judged_by_ratio(1.05) if is_ours else entry
            if is_ours:
                yield from _growth(pairs)


def _growth(pairs: Pairs) -> Iterator[Entry]:
    """What caller and supervisor hold at the end of the last run, against a tenth of the way."""
    samples = pairs.answers[-1]["samples"]
    early, late = samples[len(samples) // 10], samples[-1]
    for who in ("caller", "supervisor"):
        if who not in early["holdings"] or who not in late["holdings"]:
            continue
        memory_before, descriptors_before = early["holdings"][who]
        memory, descriptors = late["holdings"][who]
        grown = (memory - memory_before) / 1024
        yield Entry(
            f"  {who}'s memory from task {early['done']} to {late['done']}",
            Spread.of([grown]),
            "KiB",
            reach="flat: ≤ 1024 KiB",
            met=grown <= 1024 and descriptors - descriptors_before <= 4,
            note=f"descriptors {descriptors_before} → {descriptors}",
        )
