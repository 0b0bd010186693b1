"""The options of ``gwsandbox map``, in groups, and the request that they make together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from gwsandbox.cli.option_groups import group_of
from gwsandbox.cli.options import Backend, ChosenLimits, Grace, check_workers
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import parse_size
from gwsandbox.model.result import Outcome

_FACTOR = re.compile(r"(\d{1,4}(?:\.\d{1,4})?)x?", re.ASCII)
_PAGE = ".html"
_RETRIED = ("OUT_OF_MEMORY", "TIMED_OUT", "CPU_TIME_EXCEEDED", "CRASHED", "KILLED")
_RETRIABLE = frozenset(Outcome) - {Outcome.SUCCEEDED, Outcome.CANCELLED}


def _outcomes(text: str) -> frozenset[Outcome]:
    names = [name.strip().upper().replace("-", "_") for name in text.split(",") if name.strip()]
    known = sorted(outcome.name for outcome in _RETRIABLE)
    for name in names:
        if name not in known:
            raise typer.BadParameter(f"{name!r} is no outcome after which to try again; these are: {', '.join(known)}")
    return frozenset(Outcome[name] for name in names)


def _total_memory(text: str) -> int:
    try:
        return parse_size(text, "--total-memory")
    except ValueError as error:
        raise typer.BadParameter(str(error).partition(": ")[2]) from error


def _factor(text: str) -> float:
    match = _FACTOR.fullmatch(text.strip())
    if match is None or float(match[1]) < 1:
        raise typer.BadParameter(f"{text!r} is no factor of 1 or more; write for example 2x or 1.5x")
    return float(match[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """Where inputs come from, and in which order."""

    null: Annotated[
        bool, typer.Option("--null", "-0", help="Read paths from stdin, each ended by a NUL: find … -print0.")
    ] = False
    learn: Annotated[
        int | None,
        typer.Option("--learn", metavar="N", min=1, help="Work on N inputs of chance alone, and propose limits."),
    ] = None
    shuffle: Annotated[bool, typer.Option("--shuffle", help="Work on the inputs in an order of chance.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What becomes of what tasks give."""

    output_dir: Annotated[
        str | None,
        typer.Option("--output-dir", metavar="DIR", help="Folder for the outputs of tasks that succeed."),
    ] = None
    suffix: Annotated[
        str | None, typer.Option("--suffix", metavar=".EXT", help="Of the outputs, in the place of the input's.")
    ] = None
    show_output: Annotated[
        bool,
        typer.Option("--show-output", help="Print what a program wrote, or a function returned, when it has ended."),
    ] = False
    keep_order: Annotated[
        bool, typer.Option("--keep-order", help="Print that in the order of the inputs; implies --show-output.")
    ] = False
    table: Annotated[
        bool, typer.Option("--table", help="At the end print outcome, time, peak memory and file of each.")
    ] = False

    def __post_init__(self) -> None:
        if self.suffix is None:
            return
        if self.output_dir is None:
            raise typer.BadParameter("needs --output-dir DIR", param_hint="--suffix")
        if not self.suffix.startswith(".") or "/" in self.suffix or len(self.suffix) < 2:
            raise typer.BadParameter(f"{self.suffix!r} is no suffix; write for example .pdf", param_hint="--suffix")

    @property
    def shows(self) -> bool:
        """Whether outputs and values are printed."""
        return self.show_output or self.keep_order


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportOptions:
    """What is written down, and what of it is done again."""

    report: Annotated[
        str | None,
        typer.Option(
            "--report",
            metavar="FILE.jsonl",
            help="Write a row per input; the next run skips inputs with a row. FILE.html: a page with pictures too.",
        ),
    ] = None
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Skip only inputs that succeeded.")] = False
    fresh: Annotated[bool, typer.Option("--fresh", help="Skip nothing, and empty the report first.")] = False

    @property
    def page(self) -> str | None:
        """Path of the page with pictures, where one is asked for."""
        return self.report if self.report is not None and self.report.endswith(_PAGE) else None

    @property
    def rows(self) -> str | None:
        """Path of the rows, which are beside the page where one is asked for."""
        return self.report if self.page is None else self.page.removesuffix(_PAGE) + ".jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureOptions:
    """What follows a failure."""

    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast/--keep-going", show_default=False, help="End the run at the first failure. Default: go on."
        ),
    ] = False
    retries: Annotated[
        int, typer.Option("--retries", metavar="N", min=0, max=100, show_default=False, help="Further attempts.")
    ] = 0
    retry_on: Annotated[
        Any,
        typer.Option(
            "--retry-on",
            metavar="OUTCOME,…",
            parser=_outcomes,
            show_default=False,
            help=f"After which outcomes. Default: {', '.join(_RETRIED)}.",
        ),
    ] = None
    retry_memory: Annotated[
        Any,
        typer.Option(
            "--retry-memory", metavar="FACTOR", parser=_factor, show_default=False, help="Of --memory each time: 2x."
        ),
    ] = None
    retry_timeout: Annotated[
        Any,
        typer.Option(
            "--retry-timeout", metavar="FACTOR", parser=_factor, show_default=False, help="Of --timeout each time: 2x."
        ),
    ] = None

    def __post_init__(self) -> None:
        given = {
            "--retry-on": self.retry_on,
            "--retry-memory": self.retry_memory,
            "--retry-timeout": self.retry_timeout,
        }
        for name, value in given.items():
            if value is not None and not self.retries:
                raise typer.BadParameter("needs --retries N", param_hint=name)
        if self.retry_on is None:
            object.__setattr__(self, "retry_on", frozenset(Outcome[name] for name in _RETRIED))


INPUTS = group_of(InputOptions, "Inputs")
OUTPUTS = group_of(OutputOptions, "Outputs")
REPORT = group_of(ReportOptions, "Report")
FAILURES = group_of(FailureOptions, "Failures")
Workers = Annotated[
    int,
    typer.Option(
        "--workers",
        metavar="N",
        min=0,
        callback=check_workers,
        show_default=False,
        help="Tasks at a time. Default: one per CPU.",
    ),
]
TotalMemory = Annotated[
    Any,
    typer.Option(
        "--total-memory",
        metavar="SIZE",
        parser=_total_memory,
        show_default=False,
        rich_help_panel="Limits",
        help="Memory of all tasks at a time: 4GiB. A task starts only when its own limit fits under it.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkOptions:
    """What is done to each input, by how many at a time, and what holds limits."""

    command: Annotated[
        str | None,
        typer.Option(
            "--command", metavar="TEMPLATE", help="Run this on each, without a shell: 'convert {input} {output}'."
        ),
    ] = None
    workers: Workers = 0
    total_memory: TotalMemory = None
    backend: Backend = "auto"
    grace: Grace = None

    def __post_init__(self) -> None:
        if self.total_memory is None:  # Typer would parse a 0
            object.__setattr__(self, "total_memory", 0)


WORK = group_of(WorkOptions, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The arguments and options of the command line; ``take_row`` gets the row of each input.

    Raises:
        typer.BadParameter: No input is named.
    """

    arguments: Sequence[str]
    work: WorkOptions
    limits: ChosenLimits
    hardening: Hardening
    inputs: InputOptions
    outputs: OutputOptions
    report: ReportOptions
    failures: FailureOptions
    take_row: Callable[[dict[str, Any]], None] | None = None

    def __post_init__(self) -> None:
        if self.inputs.null and "-" not in self.arguments:
            object.__setattr__(self, "arguments", (*self.arguments, "-"))
        if len(self.arguments) < (1 if self.work.command else 2):
            raise typer.BadParameter("name at least one file or folder", param_hint="INPUT")
