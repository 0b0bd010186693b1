"""``gwsandbox top``, ``ps`` and ``kill``, as typed."""

from __future__ import annotations

import signal
import sys
from typing import Annotated, Any

import typer

from gwsandbox.cli.help import HelpCommand
from gwsandbox.cli.messages import failures_as_messages

_PANEL = "What runs"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    examples = "gwsandbox top\ngwsandbox top --once --json | jq '.tasks[] | {pid, memory_bytes}'"
    app.command("top", cls=HelpCommand, epilog=examples, rich_help_panel=_PANEL)(top)
    app.command("ps", cls=HelpCommand, epilog="gwsandbox ps", rich_help_panel=_PANEL)(ps)
    examples = "gwsandbox kill 4711\ngwsandbox kill --signal TERM 4711"
    app.command("kill", cls=HelpCommand, epilog=examples, rich_help_panel=_PANEL)(kill)


_AsJson = Annotated[bool, typer.Option("--json", help="Print it as JSON; once.")]


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print it once. So it does where stdout is no terminal.")
    ] = False,
    as_json: _AsJson = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=60, help="Between two looks.")
    ] = 1.0,
) -> None:
    """Show the tasks that run on this host.

    Age, CPU time and memory of each, with its limit. Tasks of all managers, map calls and services are there,
    on both backends. OF is the limit of what stands before
    it. A task that waits is ready for the next free worker, and its time has not begun.

    Exit code: 0 done, 125 gwsandbox itself failed.
    """
    from gwsandbox.cli.watch.command import list_tasks, watch_tasks

    with failures_as_messages("gwsandbox top: "):
        is_live = not (once or as_json) and sys.stdout.isatty()
        raise typer.Exit(watch_tasks(interval) if is_live else list_tasks(as_json=as_json))


def ps(as_json: _AsJson = False) -> None:
    """Print the tasks that run on this host, as top --once does.

    Exit code: 0 done, 125 gwsandbox itself failed.
    """
    from gwsandbox.cli.watch.command import list_tasks

    with failures_as_messages("gwsandbox ps: "):
        raise typer.Exit(list_tasks(as_json=as_json))


def _signal(text: str) -> signal.Signals:
    name = text.upper()
    try:
        return (
            signal.Signals(int(text)) if text.isdigit() else signal.Signals[name.removeprefix("SIG").join(("SIG", ""))]
        )
    except (ValueError, KeyError) as error:
        raise typer.BadParameter(f"{text!r} is no signal; write for example TERM or 15") from error


def kill(
    pid: Annotated[int, typer.Argument(metavar="PID", show_default=False, min=1)],
    number: Annotated[
        Any, typer.Option("--signal", "-s", metavar="SIGNAL", parser=_signal, help="KILL, TERM, … or a number.")
    ] = "KILL",
) -> None:
    """End one task.

    It is the one that process PID belongs to; others of its run go on. Its result says KILLED, by a signal
    from outside. No process that is not of a task is signalled.

    Exit code: 0 sent, 1 PID is of no task, 125 it cannot be signalled.
    """
    from gwsandbox.cli.watch.command import kill_task

    with failures_as_messages("gwsandbox kill: "):
        raise typer.Exit(kill_task(pid, _signal(number) if isinstance(number, str) else number))
