"""``gwsandbox report``, ``why`` and ``learn``, as typed: what reports say."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from gwsandbox.cli.hardening_options import HARDENING
from gwsandbox.cli.help import HelpCommand
from gwsandbox.cli.learn_options import LEARN, LearnOptions
from gwsandbox.cli.messages import failures_as_messages
from gwsandbox.cli.option_groups import with_option_groups
from gwsandbox.cli.options import LIMITS, Backend, ChosenLimits
from gwsandbox.model.hardening import Hardening

_PANEL = "Reports"
_REPORT_EXAMPLES = """
gwsandbox report report.jsonl -o report.html
gwsandbox report report.jsonl --format md
gwsandbox report report.jsonl -o report.csv
gwsandbox report --schema
"""
_WHY_EXAMPLES = """
gwsandbox why report.jsonl
gwsandbox why report.jsonl documents/letter.docx
"""
_LEARN_EXAMPLES = """
gwsandbox learn -- ./convert in.doc out.pdf
gwsandbox learn --over documents --sample 50 -- ps2pdf {input} {output}
gwsandbox learn --report report.jsonl
"""


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.command("report", cls=HelpCommand, epilog=_REPORT_EXAMPLES, rich_help_panel=_PANEL)(report)
    app.command("why", cls=HelpCommand, epilog=_WHY_EXAMPLES, rich_help_panel=_PANEL)(why)
    app.command(
        "learn",
        cls=HelpCommand,
        epilog=_LEARN_EXAMPLES,
        rich_help_panel=_PANEL,
        context_settings={"allow_interspersed_args": False},
    )(with_option_groups(learn))


def report(
    file: Annotated[str | None, typer.Argument(metavar="FILE.jsonl", show_default=False)] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write FILE.html, FILE.md or FILE.csv. Default: stdout."),
    ] = None,
    form: Annotated[
        Literal["html", "md", "csv"] | None,
        typer.Option("--format", show_default=False, help="Default: as the suffix of --output says, else md."),
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of reports instead.")] = False,
) -> None:
    """Make a page with pictures, or tables, of a report.

    FILE.jsonl is what --report of run or map, or the service, has written. The page is one file, and opens
    without a network. It needs the extra gwsandbox[report].

    Exit code: 0 done, 125 gwsandbox itself failed.
    """
    from gwsandbox.cli.report import make_report, print_schema

    if schema == (file is not None):
        raise typer.BadParameter("give FILE.jsonl or --schema")
    with failures_as_messages("gwsandbox report: "):
        raise typer.Exit(print_schema() if file is None else make_report(file, output, form))


def why(
    report: Annotated[str, typer.Argument(metavar="REPORT", show_default=False)],
    file: Annotated[str | None, typer.Argument(metavar="[FILE]", show_default=False)] = None,
) -> None:
    """Say why tasks failed, from a report alone.

    For FILE, and where one task alone failed: the limit, what held it, the peak, the last words of stderr, the
    traceback, and the line that repeats it alone. Else the failures by their causes.

    Exit code: 0 done, 1 the report has no FILE, 125 gwsandbox itself failed.
    """
    from gwsandbox.cli.why import explain_report

    with failures_as_messages("gwsandbox why: "):
        raise typer.Exit(explain_report(report, file))


def learn(
    options: Annotated[LearnOptions, LEARN],
    limits: Annotated[ChosenLimits, LIMITS],
    hardening: Annotated[Hardening, HARDENING],
    command: Annotated[list[str] | None, typer.Argument(metavar="[--] COMMAND [ARG]...", show_default=False)] = None,
    backend: Backend = "auto",
) -> None:
    """Propose limits from what tasks were measured to use.

    They come as options, as a profile, and as lines of a unit. Each has headroom, and says of which task and
    by which measurement it is.

    Exit code: 0 done, 125 nothing succeeded, or gwsandbox itself failed.
    """
    from gwsandbox.cli.learn import LearnRequest
    from gwsandbox.cli.learn import learn as run_sample

    if (options.report is None) == (not command):
        raise typer.BadParameter("give COMMAND or --report FILE", param_hint="COMMAND")
    request = LearnRequest(command=command or (), options=options, limits=limits, hardening=hardening, backend=backend)
    with failures_as_messages("gwsandbox learn: "):
        raise typer.Exit(run_sample(request))
