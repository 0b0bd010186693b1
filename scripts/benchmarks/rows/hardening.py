"""P12: what hardening adds to a task that does nothing."""

from benchmarks.messages import terms
from benchmarks.pairs import Floor, Turn
from benchmarks.plan import Plan
from benchmarks.row import Entry, Row
from benchmarks.rows.common import Contender, compete
from benchmarks.side import Side, SideSpec

_AT_MOST = 0.2  # of a bare fork


def p12(plan: Plan) -> Row:
    """Without hardening, and with the standard one; the target is for the difference."""
    wanted, count = terms(backend=plan.backend), plan.pick(200, 200, 5)
    with Side(SideSpec("forks", "fork with imports")) as side:
        floor = Floor(Turn(side, plan.pick(100, 30, 10)))
        contenders = [
            Contender(
                who=f"gwsandbox, hardening {kind}", spec=SideSpec("calls", f"gwsandbox {kind}", wanted), count=count
            )
            for kind in ("off", "standard")
        ]
        off, standard = compete(plan, floor, contenders, "floor")
    entries = [floor.entry("fork floor", "in a process that has imported gwsandbox"), off, _added(off, standard)]
    return Row("P12", "no-op function, what hardening adds per task", "fork floor", entries)


def _added(off: Entry, standard: Entry) -> Entry:
    """The entry of standard hardening with what it adds, and the target for that."""
    if off.ratio is None or standard.ratio is None:
        return standard
    added = standard.ratio.median - off.ratio.median
    judged = standard.judged(f"adds ≤ {_AT_MOST:g} x floor", met=added <= _AT_MOST)
    return judged.noting(f", adds {added:.2f} x floor")
