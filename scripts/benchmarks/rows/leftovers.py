"""P9: what a task leaves behind that starts a daemon."""

import contextlib
import os
import secrets
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import proc
from benchmarks.messages import terms
from benchmarks.plan import GIB, Plan
from benchmarks.row import Entry, Row, Spread
from benchmarks.rows.common import attempt
from benchmarks.side import Side, SideSpec
from benchmarks.worker import loads

_CALLERS = ("gwsandbox", "gwsandbox forkserver", "glasswall", "pebble", "futures forkserver")
_COMMANDERS = ("gwsandbox", "subprocess.run", "bwrap", "systemd-run --scope", "systemd-run --wait", "BenchExec")


def p9(plan: Plan) -> Row:
    """Each tool, by a function and by a program."""
    contenders = [
        *((f"{tool}, function", tool, "calls") for tool in _CALLERS),
        *((f"{tool}, program", tool, "commands") for tool in _COMMANDERS),
    ]
    entries = [entry for who, tool, work in contenders for entry in attempt(who, _count, plan, who, tool, work)]
    return Row("P9", "processes left by a task that double-forks a daemon", "", entries)


def _count(plan: Plan, who: str, tool: str, work: str) -> Iterator[Entry]:
    limited = terms(memory=GIB, wall=60.0, backend=plan.backend)
    with Side(SideSpec(work, tool, limited)) as side:
        left = [_left(side, work) for _ in range(plan.few_rounds)]
    entry = Entry(who, Spread.of([float(count) for count in left]))
    yield entry.judged("0", met=max(left) == 0) if tool.startswith("gwsandbox") else entry


def _left(side: Side, work: str) -> int:
    # The daemon is known by its argument, as its pid may be of another namespace.
    mark = f"{60 + secrets.randbelow(10_000_000) / 1e6:.6f}"
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
