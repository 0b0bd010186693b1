"""``gwsandbox map``: each input file is a task; a report or the outputs let a later run do only the rest."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence

from gwsandbox.cli.defaults import with_defaults
from gwsandbox.cli.map.inputs import Input, collect, count, first_of, with_suffix
from gwsandbox.cli.map.options import Request
from gwsandbox.cli.map.outputs import Outputs, collisions
from gwsandbox.cli.map.progress import PREFIX, Counts, print_table
from gwsandbox.cli.map.report_rows import ReportRows
from gwsandbox.cli.map.target import CommandTarget, FunctionTarget, Target, hide_from_guests
from gwsandbox.cli.map.work import Run
from gwsandbox.cli.messages import Failure, detail, is_quiet, is_verbose, note, say
from gwsandbox.cli.plan import limit_lines, print_plan
from gwsandbox.cli.signals import SignalQueue, Stopped, StopSignals
from gwsandbox.model.limits import Limits
from gwsandbox.model.text import format_size, shown
from gwsandbox.report.make import write_whole
from gwsandbox.report.page import check_plotting, make_page
from gwsandbox.report.rows import read_rows, title_of

_EXPLAINED = 5  # inputs that --explain shows


def map_files(request: Request) -> int:
    """Work on all inputs; the exit code.

    Raises:
        Failure, SandboxError: No task can be started, or none any more.
    """
    counts = Counts()
    started = time.monotonic()
    with (
        StopSignals(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals,
        SignalQueue(signal.SIGTSTP) as suspensions,
    ):
        try:
            with _prepared(request, counts) as run:
                _say_steps(run)
                run.work(signals, suspensions)
        except Stopped as stopped:
            note(_interrupted(request, counts), prefix=PREFIX)
            return stopped.exit_code
    _conclude(run, time.monotonic() - started)
    return run.exit_code()


def explain_map(request: Request) -> int:
    """Print what ``map_files`` would do, and start nothing; the exit code.

    Raises:
        Failure: It would start nothing, as something is wrong.
    """
    target, arguments = _target(request)
    inputs = _inputs(request, arguments, Counts())
    limits = _limits(request)
    lines = [f"{count(inputs, 'input')}, {_workers(request)} at a time", *limit_lines(limits, request.work.backend)]
    for file in inputs[:_EXPLAINED]:
        output = None if request.outputs.output_dir is None else os.path.join(request.outputs.output_dir, file.name)
        lines.append(f"  {' '.join(map(shown, target.words(file.path, output)))}")
    if len(inputs) > _EXPLAINED:
        lines.append(f"  and {len(inputs) - _EXPLAINED} more")
    if request.report.rows is not None:
        lines.append(f"report: {shown(request.report.rows)}; inputs that have a row in it are skipped")
    print_plan(lines)
    return 0


def _conclude(run: Run, seconds: float) -> None:
    if run.request.outputs.table:
        print_table(run.closing.rows)
    if not is_quiet() and (sys.stderr.isatty() or is_verbose()):
        for line in run.closing.lines():
            say(line, prefix="", keeps_columns=True)
    if run.is_stopped:
        rest = count(range(run.counts.inputs - run.counts.done), "input")
        note(f"ended at the first failure, with {rest} not done (--fail-fast)", prefix=PREFIX)
    if run.request.report.page is not None and run.request.report.rows is not None:
        rows = read_rows(run.request.report.rows)
        write_whole(run.request.report.page, make_page(rows, title_of(run.request.report.rows, rows)))
        note(f"{shown(run.request.report.page)} shows {len(rows)} tasks", prefix=PREFIX)
    note(run.counts.summary(seconds), prefix=PREFIX)


def _say_steps(run: Run) -> None:
    if is_verbose():
        for line in limit_lines(run.limits, run.request.work.backend):
            detail(line, prefix=PREFIX)
        detail(f"{count(run.todo, 'input')} to do, {_workers(run.request)} at a time", prefix=PREFIX)
        if run.outputs is not None:
            detail(f"outputs go to {shown(run.outputs.path(''))}", prefix=PREFIX)
        if run.request.report.rows is not None:
            detail(f"the report is {shown(run.request.report.rows)}", prefix=PREFIX)


def _workers(request: Request) -> int:
    return request.work.workers or len(os.sched_getaffinity(0))


def _limits(request: Request) -> Limits:
    is_captured = request.work.command is not None
    total = request.work.total_memory
    limits = with_defaults(
        request.limits, workers=_workers(request), is_captured=is_captured, prefix=PREFIX, total_memory=total
    )
    if total and (memory := limits.requested().get("memory", 0)) > total:
        fits = f"does not fit under --total-memory {format_size(total)}, so no task could start"
        raise Failure(f"a memory limit of {format_size(memory)} {fits}; lower --memory, or raise --total-memory")
    return limits


def _target(request: Request) -> tuple[Target, list[str]]:
    """The work, and the arguments that name inputs."""
    has_output = request.outputs.output_dir is not None
    if request.work.command is not None:
        return CommandTarget(request.work.command, has_output=has_output), list(request.arguments)
    is_inherited = not request.hardening.needs_clean_interpreter
    name, *arguments = request.arguments
    return FunctionTarget(name, has_output=has_output, is_inherited=is_inherited), arguments


def _inputs(request: Request, arguments: Sequence[str], counts: Counts) -> list[Input]:
    """All inputs, in the order in which they are worked on; says what cannot be read."""
    folder, report = request.outputs.output_dir, request.report.rows
    kept = [path for path in (folder, report, request.report.page) if path is not None]
    inputs, problems = collect(arguments, kept, null=request.inputs.null)
    counts.inputs, counts.unreadable = len(inputs), len(problems)
    if problems:
        left = f"{count(problems, 'input')} cannot be read and are left out: {first_of(problems)}"
        note(f"warning: {left}", prefix=PREFIX)
    elif not inputs:
        note(f"warning: there is no file in {', '.join(map(shown, arguments))}", prefix=PREFIX)
    if request.outputs.suffix is not None:
        inputs = with_suffix(inputs, request.outputs.suffix)
    if folder is not None:
        _check_outputs(inputs, folder, report)
    if request.inputs.shuffle:
        random.shuffle(inputs)
    if request.inputs.learn is not None and len(inputs) > request.inputs.learn:
        inputs = random.sample(inputs, request.inputs.learn)
        counts.inputs = len(inputs)
    return inputs


@contextlib.contextmanager
def _prepared(request: Request, counts: Counts) -> Iterator[Run]:
    """Check and open everything before the first task starts."""
    if request.report.page is not None:
        check_plotting()
    target, arguments = _target(request)
    inputs = _inputs(request, arguments, counts)
    with contextlib.ExitStack() as opened:
        outputs = report_rows = None
        if request.outputs.output_dir is not None:
            outputs = opened.enter_context(Outputs(request.outputs.output_dir))
        if request.report.rows is not None:
            report_rows = opened.enter_context(ReportRows(request.report.rows, fresh=request.report.fresh))
        hide_from_guests(*(file.fileno() for file in (outputs, report_rows) if file is not None))
        run = Run(request, Limits(), target, (), outputs, report_rows, counts)
        run.todo = [file for file in inputs if not _is_done(run, file)]
        run.limits = _limits(request)
        yield run


def _is_done(run: Run, file: Input) -> bool:
    """Whether an earlier run finished this input.

    Raises:
        Failure: It did other work than this run.
    """
    options = run.request.report
    output = None if run.outputs is None else run.outputs.path(file.name)
    if options.fresh:
        return False
    succeeded = True
    if run.report_rows is not None:
        row = run.report_rows.row_of(file, output, run.target.words(file.path, output))
        succeeded = row is not None and row.succeeded
        done = succeeded or (row is not None and not options.retry_failed)
    else:
        done = output is not None and _is_newer(output, file)
    run.counts.skipped += done
    run.counts.failed_before += done and not succeeded
    return done


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


def _interrupted(request: Request, counts: Counts) -> str:
    if not counts.inputs:
        return "interrupted before anything was started"
    text = f"interrupted with {counts.done} of {counts.inputs} inputs done; the rest was ended and cleaned up"
    if request.report.report is None and request.outputs.output_dir is None:
        return f"{text}; the same command starts from the first again (with --report FILE it goes on from here)"
    return f"{text}; the same command does the rest"
