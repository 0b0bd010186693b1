"""P10 and P11: what a program costs, and what the command line costs."""

import os
import sys
from collections.abc import Iterator

from benchmarks.messages import terms
from benchmarks.pairs import Floor, Turn
from benchmarks.plan import Plan
from benchmarks.row import Entry, Row
from benchmarks.rows.common import MEMORY, PIDS, WALL, Contender, attempt, compete
from benchmarks.side import Side, SideSpec


def p10(plan: Plan) -> Row:
    """`/bin/true`, by each tool."""
    limited = terms(backend=plan.backend, memory=MEMORY, wall=WALL, pids=PIDS)
    count = plan.pick(40, 40, 3)
    argv = ["/bin/true"]
    contenders = [
        Contender(who="fork + execv", spec=SideSpec("fork_execs", "fork + execv", limited), count=count),
        Contender(
            who="gwsandbox, memory + wall + pids",
            spec=SideSpec("commands", "gwsandbox", limited),
            count=count,
            at_most=1.5,
        ),
        *(
            Contender(who=tool, spec=SideSpec("commands", tool, limited), count=count)
            for tool in ("bwrap", "systemd-run --scope", "systemd-run --wait", "BenchExec")
        ),
    ]
    with Side(SideSpec("commands", "subprocess.run")) as side:
        turn = Turn(side, count, {"argv": argv})
        turn.warm_up()
        floor = Floor(turn)
        entries = list(compete(plan, floor, contenders, "subprocess.run", argv=argv))
    work = "/bin/true, one after the other, per run"
    return Row("P10", work, "subprocess.run", [floor.entry("subprocess.run"), *entries])


def p11(plan: Plan) -> Row:
    """`gwsandbox run`, and the interpreter's start with and without our imports."""
    count = plan.pick(5, 2, 1)
    commands = {
        "gwsandbox run": _command_line(plan.backend),
        "bare interpreter": [sys.executable, "-c", "pass"],
        "import gwsandbox": [sys.executable, "-c", "import gwsandbox"],
        "import psutil": [sys.executable, "-c", "import psutil"],
    }
    if plan.earlier is not None:
        folder = f"PYTHONPATH={plan.earlier}"
        commands[f"gwsandbox run at {plan.earlier_name}"] = [
            "env",
            folder,
            *_command_line(plan.backend, by_module=True),
        ]
        commands[f"import gwsandbox at {plan.earlier_name}"] = ["env", folder, *commands["import gwsandbox"]]
    with Side(SideSpec("commands", "subprocess.run")) as side:
        floor = Floor(Turn(side, count, {"argv": [sys.executable, "-c", "import typer"]}))

        def measure(who: str, argv: list[str]) -> Iterator[Entry]:
            entry = floor.beside(Turn(side, count, {"argv": argv}), plan.rounds).entry(who, who, count)
            yield entry.judged_by_ratio(1.5, "import typer") if who == "gwsandbox run" else entry

        entries = [entry for who, argv in commands.items() for entry in attempt(who, measure, who, argv)]
    work = "gwsandbox run --memory 1GiB --timeout 30s -- /bin/true, cold"
    return Row("P11", work, 'python -c "import typer"', [floor.entry("import typer"), *entries])


def _command_line(backend: str, *, by_module: bool = False) -> list[str]:
    script = os.path.join(os.path.dirname(sys.executable), "gwsandbox")
    start = [script] if os.access(script, os.X_OK) and not by_module else [sys.executable, "-m", "gwsandbox"]
    chosen = [] if backend == "auto" else ["--backend", backend]
    return [*start, "run", *chosen, "--memory", "1GiB", "--timeout", "30s", "--", "/bin/true"]
