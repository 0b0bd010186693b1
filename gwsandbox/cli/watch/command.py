"""``gwsandbox top``, ``ps`` and ``kill``: the tasks that run on this host."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from gwsandbox.cli.messages import OWN_FAILURE, say
from gwsandbox.cli.streams import print_lines
from gwsandbox.cli.watch.guests import Guest, guest_of, running_guests
from gwsandbox.model.text import format_size, one_line, shown

_LONGEST = 200  # characters of a command where there is no terminal
_HEAD = ("PID", "STATE", "AGE", "OF", "CPU", "MEMORY", "OF", "PROCS", "COMMAND")


def list_tasks(*, as_json: bool) -> int:
    """Print the tasks once; the exit code.

    Raises:
        Failure: It cannot be written.
    """
    guests = running_guests()
    if as_json:
        print_lines(json.dumps({"tasks": [dataclasses.asdict(guest) for guest in guests]}, indent=2))
    else:
        width = os.get_terminal_size().columns if sys.stdout.isatty() else _LONGEST
        print_lines("\n".join(table_lines(guests, width)))
    return 0


def watch_tasks(seconds: float) -> int:
    """Show the tasks until Ctrl-C; the exit code."""
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                lines = list(table_lines(running_guests(), console.width))
                clock = time.strftime("%H:%M:%S")
                text = "\n".join([f"gwsandbox top  {clock}  Ctrl-C ends it", *lines][: console.height])
                live.update(Text(text, no_wrap=True, overflow="crop"), refresh=True)
                time.sleep(seconds)
        except KeyboardInterrupt:
            return 0


def kill_task(pid: int, number: signal.Signals) -> int:
    """Send a signal to the first process of a task; the exit code.

    After a SIGKILL its supervisor ends the rest of it.
    """
    guest = guest_of(pid)
    if guest is None:
        say(f"{pid} is no process of a task; `gwsandbox ps` lists them", prefix="gwsandbox kill: ")
        return 1
    try:
        pidfd = os.pidfd_open(guest.pid)
        try:
            # Its number may have become another's since it was looked at.
            again = guest_of(guest.pid)
            if again is None or again.supervisor != guest.supervisor:
                raise ProcessLookupError
            signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
    except ProcessLookupError:
        say(f"the task of process {pid} has ended meanwhile", prefix="gwsandbox kill: ")
        return 1
    except OSError as error:
        remedy = "try it as the user who started it, or as root"
        say(f"process {guest.pid} cannot be signalled: {error.strerror}; {remedy}", prefix="gwsandbox kill: ")
        return OWN_FAILURE
    print_lines(f"sent {number.name} to {guest.pid}: {_command(guest.command)[:_LONGEST]}")
    return 0


def table_lines(guests: Sequence[Guest], width: int) -> Iterator[str]:
    """The tasks as lines of at most ``width`` columns, below a line for each manager."""
    if not guests:
        yield "no task runs"
        return
    rows = [_row(guest) for guest in guests]
    widths = [max(len(row[column]) for row in [_HEAD, *rows]) for column in range(len(_HEAD) - 1)]
    yield _line(_HEAD, widths, width)
    manager = 0
    for guest, row in zip(guests, rows, strict=True):
        if guest.manager != manager:
            manager = guest.manager
            yield f"{manager} {_command(guest.manager_command)} ({guest.backend})"[:width]
        yield _line(row, widths, width)


def _row(guest: Guest) -> tuple[str, ...]:
    memory, most, wall = guest.memory_bytes, guest.memory_limit_bytes, guest.wall_limit_seconds
    return (
        str(guest.pid),
        guest.state,
        f"{guest.age_seconds:.1f} s",
        "-" if wall is None else f"{wall:g} s",
        f"{guest.cpu_seconds:.1f} s",
        "-" if memory is None else format_size(memory),
        "-" if most is None else format_size(most),
        str(len(guest.processes)),
        _command(guest.command),
    )


def _line(row: Sequence[str], widths: Sequence[int], width: int) -> str:
    left = {1}
    cells = [f"{row[n]:<{w}}" if n in left else f"{row[n]:>{w}}" for n, w in enumerate(widths)]
    return f"  {' '.join(cells)}  {row[-1]}"[:width]


def _command(words: Sequence[str]) -> str:
    return one_line(shown(" ".join(words))) or "?"
