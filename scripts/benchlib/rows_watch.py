"""P5 to P9: what supervision burns, moves, kills and leaves."""

import contextlib
import itertools
import os
import random
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchlib import loads, proc, watch
from benchlib.contest import Absent, Pairs, Side, SideSpec, Spread, Turn, in_turns
from benchlib.row import Entry, Plan, Row, size_text
from benchlib.tools import Terms

_MS = 1e3
_GIB = 1024**3


# --- P5: rest --------------------------------------------------------------------------------------------


def p5(plan: Plan) -> Row:
    seconds = plan.pick(4, 4, 2)
    row = Row("P5", f"CPU of supervision while 2 tasks sleep {seconds} s", "one processor")
    limited = Terms(workers=2, backend=plan.backend, memory=1024**3, wall=600.0, pids=64)
    with watch.open_fifo() as told:
        for tool in ("gwsandbox", "gwsandbox forkserver", "glasswall", "pebble", "futures forkserver"):
            entry = Entry(tool, unit="%")
            row.entries.append(entry)
            try:
                with Side(SideSpec("calls", tool, limited)) as side:
                    rests = [
                        watch.rest(side, told, tasks=2, seconds=seconds, count_calls=turn == 0 and not plan.quick)
                        for turn in range(min(plan.rounds, 3))
                    ]
            except Absent as why:
                entry.note = str(why)
                continue
            _fill_rest(entry, rests)
            if tool.startswith("gwsandbox"):
                entry.reach, entry.met = "≤ 0.2 %", entry.figure is not None and entry.figure.median <= 0.2
    return row


def _fill_rest(entry: Entry, rests: list[watch.Rest]) -> None:
    entry.figure = Spread.of([rest.share * 100 for rest in rests])
    calls = rests[0].system_calls
    counted = f"not counted: {rests[0].why_not_counted}" if calls is None else f"{calls} in 10 s"
    entry.note = f"{rests[0].processes} processes; system calls {counted}"


# --- P6: large results -----------------------------------------------------------------------------------


def p6(plan: Plan) -> Row:
    size = plan.result_size
    row = Row("P6", f"{size_text(size)} of bytes returned, twice, both kept", "fork + 1 MiB pipe into one buffer")
    rates: dict[str, float] = {}
    floors: list[float] = []
    row.entries.append(Entry("floor", unit="GiB/s"))
    with Side(SideSpec("piped_values", "fork")) as side:
        floor = Turn(side, {"size": size, "count": 2})
        for tool in ("gwsandbox", "gwsandbox forkserver", "glasswall", "pebble", "futures forkserver"):
            entry = Entry(tool)
            row.entries.append(entry)
            try:
                with Side(SideSpec("big_values", tool, Terms(backend=plan.backend))) as other:
                    found, pairs = in_turns(floor, Turn(other, {"size": size, "count": 2}), min(plan.rounds, 5))
            except Absent as why:
                entry.note = str(why)
                continue
            floors += found
            rates[tool] = _fill_rate(entry, pairs, size)
            row.entries += _judge_rate(entry, pairs, size)
    if floors:
        row.entries[0].figure = _rate(floors, size)
    row.entries += _against_glasswall(rates)
    return row


def _rate(seconds: list[float], size: int) -> Spread:
    return Spread.of([size / _GIB / each for each in seconds])


def _fill_rate(entry: Entry, pairs: Pairs, size: int) -> float:
    entry.figure, entry.unit = _rate(pairs.figures, size), "GiB/s"
    entry.ratio = Spread.of([1 / ratio for ratio in pairs.ratios])
    peak = Spread.of([answer["peak"] / (2 * size) for answer in pairs.answers])
    entry.note = f"caller's peak {peak.median:.2f} x both results"
    if not all(answer["whole"] for answer in pairs.answers):
        entry.note = "results were NOT whole"
    return entry.figure.median


def _judge_rate(entry: Entry, pairs: Pairs, size: int) -> Iterator[Entry]:
    if entry.who.startswith("gwsandbox") and entry.ratio is not None:
        entry.reach, entry.met = "≥ 0.8 x floor", entry.ratio.median >= 0.8
        peak = Spread.of([answer["peak"] / (2 * size) for answer in pairs.answers])
        yield Entry("  caller's peak / results", ratio=peak, reach="≤ 1.1", met=peak.median <= 1.1)


def _against_glasswall(rates: dict[str, float]) -> Iterator[Entry]:
    if "gwsandbox" in rates and "glasswall" in rates:
        times = rates["gwsandbox"] / rates["glasswall"]
        yield Entry(
            "gwsandbox / glasswall",
            ratio=Spread(times, times, times, 1),
            reach="≥ 4 x glasswall",
            met=times >= 4,
        )


# --- P7: the deadline ------------------------------------------------------------------------------------

_DEADLINE = 0.5


def p7(plan: Plan) -> Row:
    row = Row("P7", f"deadline of {_DEADLINE} s: death after it, and next start after death", "")
    terms = Terms(wall=_DEADLINE, memory=_GIB, backend=plan.backend)
    chunk = plan.pick(10, 5, 2)
    chunks = plan.pick(5, 4, 1)
    with contextlib.ExitStack() as stack, watch.open_fifo() as told:
        sides = {
            tool: stack.enter_context(
                Side(SideSpec("fork_deadlines" if tool.startswith("fork") else "calls", tool, terms))
            )
            for tool in ("fork with a deadline", "gwsandbox", "glasswall", "pebble")
        }
        late: dict[str, list[float]] = {tool: [] for tool in sides}
        gaps: dict[str, list[float]] = {tool: [] for tool in sides}
        absent: dict[str, str] = {}
        for _ in range(chunks):
            for tool, side in sides.items():
                if tool not in absent:
                    try:
                        _chunk(side, told, chunk, late[tool], gaps[tool])
                    except Absent as why:
                        absent[tool] = str(why)
    for tool in sides:
        row.entries += _lateness(plan, tool, late[tool], gaps[tool], absent.get(tool, ""))
    row.remarks.append(
        f"seen from outside by pidfd; the {_DEADLINE} s are counted from the task's own first instruction, "
        "so a deadline that begins with the process may show as a negative lateness"
    )
    return row


def _chunk(side: Side, told: watch.Fifo, count: int, late: list[float], gaps: list[float]) -> None:
    if side.spec.work == "fork_deadlines":
        seen = watch.lives(side, told, told=told.path, count=count)
    else:
        seen = watch.lives(side, told, load="sleep_after_telling", arguments=[told.path, 60.0], count=count)
    if not seen:
        raise Absent("no task was seen")
    late += [(life.ended - life.began - _DEADLINE) * _MS for life in seen]
    gaps += [(after.began - before.ended) * _MS for before, after in itertools.pairwise(seen)]


def _lateness(plan: Plan, tool: str, late: list[float], gaps: list[float], absent: str) -> Iterator[Entry]:
    if absent or not gaps:
        yield Entry(tool, note=absent)
        return
    in_time = sum(each <= 5 for each in late) / len(late)
    is_ours = tool == "gwsandbox"
    judged = is_ours and not plan.emulated
    yield Entry(
        f"{tool}: killed late by",
        Spread.of(late),
        "ms",
        reach="99 % within 5 ms" if is_ours else "",
        met=in_time >= 0.99 if judged else None,
        note=f"{in_time:.0%} of {len(late)} within 5 ms; worst {max(late):.1f}",
    )
    quick = sum(each <= 5 for each in gaps) / len(gaps)
    yield Entry(
        f"{tool}: slot busy again after",
        Spread.of(gaps),
        "ms",
        reach="within 5 ms" if is_ours else "",
        met=Spread.of(gaps).median <= 5 if judged else None,
        note=f"{quick:.0%} within 5 ms; worst {max(gaps):.1f}",
    )


# --- P8: memory past the limit ---------------------------------------------------------------------------


def p8(plan: Plan) -> Row:
    limit = plan.memory_limit
    row = Row("P8", f"memory reached by a task with a limit of {size_text(limit)}", "the limit")
    terms = Terms(memory=limit, wall=600.0, backend=plan.backend)
    for shared in (False, True):
        for tool in ("gwsandbox", "glasswall", "pebble"):
            entry = Entry(f"{tool}, {'shared' if shared else 'private'} memory")
            row.entries.append(entry)
            try:
                _reach(plan, entry, SideSpec("growth", tool, terms), shared=shared)
            except Absent as why:
                entry.note = str(why)
    if plan.emulated:
        row.remarks.append("smaller than the target's 0.5 GiB, as touching memory is very slow under emulation")
    return row


def _reach(plan: Plan, entry: Entry, spec: SideSpec, *, shared: bool) -> None:
    limit = plan.memory_limit
    reached, peaks, kinds = [], [], set()
    with tempfile.TemporaryDirectory(prefix="gwsandbox-bench-") as folder, Side(spec) as side:
        for turn in range(min(plan.rounds, 3)):
            progress = Path(folder) / str(turn)
            answer = side.round(progress=str(progress), ceiling=4 * limit, shared=shared)
            reached.append(struct.unpack("=q", progress.read_bytes())[0] / limit)
            peaks.append(answer["peak"])
            kinds |= set(answer["kinds"])
    entry.ratio = Spread.of(reached)
    entry.figure, entry.unit = entry.ratio.times(limit / 1024**2), "MiB"
    entry.note = ", ".join(sorted(kinds))
    if max(reached) >= 4:
        entry.note += "; no limit: went to its end"
    if spec.tool == "gwsandbox":
        _judge_reach(entry, answer.get("source") or "", limit, peaks, reached)


def _judge_reach(entry: Entry, source: str, limit: int, peaks: list[int | None], reached: list[float]) -> None:
    entry.reach = "not one page past (cgroup)"
    known = [peak for peak in peaks if peak is not None]
    if source == "memory.peak":
        entry.met = max(known) <= limit and max(reached) <= 1
        entry.note += f"; memory.peak at most {(max(known) - limit) // 4096:+d} pages from the limit"
    elif known:
        entry.note += f"; {source}: {max(known) / limit:.2f} x limit"


# --- P9: what is left ------------------------------------------------------------------------------------


def p9(plan: Plan) -> Row:
    row = Row("P9", "processes left by a task that double-forks a daemon", "")
    terms = Terms(memory=_GIB, wall=60.0, backend=plan.backend)
    calls = ("gwsandbox", "gwsandbox forkserver", "glasswall", "pebble", "futures forkserver")
    programs = (
        "gwsandbox",
        "subprocess.run",
        "bwrap",
        "systemd-run --scope",
        "systemd-run --wait",
        "BenchExec",
    )
    for work, tools in (("calls", calls), ("commands", programs)):
        for tool in tools:
            entry = Entry(f"{tool}, {'function' if work == 'calls' else 'program'}")
            row.entries.append(entry)
            try:
                with Side(SideSpec(work, tool, terms)) as side:
                    left = [_left(side, work) for _ in range(min(plan.rounds, 3))]
            except Absent as why:
                entry.note = str(why)
                continue
            entry.figure = Spread.of([float(count) for count in left])
            if tool.startswith("gwsandbox"):
                entry.reach, entry.met = "0", max(left) == 0
    return row


def _left(side: Side, work: str) -> int:
    # Known by its argument, as its pid may be of another namespace.
    mark = f"{random.uniform(60, 70):.6f}"
    try:
        if work == "calls":
            side.round(load="leave_daemon", arguments=[mark], count=1)
        else:
            folder = str(Path(loads.__file__).parent)
            code = f"import sys; sys.path.insert(0, {folder!r}); import loads; loads.leave_daemon('{mark}')"
            side.round(argv=[sys.executable, "-c", code], count=1)
        time.sleep(0.3)  # for tools that clear up after they have answered
        return len(proc.with_argument(mark))
    finally:
        for pid in proc.with_argument(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
