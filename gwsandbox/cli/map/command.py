"""``gwsandbox map``: each input file is a task; what was done is remembered, so that a run can be resumed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from gwsandbox.cli.map.inputs import Input, collect, count, first_of
from gwsandbox.cli.map.outputs import NoOutput, Outputs, collisions
from gwsandbox.cli.map.progress import PREFIX, Progress, Tally, print_table
from gwsandbox.cli.map.progress_file import Ledger
from gwsandbox.cli.map.target import CommandTarget, FunctionTarget, Target, hide_from_guests
from gwsandbox.cli.messages import OWN_FAILURE, Failure, not_held, say, told_warnings
from gwsandbox.cli.options import BackendName
from gwsandbox.cli.signals import Stopped, StopSignals
from gwsandbox.manager import ProcessManager
from gwsandbox.model.errors import GuestFailed, SandboxError
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome, TaskResult
from gwsandbox.model.serialise import as_object
from gwsandbox.model.task import Command, CommandOutput, Task
from gwsandbox.model.text import shorten_detail, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line said."""

    arguments: Sequence[str]
    command: str | None
    limits: Limits
    backend: BackendName
    workers: int
    output_dir: str | None
    report: str | None
    retry_failed: bool
    fresh: bool
    table: bool


@dataclass(frozen=True, slots=True)
class Job:
    """One input on its way: where its output is staged and will be."""

    file: Input
    staged: str | None
    output: str | None


@dataclass(slots=True)
class Run:
    """One call of ``gwsandbox map``, from its checks to its summary."""

    request: Request
    target: Target
    inputs: list[Input]
    outputs: Outputs | None
    ledger: Ledger | None
    tally: Tally
    started: float = field(default_factory=time.monotonic)
    jobs: dict[int, Job] = field(default_factory=dict)
    table: list[tuple[str, TaskResult]] = field(default_factory=list)

    def work(self, signals: StopSignals) -> None:
        """Do what is to be done.

        Raises:
            Failure, SandboxError: It cannot be started, or cannot go on. Stopped: A signal came.
        """
        todo = [file for file in self.inputs if not self._is_done(file)]
        if self.ledger is not None:
            self.ledger.begin()
        request = self.request
        with (
            told_warnings(wanted=bool(request.limits.requested())),
            ProcessManager(request.workers, limits=request.limits, backend=request.backend) as manager,
            Progress(len(todo)) as progress,
            signals.until_clean_up(),
        ):
            manager.queue_tasks(self._tasks(todo))
            for result in manager.as_completed():
                self._finish(self.jobs.pop(id(result.task)), result, progress)

    def _is_done(self, file: Input) -> bool:
        """Whether an earlier run did it."""
        output = None if self.outputs is None else self.outputs.path(file.name)
        if self.request.fresh:
            return False
        succeeded = True
        if self.ledger is not None:
            row = self.ledger.rows.get(file.path)
            done = row is not None and row.is_of(file, output)
            succeeded = done and row is not None and row.succeeded
            if self.request.retry_failed:
                done = succeeded
        else:
            done = output is not None and _is_newer(output, file)
        self.tally.skipped += done
        self.tally.failed_before += done and not succeeded
        return done

    def _tasks(self, todo: Sequence[Input]) -> Iterator[Task | Command]:
        for file in todo:
            staged = output = None
            if self.outputs is not None:
                staged, output = self.outputs.stage(file.name), self.outputs.path(file.name)
            task = self.target.task(file.path, staged)
            # By identity: equal tasks are not the same.
            self.jobs[id(task)] = Job(file, staged, output)
            yield task

    def _finish(self, job: Job, result: TaskResult, progress: Progress) -> None:
        """Put the output into its place, and say and remember how it ended."""
        result = _with_last_words(result)
        if self.outputs is not None and job.staged is not None:
            result = _publish(self.outputs, job.staged, job.file.name, result)
        if self.ledger is not None:
            self.ledger.add(self._row(job, result))
        if not self.tally.outcomes:
            self._tell_not_held(result, progress)
        self.tally.outcomes[result.outcome] += 1
        if not result.success:
            progress.line(f"{result.outcome.name} {shown(job.file.path)}: {shorten_detail(result.detail)}")
        if self.request.table:
            self.table.append((job.file.path, replace(result, result=None, exception=None)))
        progress.advance()

    def _tell_not_held(self, result: TaskResult, progress: Progress) -> None:
        if (self.request.backend, result.enforcement.backend) != (
            "auto",
            "rlimit",
        ):  # of which a warning told
            for line in not_held(self.request.limits, result.enforcement):
                progress.line(PREFIX + line)

    def _row(self, job: Job, result: TaskResult) -> dict[str, object]:
        file = job.file
        return {
            "input": file.path,
            "output": job.output,
            "input_size": file.size,
            "input_mtime_ns": file.mtime_ns,
            **as_object(result),
            "task": self.target.words(file.path, job.output),
        }

    def exit_code(self) -> int:
        if self.tally.outcomes[Outcome.SANDBOX_ERROR]:
            return OWN_FAILURE
        succeeded = self.tally.outcomes[Outcome.SUCCEEDED] + self.tally.skipped - self.tally.failed_before
        return 0 if succeeded == self.tally.inputs else 1


def map_files(request: Request) -> int:
    """Work on all inputs; the exit code.

    Raises:
        Failure, SandboxError: It was not started, or could not go on.
    """
    tally = Tally()
    with StopSignals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        try:
            with _prepared(request, tally) as run:
                run.work(signals)
        except Stopped as stopped:
            say(_interrupted(request, tally), prefix=PREFIX)
            return stopped.exit_code
    if request.table:
        print_table(run.table)
    say(tally.summary(time.monotonic() - run.started), prefix=PREFIX)
    return run.exit_code()


@contextlib.contextmanager
def _prepared(request: Request, tally: Tally) -> Iterator[Run]:
    """Everything checked and opened, and nothing started."""
    arguments = list(request.arguments)
    has_output = request.output_dir is not None
    target: Target
    if request.command is not None:
        target = CommandTarget(request.command, has_output=has_output)
    else:
        target = FunctionTarget(arguments.pop(0), has_output=has_output)
    kept = [path for path in (request.output_dir, request.report) if path is not None]
    inputs = collect(arguments, kept)
    tally.inputs = len(inputs)
    if request.output_dir is not None:
        _check_outputs(inputs, request.output_dir, request.report)
    with contextlib.ExitStack() as opened:
        outputs = ledger = None
        if request.output_dir is not None:
            outputs = opened.enter_context(Outputs(request.output_dir))
        if request.report is not None:
            ledger = opened.enter_context(Ledger(request.report, fresh=request.fresh))
        hide_from_guests(*(file.fileno() for file in (outputs, ledger) if file is not None))
        yield Run(request, target, inputs, outputs, ledger, tally)


def _check_outputs(inputs: Sequence[Input], folder: str, report: str | None) -> None:
    names = ((file.path, file.name) for file in inputs)
    if problems := collisions(names, folder, [] if report is None else [report]):
        raise Failure(
            f"{count(problems, 'output')} would get in the way of another file, so nothing was started: "
            f"{first_of(problems)}; use another --output-dir, or several calls"
        )


def _is_newer(output: str, file: Input) -> bool:
    """Whether the output is there and not older than its input."""
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


def _with_last_words(result: TaskResult) -> TaskResult:
    """For a program that failed: what it said last, which is where programs say why."""
    output = result.result
    if result.outcome is not Outcome.FAILED or not isinstance(output, CommandOutput):
        return result
    lines = output.stderr.decode(errors="replace").strip().splitlines()
    return replace(result, detail=f"{result.detail}: {lines[-1].strip()}") if lines else result


def _interrupted(request: Request, tally: Tally) -> str:
    if not tally.inputs:
        return "interrupted before anything was started"
    text = f"interrupted with {tally.done} of {tally.inputs} inputs done; the rest was ended and cleaned up"
    if request.report is None and request.output_dir is None:
        return f"{text}; the same command starts from the first again (with --report FILE it goes on from here)"
    return f"{text}; the same command does the rest"
