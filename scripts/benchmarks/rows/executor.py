"""P14: what the executor costs beside the manager, and beside the standard one with a process per task."""

from benchmarks.messages import terms
from benchmarks.pairs import Floor, Turn
from benchmarks.plan import Plan
from benchmarks.row import Entry, Row
from benchmarks.rows.common import MEMORY, PIDS, WALL, Contender, compete
from benchmarks.side import Side, SideSpec

_AT_MOST = 1.15  # of the manager
_TIMES = 4  # as fast as the standard executor


def p14(plan: Plan) -> Row:
    """The same calls by each, two at a time."""
    limited = terms(workers=2, backend=plan.backend, memory=MEMORY, wall=WALL, pids=PIDS)
    bare, many = terms(workers=2, backend=plan.backend), plan.pick(200, 200, 5)
    ours = SideSpec("calls", "gwsandbox executor", limited)
    standard = SideSpec("calls", "futures forkserver", bare)
    with Side(SideSpec("calls", "gwsandbox", limited)) as side:
        floor = Floor(Turn(side, many))
        contenders = [
            Contender(who="gwsandbox SandboxExecutor", spec=ours, count=many, at_most=_AT_MOST),
            Contender(who="ProcessPoolExecutor, forkserver", spec=standard, count=plan.pick(20, 20, 3)),
        ]
        entries = [_judged(entry) for entry in compete(plan, floor, contenders, "manager")]
    first = floor.entry("gwsandbox ProcessManager")
    return Row("P14", "no-op function through an executor, 2 workers, per task", "ProcessManager", [first, *entries])


def _judged(entry: Entry) -> Entry:
    if not entry.who.startswith("ProcessPool") or entry.ratio is None:
        return entry
    return entry.judged(f"≥ {_TIMES} x {_AT_MOST:g} x manager", met=entry.ratio.median >= _TIMES * _AT_MOST)
