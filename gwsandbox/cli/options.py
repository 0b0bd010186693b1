"""The limit options, which all commands share."""

from __future__ import annotations

import functools
import inspect
import resource
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from gwsandbox.model.limits import MIB, MOST_WORKERS, OPTIONS, Limits, parse_share, parse_size
from gwsandbox.model.text import format_size

_FILES_PER_WORKER = 10
_LEAST_MEMORY = MIB  # with less no dynamic loader gets as far as a program's first instruction
BackendName = Literal["auto", "cgroup", "rlimit"]


def _checked(field: str, convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser for one field of ``Limits``, which refuses a bad value before anything starts."""

    def parse(text: str) -> Any:
        try:
            return getattr(Limits(**{field: convert(text)}), field)
        except ValueError as error:
            # Typer's own message for a ValueError has the value, and lacks the text of the error.
            reason = str(error).removeprefix(f"{field}: ")
            raise typer.BadParameter(reason if repr(text) in reason else f"{text!r}: {reason}") from error

    return parse


def _whole(example: str) -> Callable[[str], int]:
    def convert(text: str) -> int:
        try:
            return int(text)
        except ValueError as error:
            raise ValueError(f"{text!r} is not a whole number; write for example {example}") from error

    return convert


def _memory(text: str) -> int:
    size = parse_size(text, "memory")
    if 0 < size < _LEAST_MEMORY:
        raise ValueError(
            f"{text!r} is {format_size(size)}, which is too little for any program; write for example 512MiB"
        )
    return size


def parse_grace(text: str) -> float:
    """Seconds of grace.

    Raises:
        BadParameter: The text is not a duration.
    """
    seconds: float = _checked("wall_seconds", str)(text)
    return seconds


def check_workers(number: int) -> int:
    """``number`` as it is.

    Raises:
        BadParameter: So many tasks cannot run at a time here.
    """
    # Each has some descriptors in the supervisor, which may have as many as the hard limit says.
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    why = f"the hard limit of ulimit -n is {files}, and a task takes up to {_FILES_PER_WORKER} descriptors"
    most, reason = min((files // _FILES_PER_WORKER, why), (MOST_WORKERS, "no machine can"))
    if number > most:
        raise typer.BadParameter(f"{number} tasks cannot run at a time here: {reason}; {most} is the most")
    return number


def _option(field: str, metavar: str, convert: Callable[[str], Any], text: str) -> Any:
    info = typer.Option(OPTIONS[field], metavar=metavar, parser=_checked(field, convert), help=text, show_default=False)
    return Annotated[Any, info]


_ALL: tuple[tuple[str, str, Callable[[str], Any], str], ...] = (
    ("memory", "SIZE", _memory, "Memory of a task and all its descendants: 512MiB, 2G."),
    ("swap", "SIZE", str, "Swap beyond --memory. Default: none."),
    ("wall_seconds", "DURATION", str, "Wall-clock time: 5s, 500ms, 1h30m."),
    ("cpu_seconds", "DURATION", str, "CPU time of all its threads and descendants together."),
    (
        "cpus",
        "SHARE",
        lambda text: parse_share(text, "cpus"),
        "CPUs in use at a time: 0.5 or 50% is half of one.",
    ),
    ("pids", "N", _whole("64"), "Processes and threads alive at a time."),
    ("open_files", "N", _whole("256"), "Open files of each process."),
    ("file_size", "SIZE", str, "Size of the largest file that may be written."),
    ("output", "SIZE", str, "Bytes to stdout and stderr together; both become pipes."),
)
LIMIT_OPTIONS: dict[str, Any] = {option[0]: _option(*option) for option in _ALL}
Backend = Annotated[
    BackendName,
    typer.Option(
        "--backend",
        show_default=False,
        help="How limits are held. Default: by cgroup v2 where it is available, else by rlimit, with a warning.",
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
