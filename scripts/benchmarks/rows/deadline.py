"""P7: how late a task dies after its deadline, and how soon the next one starts."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks import watch
from benchmarks.messages import terms
from benchmarks.pairs import MS
from benchmarks.plan import GIB, Plan
from benchmarks.row import Entry, Row, Spread
from benchmarks.side import Absent, Side, SideSpec

_DEADLINE = 0.5
_TOOLS = ("fork with a deadline", "gwsandbox", "glasswall", "pebble")
_REMARK = (
    f"seen from outside by pidfd; the {_DEADLINE} s are counted from the task's own first instruction, "
    "so a deadline that begins with the process may show as a negative lateness"
)


@dataclass(slots=True)
class _Seen:
    """Of one tool, in milliseconds: death after the deadline, and the next start after the death."""

    late: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    absent: str = ""


def p7(plan: Plan) -> Row:
    """Each tool in turns, a few tasks at a time."""
    limited = terms(wall=_DEADLINE, memory=GIB, backend=plan.backend)
    seen = {tool: _Seen() for tool in _TOOLS}
    with contextlib.ExitStack() as stack, watch.open_fifo() as starts:
        sides = {
            tool: stack.enter_context(
                Side(SideSpec("fork_deadlines" if tool.startswith("fork") else "calls", tool, limited))
            )
            for tool in _TOOLS
        }
        for _ in range(plan.pick(5, 4, 1)):
            for tool, side in sides.items():
                if not seen[tool].absent:
                    _chunk(side, starts, plan.pick(10, 5, 2), seen[tool])
    entries = [entry for tool in _TOOLS for entry in _lateness(plan, tool, seen[tool])]
    return Row("P7", f"deadline of {_DEADLINE} s: death after it, and next start after death", "", entries, [_REMARK])


def _chunk(side: Side, starts: watch.Fifo, count: int, seen: _Seen) -> None:
    try:
        if side.spec.work == "fork_deadlines":
            lives = watch.lives(side, starts, starts=starts.path, count=count)
        else:
            lives = watch.lives(side, starts, load="report_and_sleep", arguments=[starts.path, 60.0], count=count)
    except Absent as why:
        seen.absent = str(why)
        return
    if not lives:
        seen.absent = "no task was seen"
    seen.late += [(life.ended - life.began - _DEADLINE) * MS for life in lives]
    seen.gaps += [(after.began - before.ended) * MS for before, after in itertools.pairwise(lives)]


def _lateness(plan: Plan, tool: str, seen: _Seen) -> Iterator[Entry]:
    if seen.absent or not seen.gaps:
        yield Entry(tool, note=seen.absent)
        return
    is_ours = tool == "gwsandbox"
    in_time, quick = (sum(each <= 5 for each in times) / len(times) for times in (seen.late, seen.gaps))
    late = Entry(
        f"{tool}: killed late by",
        Spread.of(seen.late),
        "ms",
        note=f"{in_time:.0%} of {len(seen.late)} within 5 ms; worst {max(seen.late):.1f}",
    )
    busy = Entry(
        f"{tool}: slot busy again after",
        Spread.of(seen.gaps),
        "ms",
        note=f"{quick:.0%} within 5 ms; worst {max(seen.gaps):.1f}",
    )
    if is_ours:
        late = late.judged("99 % within 5 ms", met=None if plan.emulated else in_time >= 0.99)
        busy = busy.judged("within 5 ms", met=None if plan.emulated else Spread.of(seen.gaps).median <= 5)
    yield from (late, busy)
