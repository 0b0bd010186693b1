"""``gwsandbox run``, as typed."""

from __future__ import annotations

from typing import Annotated

import typer

from gwsandbox.cli.hardening_options import HARDENING
from gwsandbox.cli.help import HelpCommand
from gwsandbox.cli.messages import failures_as_messages
from gwsandbox.cli.option_groups import with_option_groups
from gwsandbox.cli.options import LIMITS, TALK, Backend, ChosenLimits, Grace, Talk
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.task import Command

_EXAMPLES = """
gwsandbox run --memory 512MiB --timeout 30s -- soffice --headless --convert-to pdf letter.docx
gwsandbox run --cpu-time 10s --report report.json -- ./untrusted
gwsandbox run --network none --ro in.doc --rw out -- convert in.doc out/in.pdf
gwsandbox run --timeout 1h --grace 10s -- make test
"""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "run",
        cls=HelpCommand,
        epilog=_EXAMPLES,
        rich_help_panel="Work",
        # All after the name of the program belongs to the program, also a word that looks like an option of ours.
        context_settings={"allow_interspersed_args": False},
    )(with_option_groups(run))


def run(  # noqa: PLR0917 - Typer calls it, by keyword
    command: Annotated[list[str], typer.Argument(metavar="[--] COMMAND [ARG]...", show_default=False)],
    limits: Annotated[ChosenLimits, LIMITS],
    hardening: Annotated[Hardening, HARDENING],
    talk: Annotated[Talk, TALK],
    backend: Backend = "auto",
    grace: Grace = None,
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write outcome and usage to FILE, as JSON.")
    ] = None,
) -> None:
    """Run one program. It keeps its terminal, its standard streams and its Ctrl-C.

    SIGINT, SIGQUIT, SIGTERM and SIGHUP to gwsandbox alone go to the program. After SIGTERM and SIGHUP it is
    killed unless it ends within 5 s, or within --grace.

    Exit code: the program's own; 121 output limit, 122 CPU time, 123 out of memory, 124 timed out,
    125 gwsandbox itself failed, 126 not executable, 127 not found, 128+N killed by signal N.
    """
    from gwsandbox.cli.run import RunRequest, explain_run, run_program

    try:
        program = Command(command)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="COMMAND") from error
    request = RunRequest(
        command=program, limits=limits, hardening=hardening, backend=backend, grace=grace, report=report
    )
    with failures_as_messages():
        raise typer.Exit(explain_run(request) if talk.explain else run_program(request))
