"""``gwsandbox man``: manual pages, made of what the commands and the configuration say of themselves."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from typing import Any

import typer

import gwsandbox
from gwsandbox.cli.app import COMMANDS, make_app
from gwsandbox.cli.help import panels_of
from gwsandbox.cli.messages import Failure, note
from gwsandbox.cli.streams import print_lines
from gwsandbox.model.text import shown

_CONFIGURATION = "gwsandbox.toml"


def page_names() -> list[str]:
    """The names of all pages."""
    return ["gwsandbox", *(f"gwsandbox-{name}" for name in COMMANDS), _CONFIGURATION]


def show_page(name: str | None) -> int:
    """Print the page of a command, of the program, or of the configuration; the exit code.

    Raises:
        Failure: There is no such page, or stdout cannot be written.
    """
    wanted = "gwsandbox" if name is None else name if name == _CONFIGURATION else f"gwsandbox-{name}"
    if wanted not in page_names():
        raise Failure(
            f"there is no page on {shown(str(name))}; there is one on {', '.join(COMMANDS)}, {_CONFIGURATION}"
        )
    print_lines("\n".join(_page(wanted)))
    return 0


def install_pages(folder: str) -> int:
    """Write all pages below a folder of manual pages; the exit code.

    Raises:
        Failure: One cannot be written.
    """
    for name in page_names():
        section = _section(name)
        path = os.path.join(folder, f"man{section}", f"{name}.{section}")
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write("\n".join(_page(name)) + "\n")
        except OSError as error:
            remedy = "choose another folder by --install"
            raise Failure(f"the page {shown(path)} cannot be written: {error.strerror}; {remedy}") from error
    note(f"{len(page_names())} pages are in {shown(folder)}")
    return 0


def _section(name: str) -> int:
    return 5 if name == _CONFIGURATION else 1


def _page(name: str) -> Iterator[str]:
    yield f'.TH {name.upper()} {_section(name)} "" "gwsandbox {gwsandbox.__version__}"'
    yield from _configuration() if name == _CONFIGURATION else _command(name.partition("-")[2])
    others = sorted(f"{other}({_section(other)})" for other in page_names() if other != name)
    yield from (".SH SEE ALSO", _roff(", ".join(others)))


def _command(name: str) -> Iterator[str]:
    program: Any = typer.main.get_command(make_app([name] if name else COMMANDS))
    command = program.commands[name] if name else program
    with command.context_class(command, info_name=f"gwsandbox {name}".rstrip(), max_content_width=1000) as context:
        first, _, rest = inspect.cleandoc(command.help or "").partition("\n\n")
        yield from (".SH NAME", _roff(f"{context.info_name.replace(' ', '-')} - {_joined(first).rstrip('.')}"))
        yield from (
            ".SH SYNOPSIS",
            f".B {_roff(' '.join([context.info_name, *command.collect_usage_pieces(context)]))}",
        )
        yield ".SH DESCRIPTION"
        yield from (line for text in (rest or first).split("\n\n") for line in (".PP", _roff(_joined(text))))
        for panel, rows in panels_of(command.get_params(context), context).items():
            yield f".SH {_roff(panel.upper())}"
            yield from (line for term, text in rows for line in (".TP", f".B {_roff(term)}", _roff(text)))
        if command.epilog:
            yield from (".SH EXAMPLES", ".nf", *map(_roff, command.epilog.strip().splitlines()), ".fi")


def _configuration() -> Iterator[str]:
    from gwsandbox.service.config import config

    first, *rest = inspect.cleandoc(config.__doc__ or "").split("\n\n")
    yield from (".SH NAME", _roff(f"{_CONFIGURATION} - configuration of the spool service"), ".SH DESCRIPTION")
    yield _roff(_joined(first))
    for text in rest:
        if text.startswith("    "):
            yield from (".nf", *map(_roff, inspect.cleandoc(text).splitlines()), ".fi")
        elif "``" not in text and text != "::":
            yield from (".PP", _roff(_joined(text)))
    for kind in (config.ServiceConfig, config.FolderConfig, config.WorkerConfig, config.MetricsConfig):
        about, _, keys = inspect.cleandoc(kind.__doc__ or "").partition("\n\nArgs:\n")
        yield from (f".SH {kind.__name__.removesuffix('Config').upper()}", _roff(_joined(about)))
        for entry in re.split(r"\n(?=    \w)", keys):
            term, _, text = entry.strip().partition(": ")
            yield from (".TP", f".B {_roff(term)}", _roff(_joined(text)))


def _joined(text: str) -> str:
    return " ".join(text.replace("``", "").split())


def _roff(text: str) -> str:
    """A line of text for troff, none of which it takes for a request."""
    line = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{line}" if line.startswith((".", "'")) else line
