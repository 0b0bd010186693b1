"""P12: what hardening adds to a task that does nothing."""

from benchmarks.messages import terms
from benchmarks.pairs import Floor, Turn
from benchmarks.plan import Plan
from benchmarks.row import Entry, Row
from benchmarks.rows.common import Contender, compete
from benchmarks.side import Side, SideSpec

_AT_MOST = {"standard": 0.2, "strict": 0.5}  # of a bare fork


def p12(plan: Plan) -> Row:
    """Without hardening, with the standard one, and with the strict one, which comes in a clean interpreter.

    The targets are for the differences.
    """
    wanted, count = terms(backend=plan.backend), plan.pick(200, 200, 5)
    with Side(SideSpec("forks", "fork with imports")) as side:
        floor = Floor(Turn(side, plan.pick(100, 30, 10)))
        contenders = [
            Contender(
                who=f"gwsandbox, hardening {kind}", spec=SideSpec("calls", f"gwsandbox {kind}", wanted), count=count
            )
            for kind in ("off", "standard", "clean off", "strict")
        ]
        off, standard, clean_off, strict = compete(plan, floor, contenders, "floor")
    entries = [
        floor.entry("fork floor", "in a process that has imported gwsandbox"),
        off,
        _added(off, standard, _AT_MOST["standard"]),
        clean_off,
        _added(clean_off, strict, _AT_MOST["strict"]),
    ]
    return Row("P12", "no-op function, what hardening adds per task", "fork floor", entries)


def _added(off: Entry, hardened: Entry, at_most: float) -> Entry:
    """The entry of a kind of hardening with what it adds, and the target for that."""
    if off.ratio is None or hardened.ratio is None:
        return hardened
    added = hardened.ratio.median - off.ratio.median
    judged = hardened.judged(f"adds ≤ {at_most:g} x floor", met=added <= at_most)
    return judged.noting(f", adds {added:.2f} x floor")
