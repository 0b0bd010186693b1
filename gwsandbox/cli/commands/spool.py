"""``gwsandbox serve`` and ``gwsandbox spool``, as typed: the spool service and what is in its folders."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from gwsandbox.cli.help import HelpCommand

_PANEL = "Service"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    examples = "gwsandbox serve --check spool.toml\ngwsandbox serve spool.toml"
    app.command("serve", cls=HelpCommand, epilog=examples, rich_help_panel=_PANEL)(serve)
    examples = "gwsandbox spool status spool.toml\ngwsandbox spool retry spool.toml letter.docx"
    app.command("spool", cls=HelpCommand, epilog=examples, rich_help_panel=_PANEL)(spool)


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


def spool(
    verb: Annotated[Literal["status", "requeue", "retry"], typer.Argument(show_default=False)],
    config: Annotated[str, typer.Argument(metavar="CONFIG.toml", show_default=False)],
    files: Annotated[list[str] | None, typer.Argument(metavar="[FILE]...", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the status as JSON.")] = False,
) -> None:
    """Show what is in a spool, or try its quarantined files again.

    status: the files in each folder. requeue: each FILE goes back to incoming, as if it had just come. retry: it
    goes back for one more attempt, and those that it had count. Without a FILE: all files in quarantine.

    Exit code: 0 done, 1 a FILE is not in quarantine, 125 gwsandbox itself failed or CONFIG.toml has mistakes.
    """
    from gwsandbox.cli.spool import operate

    raise typer.Exit(operate(verb, config, files or [], as_json=as_json))
