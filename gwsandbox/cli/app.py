"""The program and its commands. A command's module is imported when it is called, and the work of it after that."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterable
from typing import Annotated

import typer

import gwsandbox
from gwsandbox.cli.help import HelpGroup
from gwsandbox.cli.messages import failures_as_messages
from gwsandbox.cli.streams import make_safe, print_lines

COMMANDS = {
    "run": "run",
    "map": "map",
    "report": "reports",
    "why": "reports",
    "learn": "reports",
    "top": "watch",
    "ps": "watch",
    "kill": "watch",
    "doctor": "host",
    "clean": "host",
    "serve": "spool",
    "spool": "spool",
}
"""For each command the module that registers it, in the order of the help."""

_EXAMPLES = """
gwsandbox run --memory 512MiB --timeout 30s -- soffice --headless --convert-to pdf letter.docx
gwsandbox map --timeout 30s --output-dir out --suffix .pdf --command 'ps2pdf {} {output}' in
gwsandbox doctor
"""


def make_app(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """The program with the commands of these names, and those that are registered with them."""
    app = typer.Typer(
        name="gwsandbox",
        cls=HelpGroup,
        help=gwsandbox.__doc__.partition("\n")[0] if gwsandbox.__doc__ else None,
        epilog=_EXAMPLES,
        # Rich costs half the start-up time, and breaks error messages into boxes that nobody can grep.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    app.callback()(_gwsandbox)
    for module in dict.fromkeys(COMMANDS[name] for name in names):
        importlib.import_module(f"gwsandbox.cli.commands.{module}").register(app)
    return app


def run_app() -> None:
    """Run the command that ``sys.argv`` names, and exit."""
    make_safe()
    # Typer builds all commands before it runs one, and imports what each is made of.
    first = sys.argv[1] if len(sys.argv) > 1 else ""
    app = make_app([first] if first in COMMANDS else COMMANDS)
    # The imported modules live to the end. The collection at the end would take a tenth of the time of a short run.
    gc.freeze()
    app(prog_name="gwsandbox")


def _show_version(value: bool) -> None:
    if value:
        with failures_as_messages():
            print_lines(f"gwsandbox {gwsandbox.__version__}")
        raise typer.Exit


def _gwsandbox(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None:
    """Handle the options before a command."""
