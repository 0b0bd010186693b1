"""P1 and P2: what a task costs that does nothing."""

import os
from collections.abc import Iterator

from benchmarks.messages import terms
from benchmarks.pairs import Floor, Turn
from benchmarks.plan import Plan
from benchmarks.row import Entry, Row
from benchmarks.rows.common import MEMORY, PIDS, WALL, Contender, compete
from benchmarks.side import Side, SideSpec


def p1(plan: Plan) -> Row:
    """One worker."""
    entries = _entries(plan, workers=1, at_most=1.5)
    return Row("P1", "no-op function, 1 worker, per task", "fork floor", entries)


def p2(plan: Plan) -> Row:
    """Two workers."""
    entries = _entries(plan, workers=2, at_most=0.9)
    one_processor = len(os.sched_getaffinity(0)) < 2
    remarks = ["this machine has one processor; the target is for two"] if one_processor else []
    return Row("P2", "no-op function, 2 workers, per task", "fork floor, one at a time", entries, remarks)


def _entries(plan: Plan, *, workers: int, at_most: float) -> list[Entry]:
    with Side(SideSpec("forks", "fork with imports")) as side:
        floor = Floor(Turn(side, plan.pick(100, 30, 10)))
        contenders = [*_ours(plan, workers, at_most), *_peers(plan, workers)]
        entries = list(compete(plan, floor, contenders, "floor"))
    first = floor.entry("fork floor", "in a process that has imported gwsandbox, as its callers have")
    return [first, *entries]


def _ours(plan: Plan, workers: int, at_most: float) -> Iterator[Contender]:
    """The bare fork of an interpreter without imports, and gwsandbox in its variants."""
    bare = terms(workers=workers, backend=plan.backend)
    limited = terms(workers=workers, backend=plan.backend, memory=MEMORY, wall=WALL, pids=PIDS)
    many = plan.pick(200, 200, 5)
    yield Contender(who="fork, bare interpreter", spec=SideSpec("forks", "fork", bare), count=many // 2)
    for who, tool, wanted in (
        ("gwsandbox, no limits", "gwsandbox", bare),
        ("gwsandbox, memory + wall + pids", "gwsandbox", limited),
        ("gwsandbox forkserver, same limits", "gwsandbox forkserver", limited),
        ("  the task's module preloaded", "gwsandbox preloaded", limited),
    ):
        yield Contender(who=who, spec=SideSpec("calls", tool, wanted), count=many, at_most=at_most)


def _peers(plan: Plan, workers: int) -> Iterator[Contender]:
    bare = terms(workers=workers, backend=plan.backend)
    limited = terms(workers=workers, backend=plan.backend, memory=MEMORY, wall=WALL, pids=PIDS)
    for who, tool, wanted in (
        ("glasswall, no limits", "glasswall", bare),
        ("glasswall, memory + wall", "glasswall", limited),
        ("pebble, wall", "pebble", limited),
        ("ProcessPoolExecutor, forkserver", "futures forkserver", bare),
        ("ProcessPoolExecutor, spawn", "futures spawn", bare),
    ):
        yield Contender(who=who, spec=SideSpec("calls", tool, wanted), count=plan.pick(20, 20, 3))
