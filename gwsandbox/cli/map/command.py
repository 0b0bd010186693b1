"""``gwsandbox map``: each input file is a task; a report or the outputs let a later run do only the rest."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from gwsandbox.cli.map.display import Display
from gwsandbox.cli.map.inputs import Input, collect, count, first_of
from gwsandbox.cli.map.outputs import NoOutput, Outputs, collisions
from gwsandbox.cli.map.progress import PREFIX, Counts, print_table
from gwsandbox.cli.map.report_rows import ReportRows
from gwsandbox.cli.map.target import CommandTarget, FunctionTarget, Target, hide_from_guests
from gwsandbox.cli.map.values import unpack
from gwsandbox.cli.messages import OWN_FAILURE, Failure, degradation_as_message, not_hardened, not_held, say
from gwsandbox.cli.options import BackendName
from gwsandbox.cli.signals import SignalQueue, Stopped, StopSignals
from gwsandbox.manager import ProcessManager
from gwsandbox.model.errors import GuestFailed, SandboxError
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.serialise import as_object
from gwsandbox.model.task import Command, CommandOutput, Task
from gwsandbox.model.text import last_line, shown, stderr_tail

_LONGEST_OUTPUT = 1 << 16  # bytes of a program's stdout or stderr in a row


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments and options of the command line."""

    arguments: Sequence[str]
    command: str | None
    limits: Limits
    hardening: Hardening
    backend: BackendName
    grace: float | None
    workers: int
    output_dir: str | None
    report: str | None
    retry_failed: bool
    fresh: bool
    table: bool
    show_output: bool


@dataclass(frozen=True, slots=True)
class PendingInput:
    """An input whose task is queued or runs.

    Args:
        file: The input.
        staged: Path that the task writes to; ``None`` without an output folder.
        output: Final path of the output; likewise.
    """

    file: Input
    staged: str | None
    output: str | None


@dataclass(slots=True)
class Run:
    """One call of ``gwsandbox map``, from its checks to its summary.

    Args:
        request: The command line.
        target: The work on each input.
        inputs: All inputs.
        outputs: The output folder, where there is one.
        report_rows: The report, where there is one.
        counts: How the inputs ended.
        started: Start of the run on the monotonic clock, in seconds.
        pending: Inputs whose tasks are queued or run, by the identity of the task.
        lacks_values: Whether the report lacks a value, and a warning has said so.
        table: Path and result of each finished input, for ``--table``.
    """

    request: Request
    target: Target
    inputs: list[Input]
    outputs: Outputs | None
    report_rows: ReportRows | None
    counts: Counts
    started: float = field(default_factory=time.monotonic)
    pending: dict[int, PendingInput] = field(default_factory=dict)
    lacks_values: bool = False
    table: list[tuple[str, TaskResult]] = field(default_factory=list)

    def work(self, signals: StopSignals, suspensions: SignalQueue) -> None:
        """Run the tasks of all inputs that no earlier run finished.

        Args:
            signals: End the run.
            suspensions: Stop it for a while.

        Raises:
            Failure, SandboxError: No task can be started, or none any more.
            Stopped: A signal ends the run.
        """
        todo = [file for file in self.inputs if not self._is_done(file)]
        if self.report_rows is not None:
            self.report_rows.begin()
        request = self.request
        with (
            degradation_as_message(request.limits),
            Display(len(todo), suspensions) as display,
            ProcessManager(
                request.workers,
                limits=request.limits,
                hardening=request.hardening,
                preload=self.target.preload,
                backend=request.backend,
                _grace_seconds=request.grace or 0.0,
                _wait=display.wait,
            ) as manager,
            signals.until_clean_up(),
        ):
            manager.queue_tasks(self._tasks(todo))
            for result in manager.as_completed():
                self._finish(self.pending.pop(id(result.task)), result, display)

    def _is_done(self, file: Input) -> bool:
        """Whether an earlier run finished this input.

        Raises:
            Failure: It did other work than this run.
        """
        output = None if self.outputs is None else self.outputs.path(file.name)
        if self.request.fresh:
            return False
        succeeded = True
        if self.report_rows is not None:
            row = self.report_rows.row_of(file, output, self.target.words(file.path, output))
            succeeded = row is not None and row.succeeded
            done = succeeded or (row is not None and not self.request.retry_failed)
        else:
            done = output is not None and _is_newer(output, file)
        self.counts.skipped += done
        self.counts.failed_before += done and not succeeded
        return done

    def _tasks(self, todo: Sequence[Input]) -> Iterator[Task | Command]:
        for file in todo:
            staged = output = None
            if self.outputs is not None:
                staged, output = self.outputs.stage(file.name), self.outputs.path(file.name)
            task = self.target.task(file.path, staged)
            # By identity: equal tasks are not the same.
            self.pending[id(task)] = PendingInput(file, staged, output)
            yield task

    def _finish(self, pending: PendingInput, result: TaskResult, display: Display) -> None:
        """Move the output to its final path, and print, count and report the result."""
        result = _with_reason(result)
        if self.outputs is not None and pending.staged is not None:
            result = _publish(self.outputs, pending.staged, pending.file.name, result)
        if self.report_rows is not None:
            self.report_rows.add(self._row(pending, result, display))
        if not self.counts.outcomes:
            self._warn_not_held(result, display)
        self.counts.outcomes[result.outcome] += 1
        if self.request.show_output and isinstance(result.result, CommandOutput):
            display.show(result.result)
        display.finished(pending.file.path, result)
        if self.request.table:
            self.table.append((pending.file.path, replace(result, result=None, exception=None)))

    def _warn_not_held(self, result: TaskResult, display: Display) -> None:
        # With "auto" and "rlimit" a DegradedWarning has named them.
        if (self.request.backend, result.enforcement.backend) != ("auto", "rlimit"):
            for line in not_held(self.request.limits, result.enforcement):
                display.line(PREFIX + line)
        for line in not_hardened(result.enforcement):
            display.line(PREFIX + line)

    def _row(self, pending: PendingInput, result: TaskResult, display: Display) -> dict[str, object]:
        file = pending.file
        return {
            "input": file.path,
            "output": pending.output,
            "input_size": file.size,
            "input_mtime_ns": file.mtime_ns,
            **as_object(result),
            "task": self.target.words(file.path, pending.output),
            **self._content(result, display),
        }

    def _content(self, result: TaskResult, display: Display) -> dict[str, object]:
        """What the function returned, or the program wrote; nothing where that is nothing."""
        if isinstance(result.result, CommandOutput):
            written = {"stdout": result.result.stdout, "stderr": result.result.stderr}
            return {name: _tail(data) for name, data in written.items() if data}
        value = unpack(result.result)
        if value.why_not and not self.lacks_values:
            self.lacks_values = True
            display.line(f"{PREFIX}warning: {value.why_not}, so the report has no result of it")
        return {} if value.json is None else {"result": value.json}

    def exit_code(self) -> int:
        if self.counts.outcomes[Outcome.SANDBOX_ERROR]:
            return OWN_FAILURE
        succeeded = self.counts.outcomes[Outcome.SUCCEEDED] + self.counts.skipped - self.counts.failed_before
        return 0 if succeeded == self.counts.inputs + self.counts.unreadable else 1


def map_files(request: Request) -> int:
    """Work on all inputs; the exit code.

    Raises:
        Failure, SandboxError: No task can be started, or none any more.
    """
    counts = Counts()
    with (
        StopSignals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
        SignalQueue(signal.SIGTSTP) as suspensions,
    ):
        try:
            with _prepared(request, counts) as run:
                run.work(signals, suspensions)
        except Stopped as stopped:
            say(_interrupted(request, counts), prefix=PREFIX)
            return stopped.exit_code
    if request.table:
        print_table(run.table)
    say(counts.summary(time.monotonic() - run.started), prefix=PREFIX)
    return run.exit_code()


@contextlib.contextmanager
def _prepared(request: Request, counts: Counts) -> Iterator[Run]:
    """Check and open everything before the first task starts."""
    arguments = list(request.arguments)
    has_output = request.output_dir is not None
    target: Target
    if request.command is not None:
        target = CommandTarget(request.command, has_output=has_output)
    else:
        is_inherited = not request.hardening.needs_clean_interpreter
        target = FunctionTarget(arguments.pop(0), has_output=has_output, is_inherited=is_inherited)
    kept = [path for path in (request.output_dir, request.report) if path is not None]
    inputs, problems = collect(arguments, kept)
    counts.inputs, counts.unreadable = len(inputs), len(problems)
    if problems:
        say(f"warning: {count(problems, 'input')} cannot be read and are left out: {first_of(problems)}", prefix=PREFIX)
    elif not inputs:
        say(f"warning: there is no file in {', '.join(map(shown, arguments))}", prefix=PREFIX)
    if request.output_dir is not None:
        _check_outputs(inputs, request.output_dir, request.report)
    with contextlib.ExitStack() as opened:
        outputs = report_rows = None
        if request.output_dir is not None:
            outputs = opened.enter_context(Outputs(request.output_dir))
        if request.report is not None:
            report_rows = opened.enter_context(ReportRows(request.report, fresh=request.fresh))
        hide_from_guests(*(file.fileno() for file in (outputs, report_rows) if file is not None))
        yield Run(request, target, inputs, outputs, report_rows, counts)


def _check_outputs(inputs: Sequence[Input], folder: str, report: str | None) -> None:
    names = ((file.path, file.name) for file in inputs)
    if problems := collisions(names, folder, [] if report is None else [report]):
        raise Failure(
            f"{count(problems, 'output')} would take the place of another file, so nothing was started: "
            f"{first_of(problems)}; use another --output-dir, or several calls"
        )


def _is_newer(output: str, file: Input) -> bool:
    """Whether the output exists and is not older than its input."""
    try:
        return os.stat(output).st_mtime_ns >= file.mtime_ns
    except OSError:
        return False


def _publish(outputs: Outputs, staged: str, name: str, result: TaskResult) -> TaskResult:
    try:
        if result.success:
            outputs.publish(staged, name)
    except NoOutput as error:
        detail = str(error)
        return replace(result, success=False, outcome=Outcome.FAILED, detail=detail, exception=GuestFailed(detail))
    except OSError as error:
        failure = SandboxError("move output into place", path=outputs.path(name), errno=error.errno or 0)
        return replace(result, success=False, outcome=Outcome.SANDBOX_ERROR, detail=str(failure), exception=failure)
    finally:
        outputs.discard(staged)
    return result


def _tail(data: bytes) -> str:
    """The end of what a program wrote, as text."""
    text = data[-_LONGEST_OUTPUT:].decode(errors="replace")
    return text if len(data) <= _LONGEST_OUTPUT else f"... {text}"


def _with_reason(result: TaskResult) -> TaskResult:
    """The result of a program that failed, with the last line of its stderr in ``detail``."""
    output = result.result
    if result.outcome is not Outcome.FAILED or not isinstance(output, CommandOutput):
        return result
    reason = last_line(stderr_tail(output.stderr))
    return replace(result, detail=f"{result.detail}: {reason}") if reason else result


def _interrupted(request: Request, counts: Counts) -> str:
    if not counts.inputs:
        return "interrupted before anything was started"
    text = f"interrupted with {counts.done} of {counts.inputs} inputs done; the rest was ended and cleaned up"
    if request.report is None and request.output_dir is None:
        return f"{text}; the same command starts from the first again (with --report FILE it goes on from here)"
    return f"{text}; the same command does the rest"
