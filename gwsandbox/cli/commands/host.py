"""``gwsandbox doctor`` and ``gwsandbox clean``, as typed: what this host can hold, and what was left on it."""

from __future__ import annotations

from typing import Annotated

import typer

from gwsandbox.cli.help import HelpCommand
from gwsandbox.cli.messages import failures_as_messages

_PANEL = "This host"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    examples = "gwsandbox doctor\ngwsandbox doctor --json | jq .backends"
    app.command("doctor", cls=HelpCommand, epilog=examples, rich_help_panel=_PANEL)(doctor)
    app.command("clean", cls=HelpCommand, epilog="gwsandbox clean", rich_help_panel=_PANEL)(clean)
    examples = "gwsandbox man map | man -l -\ngwsandbox man --install ~/.local/share/man"
    app.command("man", cls=HelpCommand, epilog=examples, rich_help_panel=_PANEL)(man)


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


def clean() -> None:
    """Remove the cgroups of dead runs.

    Kills the processes that still run in them. The cgroups of living runs stay.
    """
    from gwsandbox.cli.clean import clean_up

    with failures_as_messages():
        raise typer.Exit(clean_up())


def man(
    name: Annotated[str | None, typer.Argument(metavar="[COMMAND]", show_default=False)] = None,
    install: Annotated[
        str | None, typer.Option("--install", metavar="FOLDER", help="Write all pages to FOLDER/man1 and man5.")
    ] = None,
) -> None:
    """Print a manual page.

    It is that of COMMAND, of gwsandbox.toml, or of the program.

    Exit code: 0 done, 125 there is no such page, or it cannot be written.
    """
    from gwsandbox.cli.man import install_pages, show_page

    with failures_as_messages("gwsandbox man: "):
        raise typer.Exit(show_page(name) if install is None else install_pages(install))
