"""The command line: what it takes. What a command does is in its own module, imported when it is called."""

from __future__ import annotations

import gc
import sys
from typing import Annotated, Literal

import typer

import gwsandbox
from gwsandbox.cli.messages import told_failures
from gwsandbox.cli.options import Backend, with_limit_options
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


def main() -> None:
    """The console script."""
    gc.freeze()  # all that is imported lives to the end, and at the end looking through it takes a tenth of a short run
    # Typer builds all commands before it runs one, which takes a tenth of a short run.
    first = sys.argv[1:2]
    requested = [info for info in app.registered_commands if [info.name] == first]
    app.registered_commands = requested or app.registered_commands
    app(prog_name="gwsandbox")


def _show_version(value: bool) -> None:
    if value:
        print(f"gwsandbox {gwsandbox.__version__}")
        raise typer.Exit


@app.callback()
def _gwsandbox(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Take the options that come before a command."""


@app.command(
    "run",
    # What follows the program belongs to the program, also where it looks like an option of ours.
    context_settings={"allow_interspersed_args": False},
)
@with_limit_options
def run(
    command: Annotated[list[str], typer.Argument(metavar="[--] COMMAND [ARG]...", show_default=False)],
    limits: Limits,
    backend: Backend = "auto",
    report: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write how it ended and what it used, as JSON.")
    ] = None,
) -> None:
    """Run one program. It keeps its terminal, its standard streams and its Ctrl-C.

    Exit code: the program's own; 121 output limit, 122 CPU time, 123 out of memory, 124 timed out,
    125 gwsandbox itself failed, 126 not executable, 127 not found, 128+N killed by signal N.
    """
    from gwsandbox.cli.run import run_program

    try:
        program = Command(command)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="COMMAND") from error
    with told_failures():
        raise typer.Exit(run_program(program, limits, backend, report))


@app.command("map", no_args_is_help=True)
@with_limit_options
def map_(  # noqa: PLR0917 - Typer calls it, by keyword
    arguments: Annotated[list[str], typer.Argument(metavar="[MODULE:FUNCTION] INPUT...", show_default=False)],
    limits: Limits,
    backend: Backend = "auto",
    command: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="Run this, without a shell: 'convert {input} {output}'."),
    ] = None,
    workers: Annotated[
        int, typer.Option(metavar="N", min=0, show_default=False, help="Tasks at a time; else one per CPU.")
    ] = 0,
    output_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Where each task's output goes, when it succeeded.")
    ] = None,
    report: Annotated[
        str | None,
        typer.Option(metavar="FILE.jsonl", help="A row per input; what has one is skipped by the next run."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Skip only what succeeded.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Skip nothing, and start the report anew.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="At the end print outcome, time, peak memory and file of each.")
    ] = False,
) -> None:
    """Run a function or program on each file. Folders are walked.

    FUNCTION is called with the path of the input and, with --output-dir, the path to write its output to.
    MODULE is looked for in the current folder first. The same command again does only what is not done yet.

    Exit code: 0 all succeeded, 1 some did not, 125 gwsandbox itself failed, 130 interrupted.
    """
    from gwsandbox.cli.map.command import Request, map_files

    if len(arguments) < (1 if command else 2):
        raise typer.BadParameter("name at least one file or folder", param_hint="INPUT")
    request = Request(
        arguments=arguments,
        command=command,
        limits=limits,
        backend=backend,
        workers=workers,
        output_dir=output_dir,
        report=report,
        retry_failed=retry_failed,
        fresh=fresh,
        table=table,
    )
    with told_failures("gwsandbox map: "):
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
    """Run a real task into each limit, and say what holds here.

    Says of each limit what enforces it or why nothing does, and the commands or unit lines that mend that.

    Exit code: 0 all limits are enforced, 1 some are degraded, 2 nothing can be enforced.
    """
    from gwsandbox.cli.doctor.command import examine

    raise typer.Exit(examine(as_json=as_json))


@app.command("clean")
def clean() -> None:
    """Remove what killed supervisors left behind.

    Cgroups whose owner is dead, with whatever still runs in them; never those of a run that is alive.
    """
    from gwsandbox.cli.clean import clean_up

    raise typer.Exit(clean_up())
