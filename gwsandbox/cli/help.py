"""The help of the commands in plain text, options under titles and examples at the end, and hints for what is mistyped.

Rich would show this too, at half of the start-up time, and in boxes that nobody can grep.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from typing import Any

from typer.core import TyperCommand, TyperGroup

_OWN_PANEL = "Options"
_EXAMPLES = "Examples"


class HelpCommand(TyperCommand):
    """A command whose options stand under their titles."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _write_parameters(self.get_params(ctx), ctx, formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - as Typer calls it
        _write_examples(self.epilog, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return _with_suggestions(super().parse_args, ctx, args)


class HelpGroup(TyperGroup):
    """The program itself, whose commands stand under their titles."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_parameters(self.get_params(ctx), ctx, formatter)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                panels.setdefault(panel, []).append((name, command.get_short_help_str(formatter.width)))
        for panel, rows in panels.items():
            with formatter.section(panel):
                formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - as Typer calls it
        _write_examples(self.epilog, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return _with_suggestions(super().parse_args, ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            if shutil.which(args[0]) is not None:
                message = getattr(error, "message", "")
                message += "" if message.endswith((".", "?")) else "."
                _reword(error, f"{message} To run this program: gwsandbox run -- {args[0]}")
            raise


def panels_of(parameters: Iterable[Any], ctx: Any) -> dict[str, list[tuple[str, str]]]:
    """The help on each argument and option, by the title that it stands under."""
    panels: dict[str, list[tuple[str, str]]] = {}
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is None:
            continue
        if parameter.param_type_name == "argument":
            if record[1].removesuffix("[required]").strip():  # else the line of usage says all of it
                panels.setdefault("Arguments", []).append(record)
        else:
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or _OWN_PANEL, []).append(record)
    return {panel: panels[panel] for panel in sorted(panels, key=lambda panel: panel != _OWN_PANEL)}


def _write_parameters(parameters: Iterable[Any], ctx: Any, formatter: Any) -> None:
    for panel, rows in panels_of(parameters, ctx).items():
        with formatter.section(panel):
            formatter.write_dl(rows)


def _write_examples(text: str | None, formatter: Any) -> None:
    """Write each line as it is: a line that is wrapped cannot be copied."""
    if text:
        with formatter.section(_EXAMPLES):
            formatter.write("".join(f"{'':{formatter.current_indent}}{line}\n" for line in text.strip().splitlines()))


def _with_suggestions(parse: Callable[[Any, list[str]], list[str]], ctx: Any, args: list[str]) -> list[str]:
    """What ``parse`` gives; its error on an unknown option says what was meant."""
    try:
        return parse(ctx, args)
    except Exception as error:
        _suggest_options(error)
        raise


def _suggest_options(error: Exception) -> None:
    if close := getattr(error, "possibilities", None):
        _reword(error, f"{getattr(error, 'message', '')}. Did you mean {', '.join(map(repr, close))}?")


def _reword(error: Exception, message: str) -> None:
    """Typer's errors of usage say ``message``, and after it the ``possibilities`` where there are any."""
    vars(error).update(message=message, possibilities=None)
