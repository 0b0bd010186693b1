"""P8: how far a task comes past its memory limit."""

import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.messages import terms
from benchmarks.plan import MIB, Plan, size_text
from benchmarks.row import Entry, Row, Spread
from benchmarks.rows.common import attempt
from benchmarks.side import Side, SideSpec

_CEILING = 4  # in limits: where a task ends by itself
_REMARK = "smaller than the target's 0.5 GiB, as touching memory is very slow under emulation"


@dataclass(slots=True)
class _Growths:
    """Of one tool: how far tasks came, in limits; the peaks in bytes that it reports, from where; how tasks ended."""

    reached: list[float] = field(default_factory=list)
    peaks: list[int] = field(default_factory=list)
    source: str = ""
    kinds: set[str] = field(default_factory=set)


def p8(plan: Plan) -> Row:
    """Each tool, with memory that RLIMIT_DATA counts, and with memory that it does not."""
    entries = [
        entry
        for kind in ("private", "shared")
        for tool in ("gwsandbox", "glasswall", "pebble")
        for entry in attempt(f"{tool}, {kind} memory", _reach, plan, tool, kind)
    ]
    work = f"memory reached by a task with a limit of {size_text(plan.memory_limit)}"
    return Row("P8", work, "the limit", entries, [_REMARK] if plan.emulated else [])


def _reach(plan: Plan, tool: str, kind: str) -> Iterator[Entry]:
    limit = plan.memory_limit
    growths = _measure(plan, tool, shared=kind == "shared")
    ratio = Spread.of(growths.reached)
    note = ", ".join(sorted(growths.kinds))
    if max(growths.reached) >= _CEILING:
        note += "; no limit: went to its end"
    entry = Entry(f"{tool}, {kind} memory", ratio.times(limit / MIB), "MiB", ratio, note=note)
    yield _judged(entry, growths, limit) if tool == "gwsandbox" else entry


def _measure(plan: Plan, tool: str, *, shared: bool) -> _Growths:
    limit = plan.memory_limit
    spec = SideSpec("growth", tool, terms(memory=limit, wall=600.0, backend=plan.backend))
    growths = _Growths()
    with tempfile.TemporaryDirectory(prefix="gwsandbox-bench-") as folder, Side(spec) as side:
        for turn in range(plan.few_rounds):
            progress = Path(folder) / str(turn)
            answer = side.round(progress=str(progress), ceiling=_CEILING * limit, shared=shared)
            growths.reached.append(struct.unpack("=q", progress.read_bytes())[0] / limit)
            growths.peaks += [] if answer["peak"] is None else [answer["peak"]]
            growths.kinds |= set(answer["kinds"])
            growths.source = answer.get("source") or ""
    return growths


def _judged(entry: Entry, growths: _Growths, limit: int) -> Entry:
    met = None
    if growths.source == "memory.peak":
        met = max(growths.peaks) <= limit and max(growths.reached) <= 1
        entry = entry.noting(f"; memory.peak at most {(max(growths.peaks) - limit) // 4096:+d} pages from the limit")
    elif growths.peaks:
        entry = entry.noting(f"; {growths.source}: {max(growths.peaks) / limit:.2f} x limit")
    return entry.judged("not one page past (cgroup)", met=met)
