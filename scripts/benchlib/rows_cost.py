"""P1 to P4 and P10 to P12: what a task costs."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from benchlib.contest import Absent, Pairs, Side, SideSpec, Spread, Turn, in_turns
from benchlib.row import Entry, Plan, Row, size_text
from benchlib.tools import Terms

_MEMORY, _WALL, _PIDS = 1024**3, 30.0, 64  # "all limits": wide enough to never be reached
_BUDGET = 45.0  # seconds for the long run of a peer in P3
_MS = 1e3
# Tools whose processes are not all waited for by the side, so that their CPU time is not in its account.
_CPU_ELSEWHERE = {"futures forkserver", "systemd-run --scope", "systemd-run --wait"}


@dataclass(frozen=True, slots=True)
class Contender:
    """A tool, under the name that the table shows, and how many tasks make one round of it."""

    who: str
    tool: str
    terms: Terms
    count: int
    is_ours: bool = False
    work: str = "calls"


def contenders(plan: Plan, workers: int) -> list[Contender]:
    """Those of P1 and P2."""
    bare = Terms(workers=workers, backend=plan.backend)
    limited = bare._replace(memory=_MEMORY, wall=_WALL, pids=_PIDS)
    many, few = plan.pick(200, 200, 5), plan.pick(20, 20, 3)
    return [
        Contender("fork, bare interpreter", "fork", bare, many // 2, work="forks"),
        Contender("gwsandbox, no limits", "gwsandbox", bare, many, is_ours=True),
        Contender("gwsandbox, memory + wall + pids", "gwsandbox", limited, many, is_ours=True),
        Contender("gwsandbox forkserver, same limits", "gwsandbox forkserver", limited, many, is_ours=True),
        Contender("  the task's module preloaded", "gwsandbox preloaded", limited, many, is_ours=True),
        Contender("glasswall, no limits", "glasswall", bare, few),
        Contender("glasswall, memory + wall", "glasswall", limited, few),
        Contender("pebble, wall", "pebble", limited, few),
        Contender("ProcessPoolExecutor, forkserver", "futures forkserver", bare, few),
        Contender("ProcessPoolExecutor, spawn", "futures spawn", bare, few),
    ]


def p1(plan: Plan) -> Row:
    return _no_ops(plan, Row("P1", "no-op function, 1 worker, per task", "fork floor"), workers=1, reach=1.5)


def p2(plan: Plan) -> Row:
    row = Row("P2", "no-op function, 2 workers, per task", "fork floor, one at a time")
    _no_ops(plan, row, workers=2, reach=0.9)
    if len(os.sched_getaffinity(0)) < 2:
        row.remarks.append("this machine has one processor; the target is for two")
    return row


def _no_ops(plan: Plan, row: Row, *, workers: int, reach: float) -> Row:
    floors: list[float] = []
    row.entries.append(Entry("fork floor", note="in a process that has imported gwsandbox, as its callers have"))
    with Side(SideSpec("forks", "fork with imports")) as side:
        floor = Turn(side, {"count": plan.pick(100, 30, 10)})
        for contender in contenders(plan, workers):
            entry = Entry(contender.who)
            row.entries.append(entry)
            try:
                with Side(SideSpec(contender.work, contender.tool, contender.terms)) as other:
                    found, pairs = in_turns(floor, Turn(other, {"count": contender.count}), plan.rounds)
            except Absent as why:
                entry.note = str(why)
                continue
            floors += found
            _fill(entry, pairs, contender.tool, contender.count)
            if contender.is_ours:
                _judge(entry, f"≤ {reach:g} x floor", reach)
    if floors:
        row.entries[0].figure, row.entries[0].unit = Spread.of(floors).times(_MS), "ms"
    return row


def _fill(entry: Entry, pairs: Pairs, tool: str, count: int) -> None:
    entry.figure, entry.unit, entry.ratio = pairs.spread().times(_MS), "ms", pairs.ratio()
    if tool not in _CPU_ELSEWHERE:
        cpu = Spread.of([answer["cpu"] / count * _MS for answer in pairs.answers])
        entry.note = f"CPU {cpu.median:.2f} ms"


def _judge(entry: Entry, reach: str, at_most: float) -> None:
    entry.reach = reach
    entry.met = None if entry.ratio is None else entry.ratio.median <= at_most


# --- P3: the number of tasks -----------------------------------------------------------------------------


def p3(plan: Plan) -> Row:
    row = Row("P3", f"{plan.large_run} no-ops through queue_tasks: per task", f"per task of {plan.small_run}")
    terms = Terms(backend=plan.backend)
    for tool in ("gwsandbox", "glasswall", "pebble", "futures forkserver"):
        try:
            with Side(SideSpec("long_run", tool, terms)) as side:
                _lengths(plan, row, side)
        except Absent as why:
            row.entries.append(Entry(tool, note=str(why)))
    return row


def _lengths(plan: Plan, row: Row, side: Side) -> None:
    tool, is_ours = side.spec.tool, side.spec.tool == "gwsandbox"
    short = Turn(side, {"count": plan.small_run if is_ours else plan.small_run // 4})
    short.warm_up()
    first = short.figure()[0]
    large = plan.large_run if is_ours else min(plan.large_run, int(_BUDGET / first))
    lengths = [large, 100_000] if is_ours and plan.full else [large]
    for length in lengths:
        rounds = 1 if length > plan.large_run else min(plan.rounds, 3)
        shorts, pairs = in_turns(short, Turn(side, {"count": length}), rounds, each=5)
        entry = Entry(f"{tool}, {length} against {short.order['count']}")
        row.entries.append(entry)
        _fill(entry, pairs, tool, length)
        row.points += [
            {"axis": "tasks", "tool": tool, "x": count, "ms": Spread.of(figures).median * _MS}
            for count, figures in ((short.order["count"], shorts), (length, pairs.figures))
        ]
        if is_ours:
            _judge(entry, "≤ 1.05", 1.05)
            row.entries += _growth(pairs)


def _growth(pairs: Pairs) -> Iterator[Entry]:
    """What caller and supervisor hold at the end of the longest run, against a tenth of the way."""
    samples = pairs.answers[-1]["samples"]
    early, late = samples[len(samples) // 10], samples[-1]
    for who in ("caller", "supervisor"):
        if f"{who}_bytes" not in early or f"{who}_bytes" not in late:
            continue
        grown = (late[f"{who}_bytes"] - early[f"{who}_bytes"]) / 1024
        more = late[f"{who}_descriptors"] - early[f"{who}_descriptors"]
        yield Entry(
            f"  {who}'s memory from task {early['done']} to {late['done']}",
            Spread(grown, grown, grown, 1),
            "KiB",
            reach="flat: ≤ 1024 KiB",
            met=grown <= 1024 and more <= 4,
            note=f"descriptors {early[f'{who}_descriptors']} → {late[f'{who}_descriptors']}",
        )


# --- P4: the caller's heap -------------------------------------------------------------------------------

_HEAPS = {"objects": "small lists", "bytes": "one touched bytearray"}


def p4(plan: Plan) -> Row:
    row = Row("P4", f"caller holds {size_text(plan.heap)} of live heap, no-op, per task", "same tool, empty heap")
    terms = Terms(backend=plan.backend)
    tools = ("fork", "gwsandbox", "gwsandbox forkserver", "glasswall", "pebble", "futures forkserver")
    for kind, words in _HEAPS.items():
        floor: Spread | None = None
        for tool in tools:
            entry = Entry(f"{'fork floor' if tool == 'fork' else tool}, {words}")
            row.entries.append(entry)
            try:
                work = "forks" if tool == "fork" else "calls"
                pairs = _with_heap(plan, row, SideSpec(work, tool, terms, (kind, plan.heap)))
            except Absent as why:
                entry.note = str(why)
                continue
            _fill(entry, pairs, tool, _heap_count(plan, tool))
            floor = pairs.spread() if tool == "fork" else floor
            if tool == "gwsandbox forkserver":
                _judge(entry, "≤ 1.1 x empty heap", 1.1)
            elif tool == "gwsandbox" and floor is not None:
                entry.reach = "what a snapshot allows"
                entry.note += f"; {pairs.spread().median / floor.median:.2f} x fork floor with this heap"
    row.entries += _piling_up(plan)
    return row


def _heap_count(plan: Plan, tool: str) -> int:
    return plan.pick(20, 6, 2) if tool in {"fork", "gwsandbox", "gwsandbox forkserver"} else plan.pick(6, 3, 2)


def _with_heap(plan: Plan, row: Row, spec: SideSpec) -> Pairs:
    assert spec.heap is not None
    kind, size = spec.heap
    count = _heap_count(plan, spec.tool)
    with Side(replace(spec, heap=None)) as empty, Side(spec) as full:
        base = Turn(empty, {"count": count})
        base.warm_up()
        empties, pairs = in_turns(base, Turn(full, {"count": count}), min(plan.rounds, 5))
    row.points += [
        {"axis": f"heap of {_HEAPS[kind]}", "tool": spec.tool, "x": x, "ms": Spread.of(figures).median * _MS}
        for x, figures in ((0, empties), (size, pairs.figures))
    ]
    return pairs


def _piling_up(plan: Plan) -> Iterator[Entry]:
    """Whether the cost of a fork grows with the results that the caller keeps."""
    terms = Terms(backend=plan.backend)
    entry = Entry("gwsandbox, results kept: last quarter", reach="does not grow: ≤ 1.1 x first quarter")
    try:
        with Side(SideSpec("long_run", "gwsandbox", terms, ("objects", plan.heap))) as side:
            ratios = []
            for _ in range(min(plan.rounds, 3)):
                answer = side.round(count=plan.pick(400, 80, 20), keep=True)
                moments = [0.0, *(sample["seconds"] for sample in answer["samples"])]
                quarter = len(moments) // 4
                ratios.append((moments[-1] - moments[-1 - quarter]) / (moments[quarter] - moments[0]))
    except Absent as why:
        entry.note = str(why)
    else:
        entry.ratio = Spread.of(ratios)
        entry.met = entry.ratio.median <= 1.1
    yield entry


# --- P10 to P12 ------------------------------------------------------------------------------------------


def p10(plan: Plan) -> Row:
    row = Row("P10", "/bin/true, one after the other, per run", "subprocess.run")
    terms = Terms(backend=plan.backend, memory=_MEMORY, wall=_WALL, pids=_PIDS)
    count = plan.pick(40, 40, 3)
    order = {"argv": ["/bin/true"], "count": count}
    tools = ("fork + execv", "gwsandbox", "bwrap", "systemd-run --scope", "systemd-run --wait", "BenchExec")
    floors: list[float] = []
    row.entries.append(Entry("subprocess.run"))
    with Side(SideSpec("commands", "subprocess.run")) as side:
        floor = Turn(side, order)
        floor.warm_up()
        for tool in tools:
            entry = Entry("gwsandbox, memory + wall + pids" if tool == "gwsandbox" else tool)
            row.entries.append(entry)
            try:
                work = "fork_execs" if tool == "fork + execv" else "commands"
                with Side(SideSpec(work, tool, terms)) as other:
                    found, pairs = in_turns(floor, Turn(other, order), plan.rounds)
            except Absent as why:
                entry.note = str(why)
                continue
            floors += found
            _fill(entry, pairs, tool, count)
            if tool == "gwsandbox":
                _judge(entry, "≤ 1.5 x subprocess.run", 1.5)
    row.entries[0].figure, row.entries[0].unit = Spread.of(floors).times(_MS), "ms"
    return row


def p11(plan: Plan) -> Row:
    row = Row("P11", "gwsandbox run --memory 1GiB --timeout 30s -- /bin/true, cold", 'python -c "import typer"')
    count = plan.pick(5, 2, 1)
    script = os.path.join(os.path.dirname(sys.executable), "gwsandbox")
    start = [script] if os.access(script, os.X_OK) else [sys.executable, "-m", "gwsandbox"]
    backend = [] if plan.backend == "auto" else ["--backend", plan.backend]
    commands = {
        "gwsandbox run": [*start, "run", *backend, "--memory", "1GiB", "--timeout", "30s", "--", "/bin/true"],
        "bare interpreter": [sys.executable, "-c", "pass"],
        "import gwsandbox": [sys.executable, "-c", "import gwsandbox"],
        "import psutil": [sys.executable, "-c", "import psutil"],
    }
    floors: list[float] = []
    row.entries.append(Entry("import typer"))
    with Side(SideSpec("commands", "subprocess.run")) as side:
        floor = Turn(side, {"argv": [sys.executable, "-c", "import typer"], "count": count})
        for who, argv in commands.items():
            entry = Entry(who)
            row.entries.append(entry)
            try:
                found, pairs = in_turns(floor, Turn(side, {"argv": argv, "count": count}), plan.rounds)
            except Absent as why:
                entry.note = str(why)
                continue
            floors += found
            _fill(entry, pairs, who, count)
            if who == "gwsandbox run":
                _judge(entry, "≤ 1.5 x import typer", 1.5)
    if floors:
        row.entries[0].figure, row.entries[0].unit = Spread.of(floors).times(_MS), "ms"
    return row


def p12(_: Plan) -> Row:
    entry = Entry("gwsandbox", reach="adds ≤ 0.5 x floor", note="not built")
    return Row("P12", "hardening fully on, per task", "fork floor", [entry])
