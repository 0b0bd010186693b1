"""The work of one call of ``gwsandbox map``: tasks made of inputs, and results counted, reported and published."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from gwsandbox.cli.map.closing import Closing
from gwsandbox.cli.map.display import Display
from gwsandbox.cli.map.inputs import Input
from gwsandbox.cli.map.options import Request
from gwsandbox.cli.map.outputs import NoOutput, Outputs
from gwsandbox.cli.map.progress import PREFIX, Counts, is_live
from gwsandbox.cli.map.report_rows import ReportRows
from gwsandbox.cli.map.retries import as_earlier, limits_of_attempt, may_retry
from gwsandbox.cli.map.row import Content, PendingInput, content_of, make_row
from gwsandbox.cli.map.running import RunningRow
from gwsandbox.cli.map.target import Target
from gwsandbox.cli.messages import OWN_FAILURE, degradation_as_message, not_hardened, not_held
from gwsandbox.cli.signals import SignalQueue, StopSignals
from gwsandbox.client.running import RunningTask
from gwsandbox.manager import ProcessManager
from gwsandbox.model.errors import GuestFailed, SandboxError
from gwsandbox.model.limits import LARGEST_SIZE, Limits
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.task import Command, CommandOutput, Task
from gwsandbox.model.text import last_line, stderr_tail


@dataclass(slots=True)
class Run:
    """One call of ``gwsandbox map``, from its first task to its last result.

    Args:
        request: The command line.
        limits: Of each task at its first attempt.
        target: The work on each input.
        todo: The inputs that no earlier run finished.
        outputs: The output folder, where there is one.
        report_rows: The report, where there is one.
        counts: How the inputs ended.
        pending: Inputs whose tasks are queued or run, by the identity of the task.
        lacks_values: Whether the report lacks a value, and a warning has said so.
        is_stopped: Whether a failure has ended the run (--fail-fast).
        closing: What is worth a line at the end.
    """

    request: Request
    limits: Limits
    target: Target
    todo: Sequence[Input]
    outputs: Outputs | None
    report_rows: ReportRows | None
    counts: Counts
    pending: dict[int, PendingInput] = field(default_factory=dict)
    lacks_values: bool = False
    is_stopped: bool = False
    closing: Closing = field(default_factory=Closing)

    def work(self, signals: StopSignals, suspensions: SignalQueue) -> None:
        """Run the tasks.

        Args:
            signals: End the run.
            suspensions: Stop it for a while.

        Raises:
            Failure, SandboxError: No task can be started, or none any more.
            Stopped: A signal ends the run.
        """
        if self.report_rows is not None:
            self.report_rows.begin()
        request = self.request
        order = {id(file): number for number, file in enumerate(self.todo)} if request.outputs.keep_order else None
        with (
            degradation_as_message(request.limits.asked, has_total=request.work.total_memory > 0),
            Display(len(self.todo), suspensions, self._row_of) as display,
            self._manager(display) as manager,
            signals.until_clean_up(),
        ):
            manager.queue_tasks(self._tasks())
            for result in manager.as_completed():
                pending = self.pending.pop(id(result.task))
                place = None if order is None else order[id(pending.file)]
                self._finish(pending, result, display, manager, place)

    def _manager(self, display: Display) -> ProcessManager:
        request = self.request
        return ProcessManager(
            request.work.workers,
            limits=self.limits,
            hardening=request.hardening,
            preload=self.target.preload,
            backend=request.work.backend,
            total_memory=request.work.total_memory,
            _grace_seconds=request.work.grace or 0.0,
            _wait=display.wait,
            _says_begins=is_live(),
        )

    def _row_of(self, running: RunningTask) -> RunningRow | None:
        pending = self.pending.get(id(running.task))
        return None if pending is None else RunningRow(pending.file.path, running, pending.limits)

    # --- tasks ----------------------------------------------------------------------------------------------

    def _tasks(self) -> Iterator[Task | Command]:
        for file in self.todo:
            output = None if self.outputs is None else self.outputs.path(file.name)
            words = self.target.words(file.path, output)
            yield self._task(PendingInput(file, None, output, words, self.limits))

    def _task(self, pending: PendingInput) -> Task | Command:
        """The next attempt at an input."""
        own = limits_of_attempt(
            pending.attempt, self.limits, self.request.failures, self.request.work.total_memory or LARGEST_SIZE
        )
        pending.limits = self.limits.overridden_by(own)
        if self.outputs is not None:
            pending.staged = self.outputs.stage(pending.file.name)
        task = self.target.task(pending.file.path, pending.staged, own)
        self.pending[id(task)] = pending  # by identity: equal tasks are not the same
        return task

    # --- results --------------------------------------------------------------------------------------------

    def _finish(
        self, pending: PendingInput, result: TaskResult, display: Display, manager: ProcessManager, place: int | None
    ) -> None:
        """Try again; or move the output to its final path, and print, count and report the result."""
        result = _with_reason(result)
        if self.outputs is not None and pending.staged is not None:
            result = _publish(self.outputs, pending.staged, pending.file.name, result)
        if may_retry(result, pending.attempt, self.request.failures) and not self.is_stopped:
            pending.earlier.append(as_earlier(result, pending.limits))
            pending.attempt += 1
            self.counts.retries += 1
            manager.queue_task(self._task(pending))
            return
        self._take(pending, result, display, place)
        if self.request.failures.fail_fast and not result.success and not self.is_stopped:
            self.is_stopped = True
            manager.cancel()

    def _take(self, pending: PendingInput, result: TaskResult, display: Display, place: int | None) -> None:
        content = content_of(result)
        if self.is_stopped and result.outcome is Outcome.CANCELLED:
            self.counts.stopped += 1
            return
        if self.report_rows is not None or self.request.take_row is not None:
            row = make_row(pending, result, content, self.request.outputs.output_dir)
            if self.report_rows is not None:
                self._warn_no_value(content, display)
                self.report_rows.add(row)
            if self.request.take_row is not None:
                self.request.take_row(row)
        if not self.counts.outcomes:
            self._warn_not_held(result, display)
        self.counts.outcomes[result.outcome] += 1
        if self.request.outputs.shows:
            display.show(place, _shown(result, content))
        display.finished(pending.file.path, result)
        self.closing.add(pending, result, self.request.outputs.output_dir, keeps_all=self.request.outputs.table)

    def _warn_no_value(self, content: Content, display: Display) -> None:
        if content.why_not and not self.lacks_values:
            self.lacks_values = True
            display.line(f"{PREFIX}warning: {content.why_not}, so the report has no result of it")

    def _warn_not_held(self, result: TaskResult, display: Display) -> None:
        # With "auto" and "rlimit" a DegradedWarning has named them.
        if (self.request.work.backend, result.enforcement.backend) != ("auto", "rlimit"):
            for line in not_held(self.request.limits.asked, result.enforcement):
                display.line(PREFIX + line)
        for line in not_hardened(result.enforcement):
            display.line(PREFIX + line)

    def exit_code(self) -> int:
        """That of the command."""
        if self.counts.outcomes[Outcome.SANDBOX_ERROR]:
            return OWN_FAILURE
        succeeded = self.counts.outcomes[Outcome.SUCCEEDED] + self.counts.skipped - self.counts.failed_before
        return 0 if succeeded == self.counts.inputs + self.counts.unreadable else 1


def _shown(result: TaskResult, content: Content) -> CommandOutput:
    """What a task gave, to be printed: the output of a program, the value of a function as a line of JSON."""
    if isinstance(result.result, CommandOutput):
        return result.result
    if "result" not in content.fields:
        return CommandOutput(b"", b"")
    return CommandOutput(json.dumps(content.fields["result"]).encode() + b"\n", b"")


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


def _with_reason(result: TaskResult) -> TaskResult:
    """The result of a program that failed, with the last line of its stderr in ``detail``."""
    output = result.result
    if result.outcome is not Outcome.FAILED or not isinstance(output, CommandOutput):
        return result
    reason = last_line(stderr_tail(output.stderr))
    return replace(result, detail=f"{result.detail}: {reason}") if reason else result
