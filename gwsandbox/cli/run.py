"""``gwsandbox run``: one program, with its limits around it and nothing else changed."""

from __future__ import annotations

import os
import signal

from gwsandbox.cli.messages import OWN_FAILURE, not_held, say, told_warnings
from gwsandbox.cli.options import BackendName
from gwsandbox.cli.signals import Stopped, StopSignals, passed_by
from gwsandbox.manager import ProcessManager
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
# Ends that people bring about by Ctrl-C or by `| head`, and that a shell says nothing about.
_EXPECTED_ENDS = frozenset({-signal.SIGINT, -signal.SIGPIPE})


def run_program(command: Command, limits: Limits, backend: BackendName, report: str | None) -> int:
    """Run a program; the exit code that says how it ended.

    Raises:
        Failure, SandboxError: It was not started.
    """
    file = None
    if report is not None:
        from gwsandbox.cli.report import ReportFile
        from gwsandbox.model.serialise import as_object

        file = ReportFile(report)
    # As a shell does while a program is in the foreground: those of the terminal are the program's.
    with passed_by(signal.SIGINT, signal.SIGQUIT), StopSignals(signal.SIGTERM, signal.SIGHUP) as signals:
        try:
            result = _run(command, limits, backend, signals)
        except Stopped as stopped:
            say(f"ended by {signal_name(-stopped.number)}; the program was killed")
            return stopped.exit_code
        _tell(result, limits, backend)
        if file is not None:
            file.write(as_object(result))
    return _exit_code(result)


def _run(command: Command, limits: Limits, backend: BackendName, signals: StopSignals) -> TaskResult:
    with (
        told_warnings(wanted=bool(limits.requested())),
        ProcessManager(1, limits=limits, backend=backend, _pass_through=True) as manager,
        signals.until_clean_up(),
    ):
        manager.queue_task(command)
        (result,) = manager.as_completed()
    return result


def _exit_code(result: TaskResult) -> int:
    if (code := _EXIT_CODES.get(result.outcome)) is not None:
        return code
    code = OWN_FAILURE if result.exit_code is None else result.exit_code
    return 128 - code if code < 0 else code


def _tell(result: TaskResult, limits: Limits, backend: BackendName) -> None:
    """What did not go by itself: one line, or none where the program only chose its exit code."""
    if (backend, result.enforcement.backend) != ("auto", "rlimit"):  # of which a warning has told
        for line in not_held(limits, result.enforcement):
            say(line)
    if isinstance(result.exception, OSError) and result.outcome is Outcome.FAILED:
        say(_not_executed(result.exception))
    elif result.outcome not in {Outcome.SUCCEEDED, Outcome.FAILED} and result.exit_code not in _EXPECTED_ENDS:
        say(shown(result.detail))


def _not_executed(error: OSError) -> str:
    name = shown(str(error.filename))
    if not isinstance(error, FileNotFoundError):
        return f"{name}: cannot be executed: {error.strerror}; check that it is a program and may be executed"
    if "/" not in name:
        return f"{name}: not found in any folder of PATH"
    if os.path.exists(str(error.filename)):
        return f"{name}: the interpreter that its first line names, or its loader, is not found"
    return f"{name}: not found"
