"""P4: what a task costs when the caller holds much memory."""

from collections.abc import Iterator
from dataclasses import replace

from benchmarks.messages import terms
from benchmarks.pairs import MS, Floor, Pairs, Turn
from benchmarks.plan import Plan, size_text
from benchmarks.row import Entry, Point, Row, Spread
from benchmarks.rows.common import attempt
from benchmarks.side import Side, SideSpec

_KINDS = {"objects": "small lists", "bytes": "one touched bytearray"}
_KEPT = "gwsandbox, results kept: last quarter"
_FAST = ("fork", "gwsandbox", "gwsandbox forkserver")
_SLOW = ("glasswall", "pebble", "futures forkserver")


def p4(plan: Plan) -> Row:
    """Each tool with a full heap against the same with an empty one."""
    points: list[Point] = []
    entries = [entry for kind in _KINDS for entry in _of_kind(plan, kind, points)]
    entries += attempt(_KEPT, _results_kept, plan)
    work = f"caller holds {size_text(plan.heap)} of live heap, no-op, per task"
    return Row("P4", work, "same tool, empty heap", entries, points=points)


def _of_kind(plan: Plan, kind: str, points: list[Point]) -> Iterator[Entry]:
    floor: Spread | None = None

    def measure(who: str, tool: str) -> Iterator[Entry]:
        nonlocal floor
        work = "forks" if tool == "fork" else "calls"
        pairs = _full_against_empty(plan, SideSpec(work, tool, terms(backend=plan.backend), (kind, plan.heap)), points)
        entry = pairs.entry(who, tool, _count(plan, tool))
        figure = Spread.of(pairs.figures)
        if tool == "fork":
            floor = figure
        elif tool == "gwsandbox forkserver":
            entry = entry.judged_by_ratio(1.1, "empty heap")
        elif tool == "gwsandbox" and floor is not None:
            entry = entry.judged("what a snapshot allows", met=None)
            entry = entry.noting(f"; {figure.median / floor.median:.2f} x fork floor with this heap")
        yield entry

    for tool in (*_FAST, *_SLOW):
        who = f"{'fork floor' if tool == 'fork' else tool}, {_KINDS[kind]}"
        yield from attempt(who, measure, who, tool)


def _count(plan: Plan, tool: str) -> int:
    return plan.pick(20, 6, 2) if tool in _FAST else plan.pick(6, 3, 2)


def _full_against_empty(plan: Plan, spec: SideSpec, points: list[Point]) -> Pairs:
    assert spec.heap is not None
    kind, size = spec.heap
    count = _count(plan, spec.tool)
    with Side(replace(spec, heap=None)) as empty, Side(spec) as full:
        base = Turn(empty, count)
        base.warm_up()
        floor = Floor(base)
        pairs = floor.beside(Turn(full, count), min(plan.rounds, 5))
    points += [
        Point(f"heap of {_KINDS[kind]}", spec.tool, x, Spread.of(figures).median * MS)
        for x, figures in ((0, floor.figures), (size, pairs.figures))
    ]
    return pairs


def _results_kept(plan: Plan) -> Iterator[Entry]:
    """Whether the cost of a fork grows with the results that the caller keeps."""
    ratios = []
    spec = SideSpec("long_run", "gwsandbox", terms(backend=plan.backend), ("objects", plan.heap))
    with Side(spec) as side:
        for _ in range(plan.few_rounds):
            answer = side.round(count=plan.pick(400, 80, 20), keep=True)
            moments = [0.0, *(sample["seconds"] for sample in answer["samples"])]
            quarter = len(moments) // 4
            ratios.append((moments[-1] - moments[-1 - quarter]) / (moments[quarter] - moments[0]))
    ratio = Spread.of(ratios)
    yield Entry(_KEPT, ratio=ratio).judged("does not grow: ≤ 1.1 x first quarter", met=ratio.median <= 1.1)
