"""The options of ``gwsandbox learn``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from gwsandbox.cli.map.options import Workers
from gwsandbox.cli.option_groups import group_of


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnOptions:
    """What is measured, or was."""

    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="PATH", help="File or folder for {input} in COMMAND; can be repeated."),
    ] = None
    sample: Annotated[
        int, typer.Option("--sample", metavar="N", min=1, help="So many files of them, taken by chance.")
    ] = 20
    report: Annotated[
        str | None, typer.Option("--report", metavar="FILE", help="Run nothing: learn from this report.")
    ] = None
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of the profile.")] = "learned"
    workers: Workers = 0


LEARN = group_of(LearnOptions, "")
