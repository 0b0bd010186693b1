"""The commands and their options. The work of each command is in a module of its own, imported when it is called."""

from __future__ import annotations

import gc
import sys
from dataclasses import replace
from typing import Annotated, Any, Literal

import typer

import gwsandbox
from gwsandbox.cli.hardening_options import with_hardening_options
from gwsandbox.cli.messages import failures_as_messages
from gwsandbox.cli.options import Backend, check_workers, parse_grace, with_limit_options
from gwsandbox.cli.streams import make_safe, print_lines
from gwsandbox.model.hardening import Hardening
from gwsandbox.model.limits import Limits
from gwsandbox.model.task import Command

app = typer.Typer(
    name="gwsandbox",
    help=gwsandbox.__doc__.partition("\n")[0] if gwsandbox.__doc__ else None,
    # Rich costs half the start-up time, and breaks error messages into boxes that nobody can grep.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


Grace = Annotated[
    Any,
    typer.Option(
        "--grace",
        metavar="DURATION",
        parser=parse_grace,
        show_default=False,
        help="At the end of --timeout send SIGTERM first, and SIGKILL so much later.",
    ),
]


def run_app() -> None:
    """Run the command that ``sys.argv`` names, and exit."""
    make_safe()
    # The imported modules live to the end. The collection at the end would take a tenth of the time of a short run.
    gc.freeze()
    # Typer builds all commands before it runs one, which takes another tenth.
    first = sys.argv[1:2]
    requested = [info for info in app.registered_commands if [info.name] == first]
    app.registered_commands = requested or app.registered_commands
    app(prog_name="gwsandbox")


def _show_version(value: bool) -> None:
    if value:
        with failures_as_messages():
            print_lines(f"gwsandbox {gwsandbox.__version__}")
        raise typer.Exit


@app.callback()
def _gwsandbox(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Handle the options before a command."""


@app.command(
    "run",
    # Everything after the name of the program belongs to the program, also a word that looks like an option of ours.
    context_settings={"allow_interspersed_args": False},
)
@with_limit_options
@with_hardening_options
def run(  # noqa: PLR0917 - Typer calls it, by keyword
    command: Annotated[list[str], typer.Argument(metavar="[--] COMMAND [ARG]...", show_default=False)],
    limits: Limits,
    hardening: Hardening,
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
    from gwsandbox.cli.run import run_program

    try:
        program = Command(command)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="COMMAND") from error
    with failures_as_messages():
        raise typer.Exit(run_program(program, limits, backend, hardening=hardening, report=report, grace=grace))


@app.command("map", no_args_is_help=True)
@with_limit_options
@with_hardening_options
def map_(  # noqa: PLR0917 - Typer calls it, by keyword
    arguments: Annotated[list[str], typer.Argument(metavar="[MODULE:FUNCTION] INPUT...", show_default=False)],
    limits: Limits,
    hardening: Hardening,
    backend: Backend = "auto",
    command: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="Run this, without a shell: 'convert {input} {output}'."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            callback=check_workers,
            show_default=False,
            help="Tasks at a time. Default: one per CPU.",
        ),
    ] = 0,
    output_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder for the outputs of tasks that succeed.")
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE.jsonl", help="Write a row per input; the next run skips inputs with a row."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Skip only inputs that succeeded.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Skip nothing, and empty the report first.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="At the end print outcome, time, peak memory and file of each.")
    ] = False,
    show_output: Annotated[
        bool, typer.Option("--show-output", help="Print what each program of --command wrote, when it has ended.")
    ] = False,
    grace: Grace = None,
) -> None:
    """Run a function or program on each file. Folders are walked.

    FUNCTION is called with the path of the input and, with --output-dir, the path to write its output to.
    MODULE is searched in the current folder first. The same command again works only on the rest.

    Exit code: 0 all succeeded, 1 some did not, 125 gwsandbox itself failed, 130 interrupted.
    """
    from gwsandbox.cli.map.command import Request, map_files

    if len(arguments) < (1 if command else 2):
        raise typer.BadParameter("name at least one file or folder", param_hint="INPUT")
    request = Request(
        arguments=arguments,
        command=command,
        limits=limits,
        hardening=replace(hardening, results="plain"),
        backend=backend,
        grace=grace,
        workers=workers,
        output_dir=output_dir,
        report=report,
        retry_failed=retry_failed,
        fresh=fresh,
        table=table,
        show_output=show_output,
    )
    with failures_as_messages("gwsandbox map: "):
        raise typer.Exit(map_files(request))


@app.command("serve")
def serve(
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml", show_default=False)],
    check: Annotated[
        bool, typer.Option("--check", help="Only look for mistakes in CONFIG.toml, and for folders it cannot write.")
    ] = False,
    running: Annotated[
        int | None,
        typer.Option(metavar="PID", min=1, help="With --check: whether the service of this pid could reload it."),
    ] = None,
) -> None:
    """Work on files as they come into a folder, until stopped by SIGTERM.

    Each file's output goes to another folder, or the file to quarantine with a report. SIGHUP reads
    CONFIG.toml again. systemd/ in the sources has a unit, and an example of CONFIG.toml.

    Exit code: 0 stopped, 125 gwsandbox itself failed or CONFIG.toml has mistakes.
    """
    from gwsandbox.cli.serve import check_config, serve_spool

    raise typer.Exit(check_config(config, running) if check else serve_spool(config))


@app.command("spool")
def spool(
    verb: Annotated[Literal["status", "requeue", "retry"], typer.Argument(show_default=False)],
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml", show_default=False)],
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Show what is in the spool of CONFIG.toml, or give files in quarantine another attempt.

    status: the files in each folder. requeue: each FILE goes back to incoming, as if it had just come. retry: it
    goes back for one more attempt, and those that it had count. Without a FILE: all files in quarantine.

    Exit code: 0 done, 1 a FILE is not in quarantine, 125 gwsandbox itself failed or CONFIG.toml has mistakes.
    """
    from gwsandbox.cli.spool import operate

    raise typer.Exit(operate(verb, config, files or [], as_json=as_json))


@app.command("doctor")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Run a real task into each limit, and print which limits hold here.

    Prints for each limit the mechanism that enforces it, or a reason and the commands or unit lines to follow.

    Exit code: 0 all limits are enforced, 1 some are degraded, 2 nothing can be enforced.
    """
    from gwsandbox.cli.doctor.command import examine

    with failures_as_messages():
        raise typer.Exit(examine(as_json=as_json))


@app.command("clean")
def clean() -> None:
    """Remove the cgroups of dead runs.

    Kills the processes that still run in them. The cgroups of living runs stay.
    """
    from gwsandbox.cli.clean import clean_up

    with failures_as_messages():
        raise typer.Exit(clean_up())
