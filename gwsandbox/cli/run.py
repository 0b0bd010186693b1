"""``gwsandbox run``: one program, under limits, and otherwise as without gwsandbox."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gwsandbox.cli.defaults import with_defaults
from gwsandbox.cli.messages import (
    OWN_FAILURE,
    degradation_as_message,
    detail,
    is_verbose,
    not_hardened,
    not_held,
    note,
    say,
)
from gwsandbox.cli.options import BackendName, ChosenLimits
from gwsandbox.cli.signals import SignalQueue, Stopped
from gwsandbox.cli.terminal import TerminalModes
from gwsandbox.manager import ProcessManager
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, words_of
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """The arguments and options of the command line.

    Args:
        command: The program and its arguments.
        limits: Its limits.
        hardening: What it may see and do.
        backend: How limits are held.
        grace: Seconds between SIGTERM and SIGKILL, or ``None`` for those that are usual.
        report: Path of the report, or ``None``.
        take_report: Gets what the report says.
    """

    command: Command
    limits: ChosenLimits
    hardening: Hardening
    backend: BackendName
    grace: float | None
    report: str | None
    take_report: Callable[[dict[str, Any]], None] | None = None


def run_program(request: RunRequest) -> int:
    """Run a program; the exit code.

    Raises:
        Failure, SandboxError: The program cannot be started, or the report cannot be written.
    """
    file = None
    if request.report is not None:
        from gwsandbox.cli.report_file import ReportFile

        file = ReportFile(request.report)
    limits = _limits(request)
    if is_verbose():
        for line in _steps(request, limits):
            detail(line)
    terminal = TerminalModes()
    with SignalQueue(*_PASSED_ON) as signals:
        forwarder = SignalForwarder(signals, _GRACE_SECONDS if request.grace is None else request.grace)
        try:
            result = _run(request, limits, forwarder)
        except Stopped as stopped:
            terminal.restore()
            note(f"ended by {signal_name(-stopped.number)}; the program was killed")
            return stopped.exit_code
        terminal.restore_streams()
        if result.outcome not in {Outcome.SUCCEEDED, Outcome.FAILED}:  # else it left the terminal as it wanted it
            terminal.restore()
        _print_messages(request, result, forwarder.last)
        if request.take_report is not None:
            request.take_report(_report(result, limits))
        if file is not None:
            file.write(_report(result, limits))
            detail(f"the report is {shown(str(request.report))}")
    return _exit_code(result, forwarder.last)


def explain_run(request: RunRequest) -> int:
    """Print what ``run_program`` would do, and start nothing; the exit code.

    Raises:
        CgroupError: The backend that is asked for is not there.
    """
    from gwsandbox.cli.plan import print_plan
    from gwsandbox.cli.repeating import as_line

    lines = [f"program: {as_line(request.command.argv)}", *_steps(request, _limits(request))]
    if request.report is not None:
        lines.append(f"report: {shown(request.report)}")
    print_plan(lines)
    return 0


def _limits(request: RunRequest) -> Limits:
    return with_defaults(request.limits, workers=1, is_captured=False, prefix="gwsandbox: ")


def _steps(request: RunRequest, limits: Limits) -> list[str]:
    from gwsandbox.cli.plan import hardening_line, limit_lines

    return [*limit_lines(limits, request.backend), hardening_line(request.hardening)]


def _run(request: RunRequest, limits: Limits, forwarder: SignalForwarder) -> TaskResult:
    with (
        degradation_as_message(request.limits.asked),
        ProcessManager(
            1,
            limits=limits,
            hardening=request.hardening,
            backend=request.backend,
            _pass_through=True,
            _grace_seconds=request.grace or 0.0,
            _wait=forwarder.wait,
        ) as manager,
    ):
        manager.queue_task(request.command)
        (result,) = manager.as_completed()
    return result


def _report(result: TaskResult, limits: Limits) -> dict[str, Any]:
    from gwsandbox.cli.repeating import repeat_program
    from gwsandbox.model.serialise import as_object, said_version

    said = dict(limits.requested())
    repeat = repeat_program(words_of(result.task), said)
    own = {"limits": said, "folder": os.getcwd(), "repeat": repeat, "report": said_version("run")}
    return {**as_object(result), **own}


def _exit_code(result: TaskResult, passed_on: int | None) -> int:
    if (code := _EXIT_CODES.get(result.outcome)) is not None:
        return code
    if passed_on is not None and result.outcome is Outcome.CANCELLED:  # it came before the program began
        return 128 + passed_on
    code = OWN_FAILURE if result.exit_code is None else result.exit_code
    return 128 - code if code < 0 else code


def _print_messages(request: RunRequest, result: TaskResult, passed_on: int | None) -> None:
    """Print one line on how the program ended; none where it ended by itself."""
    if (request.backend, result.enforcement.backend) != ("auto", "rlimit"):  # a DegradedWarning has named them
        for line in not_held(request.limits.asked, result.enforcement):
            note(line)
    for line in not_hardened(result.enforcement):
        note(line)
    for name, held in result.enforcement.limits.items():
        detail(f"{name} was held by {held}")
    if isinstance(result.exception, OSError) and result.outcome is Outcome.FAILED:
        say(_not_executed(result.exception))
    elif result.outcome in {Outcome.SUCCEEDED, Outcome.FAILED} or result.exit_code in _EXPECTED_ENDS:
        return
    elif passed_on is not None and result.exit_code in {-passed_on, None}:
        note(f"ended by {signal_name(-passed_on)}")
    else:
        (say if result.outcome is Outcome.SANDBOX_ERROR else note)(result.detail)


def _not_executed(error: OSError) -> str:
    name = shown(str(error.filename))
    if not isinstance(error, FileNotFoundError):
        return f"{name}: cannot be executed: {error.strerror}; check that it is a program and may be executed"
    if "/" not in name:
        return f"{name}: not found in any folder of PATH"
    if os.path.exists(str(error.filename)):
        return f"{name}: the interpreter that its first line names, or its loader, is not found"
    return f"{name}: not found"
