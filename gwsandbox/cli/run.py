"""``gwsandbox run``: one program, under limits, and otherwise as without gwsandbox."""

from __future__ import annotations

import functools
import os
import select
import signal
import time
from collections.abc import Callable

from gwsandbox.cli.messages import OWN_FAILURE, degradation_as_message, not_hardened, not_held, say
from gwsandbox.cli.options import BackendName
from gwsandbox.cli.signals import SignalQueue, Stopped
from gwsandbox.cli.terminal import TerminalModes
from gwsandbox.manager import ProcessManager
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command
from gwsandbox.model.text import shown
from gwsandbox.model.verdict import signal_name

_EXIT_CODES = {
    Outcome.SUCCEEDED: 0,
    Outcome.OUTPUT_EXCEEDED: 121,
    Outcome.CPU_TIME_EXCEEDED: 122,
    Outcome.OUT_OF_MEMORY: 123,
    Outcome.TIMED_OUT: 124,
    Outcome.SANDBOX_ERROR: OWN_FAILURE,
}
# Ctrl-C and `| head` end programs by these signals; a shell prints nothing for them either.
_EXPECTED_ENDS = frozenset({-signal.SIGINT, -signal.SIGPIPE})

_PASSED_ON = signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
_ENDING = frozenset({signal.SIGTERM, signal.SIGHUP})
_GRACE_SECONDS = 5.0  # after SIGTERM to the CLI; time limits have none by themselves


class SignalForwarder:
    """Passes signals that reach the CLI alone on to the program, and ends it some time after SIGTERM or SIGHUP.

    What the terminal sends (Ctrl-C) the program has already, as it is in the same process group.

    Args:
        signals: That reach the CLI.
        grace: Seconds between SIGTERM or SIGHUP and SIGKILL.
    """

    def __init__(self, signals: SignalQueue, grace: float) -> None:
        self.last: int | None = None
        self._signals = signals
        self._grace = grace
        self._ending: int | None = None
        self._deadline = 0.0

    def wait(self, fd: int, manager: ProcessManager) -> None:
        """Pass signals on until ``fd`` can be read.

        Raises:
            Stopped: The program did not end within the time of grace.
        """
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        while True:
            ready = [found for found, _ in poll.poll(self._milliseconds())]
            for number, from_kernel in self._signals.take():
                if not from_kernel:
                    manager._send_signal(number)
                self.last = number
                if number in _ENDING and self._ending is None:
                    self._ending, self._deadline = number, time.monotonic() + self._grace
            if fd in ready:
                return
            if self._ending is not None and time.monotonic() >= self._deadline:
                number, self._ending = self._ending, None  # only once: now the kill is waited for
                raise Stopped(number)

    def _milliseconds(self) -> float | None:
        return None if self._ending is None else max(self._deadline - time.monotonic(), 0) * 1000 + 1


def run_program(
    command: Command,
    limits: Limits,
    backend: BackendName,
    *,
    hardening: Hardening,
    report: str | None,
    grace: float | None,
) -> int:
    """Run a program; the exit code.

    Args:
        command: The program and its arguments.
        limits: Its limits.
        backend: How they are held.
        hardening: What it may see and do.
        report: Path of the report, or ``None``.
        grace: Seconds between SIGTERM and SIGKILL, or ``None`` for those that are usual.

    Raises:
        Failure, SandboxError: The program cannot be started, or the report cannot be written.
    """
    file = None
    if report is not None:
        from gwsandbox.cli.report_file import ReportFile
        from gwsandbox.model.serialise import as_object

        file = ReportFile(report)
    terminal = TerminalModes()
    with SignalQueue(*_PASSED_ON) as signals:
        forwarder = SignalForwarder(signals, _GRACE_SECONDS if grace is None else grace)
        try:
            make_manager = functools.partial(
                ProcessManager,
                1,
                limits=limits,
                hardening=hardening,
                backend=backend,
                _pass_through=True,
                _grace_seconds=grace or 0.0,
                _wait=forwarder.wait,
            )
            result = _run(command, limits, make_manager)
        except Stopped as stopped:
            terminal.restore()
            say(f"ended by {signal_name(-stopped.number)}; the program was killed")
            return stopped.exit_code
        terminal.restore_streams()
        if result.outcome not in {Outcome.SUCCEEDED, Outcome.FAILED}:  # else it left the terminal as it wanted it
            terminal.restore()
        _print_messages(result, limits, backend, forwarder.last)
        if file is not None:
            file.write(as_object(result))
    return _exit_code(result, forwarder.last)


def _run(command: Command, limits: Limits, make_manager: Callable[[], ProcessManager]) -> TaskResult:
    with degradation_as_message(limits), make_manager() as manager:
        manager.queue_task(command)
        (result,) = manager.as_completed()
    return result


def _exit_code(result: TaskResult, passed_on: int | None) -> int:
    if (code := _EXIT_CODES.get(result.outcome)) is not None:
        return code
    if passed_on is not None and result.outcome is Outcome.CANCELLED:  # it came before the program began
        return 128 + passed_on
    code = OWN_FAILURE if result.exit_code is None else result.exit_code
    return 128 - code if code < 0 else code


def _print_messages(result: TaskResult, limits: Limits, backend: BackendName, passed_on: int | None) -> None:
    """Print one line on how the program ended; none where it ended by itself."""
    if (backend, result.enforcement.backend) != ("auto", "rlimit"):  # a DegradedWarning has named them
        for line in not_held(limits, result.enforcement):
            say(line)
    for line in not_hardened(result.enforcement):
        say(line)
    if isinstance(result.exception, OSError) and result.outcome is Outcome.FAILED:
        say(_not_executed(result.exception))
    elif result.outcome in {Outcome.SUCCEEDED, Outcome.FAILED} or result.exit_code in _EXPECTED_ENDS:
        return
    elif passed_on is not None and result.exit_code in {-passed_on, None}:
        say(f"ended by {signal_name(-passed_on)}")
    else:
        say(result.detail)


def _not_executed(error: OSError) -> str:
    name = shown(str(error.filename))
    if not isinstance(error, FileNotFoundError):
        return f"{name}: cannot be executed: {error.strerror}; check that it is a program and may be executed"
    if "/" not in name:
        return f"{name}: not found in any folder of PATH"
    if os.path.exists(str(error.filename)):
        return f"{name}: the interpreter that its first line names, or its loader, is not found"
    return f"{name}: not found"
