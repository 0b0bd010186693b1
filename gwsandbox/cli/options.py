"""The limit options, which are the same for every command; their one definition."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from gwsandbox.model.limits import Limits

BackendName = Literal["auto", "cgroup", "rlimit"]


def _checked(field: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser for one field of ``Limits``; what is wrong with a value is found before anything starts."""

    def parse(text: str) -> Any:
        try:
            return getattr(Limits(**{field: convert(text)}), field)
        except ValueError as error:
            # Not left to Typer: it shows the value, and drops what the error says about it.
            what = str(error).removeprefix(f"{field}: ")
            raise typer.BadParameter(what if repr(text) in what else f"{text!r}: {what}") from error

    return parse


def _number(kind: type[int | float], example: str) -> Callable[[str], Any]:
    def convert(text: str) -> int | float:
        try:
            return kind(text)
        except ValueError as error:
            what = "whole number" if kind is int else "number"
            raise ValueError(f"{text!r} is not a {what}; write for example {example}") from error

    return convert


def _option(field: str, flag: str, metavar: str, convert: Callable[[str], Any], text: str) -> Any:
    info = typer.Option(flag, metavar=metavar, parser=_checked(field, convert), help=text, show_default=False)
    return Annotated[Any, info]


_ALL: tuple[tuple[str, str, str, Callable[[str], Any], str], ...] = (
    ("memory", "--memory", "SIZE", str, "Memory of a task and all its descendants: 512MiB, 2G."),
    ("wall_seconds", "--timeout", "DURATION", str, "Wall-clock time: 5s, 500ms, 2m."),
    ("cpu_seconds", "--cpu-time", "DURATION", str, "CPU time of all its threads and descendants together."),
    ("cpus", "--cpus", "SHARE", _number(float, "0.5"), "CPUs in use at a time; 0.5 is half of one."),
    ("pids", "--pids", "N", _number(int, "64"), "Processes and threads alive at a time."),
    ("open_files", "--open-files", "N", _number(int, "256"), "Open files of each process."),
    ("file_size", "--file-size", "SIZE", str, "Size of the largest file that may be written."),
    ("output", "--output-limit", "SIZE", str, "Bytes to stdout and stderr together; both become pipes."),
)
LIMIT_OPTIONS: dict[str, Any] = {option[0]: _option(*option) for option in _ALL}
FLAGS: dict[str, str] = {option[0]: option[1] for option in _ALL}
Backend = Annotated[
    BackendName,
    typer.Option(
        "--backend",
        show_default=False,
        help="What holds the limits. Default: cgroup v2 where it can be had, else rlimit, which is said.",
    ),
]


def with_limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the limit options; it receives them as ``limits=Limits(…)``."""
    own = inspect.signature(command, eval_str=True).parameters
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [inspect.Parameter(name, kind, default=None, annotation=note) for name, note in LIMIT_OPTIONS.items()]
    kept = [parameter.replace(kind=kind) for name, parameter in own.items() if name != "limits"]

    @functools.wraps(command)
    def wrapper(**values: Any) -> None:
        limits = Limits(**{name: values.pop(name) for name in LIMIT_OPTIONS})
        command(**values, limits=limits)

    signature = inspect.Signature([*added, *kept])
    wrapper.__dict__["__signature__"] = signature
    wrapper.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()}
    return wrapper
