"""``gwsandbox map``, as typed."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from gwsandbox.cli.completion import complete_map
from gwsandbox.cli.hardening_options import HARDENING
from gwsandbox.cli.help import HelpCommand
from gwsandbox.cli.map.options import (
    FAILURES,
    INPUTS,
    OUTPUTS,
    REPORT,
    WORK,
    FailureOptions,
    InputOptions,
    OutputOptions,
    ReportOptions,
    Request,
    WorkOptions,
)
from gwsandbox.cli.messages import failures_as_messages
from gwsandbox.cli.option_groups import with_option_groups
from gwsandbox.cli.options import LIMITS, TALK, ChosenLimits, Talk
from gwsandbox.model.hardening import Hardening

_EXAMPLES = """
gwsandbox map --timeout 30s --output-dir out --suffix .pdf --command 'ps2pdf {input} {output}' documents
gwsandbox map --memory 1GiB --report report.jsonl module:function 'scans/**/*.png'
gwsandbox map --retries 2 --retry-memory 2x --retry-timeout 2x --report report.jsonl module:function documents
find . -name '*.log' -print0 | gwsandbox map -0 --keep-order --command 'wc -l {}'
"""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("map", cls=HelpCommand, epilog=_EXAMPLES, rich_help_panel="Work", no_args_is_help=True)(
        with_option_groups(map_)
    )


def map_(  # noqa: PLR0917 - Typer calls it, by keyword
    limits: Annotated[ChosenLimits, LIMITS],
    work: Annotated[WorkOptions, WORK],
    inputs: Annotated[InputOptions, INPUTS],
    outputs: Annotated[OutputOptions, OUTPUTS],
    report: Annotated[ReportOptions, REPORT],
    failures: Annotated[FailureOptions, FAILURES],
    hardening: Annotated[Hardening, HARDENING],
    talk: Annotated[Talk, TALK],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODULE:FUNCTION] INPUT...", show_default=False, autocompletion=complete_map),
    ] = None,
) -> None:
    """Run a function or program on each file.

    INPUT is a file, a folder, which is walked, a pattern like 'in/**/*.pdf', or - for paths from stdin.

    FUNCTION is called with the path of the input and, with --output-dir, the path to write its output to.
    MODULE is searched in the current folder first. The same command again works only on the rest.

    TEMPLATE has {input} or {} for the path, {.} for it without its suffix, {/} for the name alone, {/.} for that
    without its suffix, {//} for the folder, and {output}.

    Exit code: 0 all succeeded, 1 some did not, 125 gwsandbox itself failed, 130 interrupted.
    """
    request = Request(
        arguments=arguments or (),
        work=work,
        limits=limits,
        hardening=replace(hardening, results="plain"),
        inputs=inputs,
        outputs=outputs,
        report=report,
        failures=failures,
    )
    with failures_as_messages("gwsandbox map: "):
        raise typer.Exit(_perform(request, talk))


def _perform(request: Request, talk: Talk) -> int:
    from gwsandbox.cli.map.command import explain_map, map_files

    if talk.explain:
        return explain_map(request)
    if request.inputs.learn is None:
        return map_files(request)
    from gwsandbox.cli.learn import map_and_learn

    return map_and_learn(request)
