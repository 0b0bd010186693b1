"""``gwsandbox learn``: limits proposed from what was measured."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from gwsandbox.cli.learn_options import LearnOptions
from gwsandbox.cli.map.options import FailureOptions, InputOptions, OutputOptions, ReportOptions, Request, WorkOptions
from gwsandbox.cli.messages import Failure
from gwsandbox.cli.options import BackendName, ChosenLimits
from gwsandbox.cli.plan import say_limit
from gwsandbox.cli.streams import print_lines
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.task import Command
from gwsandbox.model.text import OUTPUT, shown
from gwsandbox.report.learn import Proposal, as_flags, as_profile, as_unit, propose
from gwsandbox.report.rows import ReportRow, make_row, read_rows


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnRequest:
    """The arguments and options of the command line.

    Args:
        command: The program and its arguments; empty where a report is read.
        options: What the sample is, or the report.
        limits: Under which the sample runs.
        hardening: Likewise.
        backend: Likewise.
    """

    command: Sequence[str]
    options: LearnOptions
    limits: ChosenLimits
    hardening: Hardening
    backend: BackendName


def learn(request: LearnRequest) -> int:
    """Measure, or read what was measured, and print the limits that fit; the exit code.

    Raises:
        Failure, SandboxError: Nothing was measured, or nothing can be run or read.
    """
    if request.options.report is not None:
        rows = read_rows(request.options.report)
    elif request.options.over:
        rows = _over(request)
    else:
        rows = [_once(request)]
    print_proposals(rows, request.options.name)
    return 0


def map_and_learn(request: Request) -> int:
    """``map_files`` over a sample, and print the limits that fit what was measured; the exit code.

    Raises:
        Failure, SandboxError: As of ``map_files``; or none of the tasks succeeded.
    """
    from gwsandbox.cli.map.command import map_files

    rows: list[ReportRow] = []
    code = map_files(replace(request, take_row=lambda row: rows.append(make_row(row))))
    print_proposals(rows, "learned")
    return code


def print_proposals(rows: Sequence[ReportRow], name: str) -> None:
    """Print the limits that fit these rows.

    Raises:
        Failure: None of them succeeded.
    """
    proposals = propose(rows)
    if not proposals:
        detail = next((f": the first says {row.detail}" for row in rows if row.detail), "")
        raise Failure(f"none of {len(rows)} tasks succeeded, so there is nothing to learn from{detail}")
    print_lines("\n".join(map(shown, _lines(proposals, rows, name))))


def _lines(proposals: Sequence[Proposal], rows: Sequence[ReportRow], name: str) -> Iterator[str]:
    count = sum(row.succeeded for row in rows)
    yield f"# measured over {count} {'task that' if count == 1 else 'tasks that'} succeeded, of {len(rows)}"
    for each in proposals:
        value, largest = say_limit(each.limit, each.value), say_limit(each.limit, round(each.largest, 3))
        source = f" ({each.source})" if each.source else ""
        yield f"# {each.limit}: {value} is {each.factor:g} times {largest}{source}, of {_name(each.row)}"
    yield "\n# as options"
    yield as_flags(proposals)
    yield "\n# as a profile, in ~/.config/gwsandbox/profiles.toml"
    yield from as_profile(proposals, name)
    yield "\n# as lines of a unit"
    yield from as_unit(proposals)


def _name(row: ReportRow) -> str:
    return row.name.replace("\n", "\\n")


def _once(request: LearnRequest) -> ReportRow:
    from gwsandbox.cli.run import RunRequest, run_program

    rows: list[ReportRow] = []
    run_program(
        RunRequest(
            command=Command(request.command),
            limits=request.limits,
            hardening=request.hardening,
            backend=request.backend,
            grace=None,
            report=None,
            take_report=lambda report: rows.append(make_row(report)),
        )
    )
    if not rows:
        raise Failure("the program was ended before it had a result, so there is nothing to learn from")
    return rows[0]


def _over(request: LearnRequest) -> list[ReportRow]:
    from gwsandbox.cli.map.command import map_files

    rows: list[ReportRow] = []
    with tempfile.TemporaryDirectory(prefix="gwsandbox-learn-") as folder:
        has_output = any(OUTPUT in word for word in request.command)
        map_files(
            Request(
                arguments=request.options.over or (),
                work=WorkOptions(
                    command=shlex.join(request.command), backend=request.backend, workers=request.options.workers
                ),
                limits=request.limits,
                hardening=request.hardening,
                inputs=InputOptions(learn=request.options.sample),
                outputs=OutputOptions(output_dir=folder if has_output else None),
                report=ReportOptions(),
                failures=FailureOptions(),
                take_row=lambda row: rows.append(make_row(row)),
            )
        )
    return rows
