"""The command line of `scripts/bench`."""

import argparse
import compileall
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import picture, proc, table
from benchmarks.messages import Backend
from benchmarks.plan import Plan
from benchmarks.row import Row
from benchmarks.rows import ROWS
from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.model.errors import CgroupError

DESCRIPTION = """\
Measures what gwsandbox costs, beside a bare fork and the real peers, in one run.

Rows are P1 to P12, and P14; each contender is measured in a process of its own, in turns with its floor, so that a
noisy machine shifts both. Peers that are not installed are listed as such: pip install -e '.[bench]' brings
those of Python, bubblewrap, systemd and strace are the distribution's. It is no test: nothing fails when a
figure is bad.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the table; the process's exit code."""
    options = parse(arguments)
    with earlier_commit(options.against) as folder:
        plan = plan_of(options, folder)
        rows = [measure(name, plan) for name in options.rows or ROWS]
    print(heading(plan))
    print(table.render(rows))
    if options.json:
        content = {"heading": heading(plan), "backend": plan.backend, "rows": [row.as_json() for row in rows]}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.picture:
        options.picture.write_text(picture.draw(rows))
    return 0


def measure(name: str, plan: Plan) -> Row:
    """One row; how long it took goes to stderr."""
    start = time.monotonic()
    row = ROWS[name](plan)
    print(f"{name} measured in {time.monotonic() - start:.0f} s", file=sys.stderr)
    return row


def plan_of(options: argparse.Namespace, earlier: Path | None) -> Plan:
    """How much to measure, by the options and by what the processor is."""
    emulated = proc.is_emulated()
    default = 2 if options.quick else 3 if emulated else 7
    return Plan(
        backend=backend(options.backend),
        quick=options.quick,
        full=options.full,
        emulated=emulated,
        rounds=options.rounds or default,
        earlier=earlier,
        earlier_name=options.against or "",
    )


@contextlib.contextmanager
def earlier_commit(name: str | None) -> Iterator[Path | None]:
    """A folder with a commit of this repository, for as long as the block lasts; ``None`` where none is wanted."""
    if name is None:
        yield None
        return
    git = ["git", "-C", str(Path(__file__).resolve().parent), "worktree"]
    with tempfile.TemporaryDirectory(prefix="gwsandbox-bench-") as folder:
        subprocess.run([*git, "add", "--quiet", "--detach", folder, name], check=True)
        try:
            compileall.compile_dir(Path(folder, "gwsandbox"), quiet=1)
            yield Path(folder)
        finally:
            subprocess.run([*git, "remove", "--force", folder], check=True)


def backend(wanted: Backend) -> Backend:
    """The backend that is wanted; for "auto" the one that this host has."""
    if wanted != "auto":
        return wanted
    try:
        CgroupBackend.find()
    except CgroupError:
        return "rlimit"
    return "cgroup"


def heading(plan: Plan) -> str:
    """One line on this host and this run."""
    emulated = ", emulated in software: ratios count, times do not" if plan.emulated else ""
    quick = "; --quick: too little to mean anything" if plan.quick else ""
    host = f"Python {platform.python_version()}, Linux {platform.release()}"
    processors = len(os.sched_getaffinity(0))
    return (
        f"gwsandbox by the {plan.backend} backend; {host}, {processors} processors{emulated}; "
        f"{plan.rounds} rounds{quick}"
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", type=row_name, help="P1 to P12, P14 (default: all)")
    parser.add_argument(
        "--against", metavar="REV", help="measure this commit of gwsandbox too, in turns with the checkout"
    )
    much = parser.add_mutually_exclusive_group()
    much.add_argument("--quick", action="store_true", help="as little as shows that everything runs")
    much.add_argument("--full", action="store_true", help="P3 with 100,000 tasks too")
    parser.add_argument("--backend", choices=("auto", "rlimit", "cgroup"), default="auto")
    parser.add_argument("--rounds", type=int, metavar="N", help="of each contender (default: 7, 3 under emulation)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--picture", type=Path, metavar="FILE.svg", help="draw what P3 and P4 measured")
    return parser.parse_args(arguments)


def row_name(text: str) -> str:
    """The row's name, in any case."""
    name = text.upper()
    if name not in ROWS:
        raise argparse.ArgumentTypeError(f"there is no row {text!r}; the rows are P1 to P12 and P14")
    return name
