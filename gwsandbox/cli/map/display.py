"""What ``gwsandbox map`` prints while its tasks run, and how it waits for them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Self

from gwsandbox.cli.map.failures import Failures
from gwsandbox.cli.map.guest_output import GuestOutput
from gwsandbox.cli.map.progress import Progress
from gwsandbox.cli.map.running import RunningRow
from gwsandbox.cli.map.target import hide_from_guests
from gwsandbox.cli.signals import SignalQueue, suspend
from gwsandbox.client.running import RunningTask
from gwsandbox.manager import ProcessManager
from gwsandbox.model.result import TaskResult
from gwsandbox.model.task import CommandOutput
from gwsandbox.model.text import shown


class Display:
    """The progress bar, the lines above it, and the output of guests.

    Args:
        total: Number of inputs to work on.
        suspensions: Holds back the signal of Ctrl-Z.
        row_of: The path and the limits of the input of a task that runs; ``None`` where it has ended.
    """

    def __init__(
        self,
        total: int,
        suspensions: SignalQueue,
        row_of: Callable[[RunningTask], RunningRow | None],
    ) -> None:
        self._row_of = row_of
        self._manager: ProcessManager | None = None
        self._waiting: dict[int, CommandOutput] = {}
        self._next = 0
        self._suspensions = suspensions
        self._output = GuestOutput()
        self._progress = Progress(total, self._running)
        self._failures = Failures(self._progress.line)
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._output)
            hide_from_guests(*self._output.own_descriptors(), self._suspensions.fileno())
            undo.enter_context(self._progress)
            undo.callback(self._finish)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _finish(self) -> None:
        for place in sorted(self._waiting):
            self._show(self._waiting.pop(place))
        self._output.pass_on(self._progress.guest_line, at_end=True)
        self._failures.print_due(everything=True)

    def wait(self, fd: int, manager: ProcessManager) -> None:
        """Wait until ``fd`` can be read; meanwhile print what comes, and stop and go on with the guests at Ctrl-Z."""
        self._manager = manager
        poll = select.poll()
        for source in (fd, self._suspensions.fileno(), *self._output.readers()):
            poll.register(source, select.POLLIN)
        while True:
            self._progress.draw()
            waits = (self._failures.seconds_to_wait(), self._progress.seconds_to_wait())
            seconds = min((wait for wait in waits if wait is not None), default=None)
            ready = [found for found, _ in poll.poll(None if seconds is None else seconds * 1000 + 1)]
            if self._suspensions.take():
                manager._send_signal(signal.SIGSTOP)
                self._progress.suspend(suspend)
                manager._send_signal(signal.SIGCONT)
            self._output.pass_on(self._progress.guest_line)
            self._failures.print_due()
            if fd in ready:
                return

    def _running(self) -> list[RunningRow]:
        running = [] if self._manager is None else self._manager._running()
        return [row for row in map(self._row_of, running) if row is not None]

    def line(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.line(text)

    def finished(self, path: str, result: TaskResult) -> None:
        """Count a finished input, and print it where it failed."""
        if not result.success:
            self._failures.add(path, result)
        self._progress.advance(result.outcome)

    def show(self, place: int | None, output: CommandOutput) -> None:
        """Print what a task gave: escaped at a terminal, else as it is.

        Args:
            place: Of its input: what comes before is printed before. ``None``: it is printed at once.
            output: What it gave.
        """
        if place is None:
            self._show(output)
            return
        self._waiting[place] = output
        while self._next in self._waiting:
            self._show(self._waiting.pop(self._next))
            self._next += 1

    def _show(self, output: CommandOutput) -> None:
        for stream, data in ((sys.stdout, output.stdout), (sys.stderr, output.stderr)):
            if not data:
                continue
            if stream.isatty():
                for line in data.decode(errors="replace").splitlines():
                    self._progress.guest_line(stream, shown(line))
            else:
                stream.flush()
                with contextlib.suppress(OSError):  # its reader is gone
                    _write(stream.fileno(), data)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
