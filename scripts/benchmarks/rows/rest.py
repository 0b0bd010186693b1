"""P5: what supervision burns while its tasks sleep."""

from collections.abc import Iterator

from benchmarks import watch
from benchmarks.messages import terms
from benchmarks.plan import GIB, Plan
from benchmarks.row import Entry, Row, Spread
from benchmarks.rows.common import attempt
from benchmarks.side import Side, SideSpec


def p5(plan: Plan) -> Row:
    """CPU time and system calls of each tool, beside two tasks that sleep."""
    seconds = plan.pick(4, 4, 2)
    with watch.open_fifo() as starts:
        entries = [
            entry
            for tool in ("gwsandbox", "gwsandbox forkserver", "glasswall", "pebble", "futures forkserver")
            for entry in attempt(tool, _rest, plan, tool, starts, seconds)
        ]
    return Row("P5", f"CPU of supervision while 2 tasks sleep {seconds} s", "one processor", entries)


def _rest(plan: Plan, tool: str, starts: watch.Fifo, seconds: int) -> Iterator[Entry]:
    limited = terms(workers=2, backend=plan.backend, memory=GIB, wall=600.0, pids=64)
    with Side(SideSpec("calls", tool, limited)) as side:
        rests = [
            watch.rest(side, starts, tasks=2, seconds=seconds, count_calls=turn == 0 and not plan.quick)
            for turn in range(plan.few_rounds)
        ]
    figure = Spread.of([rest.share * 100 for rest in rests])
    calls = rests[0].system_calls
    counted = f"not counted: {rests[0].why_not_counted}" if calls is None else f"{calls} in 10 s"
    note = f"{rests[0].processes} processes; system calls {counted}"
    entry = Entry(tool, figure, "%", note=note)
    yield entry.judged("≤ 0.2 %", met=figure.median <= 0.2) if tool.startswith("gwsandbox") else entry
