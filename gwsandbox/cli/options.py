"""The options that commands share: limits, backend, time of grace, and how much is said."""

from __future__ import annotations

import inspect
import resource
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import typer

from gwsandbox.cli.messages import Verbosity, set_verbosity
from gwsandbox.cli.option_groups import OptionGroup, group_of, option
from gwsandbox.cli.profiles import ProfileError, complete_profile, read_profile
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


def _option(field: str, metavar: str, convert: Callable[[str], Any], text: str) -> inspect.Parameter:
    info = typer.Option(OPTIONS[field], metavar=metavar, parser=_checked(field, convert), help=text, show_default=False)
    return option(field, Annotated[Any, info])


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
_NoLimits = Annotated[
    bool, typer.Option("--no-limits", help="No defaults for what is not limited here. 0 is no limit, too.")
]
_Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="NAME",
        show_default=False,
        autocompletion=complete_profile,
        help="Limits of this name in profiles.toml, in ~/.config/gwsandbox or /etc/gwsandbox.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenLimits:
    """The limits that the command line asks for.

    Args:
        asked: Those of the options, and of the profile where an option says nothing.
        takes_defaults: Whether some that are not asked for have a default.
    """

    asked: Limits
    takes_defaults: bool


def _choose_limits(*, no_limits: bool, profile: str | None, **values: Any) -> ChosenLimits:
    given = Limits(**values)
    try:
        asked = given if profile is None else read_profile(profile).overridden_by(given)
    except ProfileError as error:
        raise typer.BadParameter(str(error), param_hint="--profile") from error
    return ChosenLimits(asked=asked, takes_defaults=not no_limits)


LIMITS = OptionGroup(
    "Limits",
    (*(_option(*each) for each in _ALL), option("no_limits", _NoLimits, False), option("profile", _Profile)),
    _choose_limits,
)
Backend = Annotated[
    BackendName,
    typer.Option(
        "--backend",
        show_default=False,
        rich_help_panel="Limits",
        help="How limits are held. Default: by cgroup v2 where it is available, else by rlimit, with a warning.",
    ),
]
Grace = Annotated[
    Any,
    typer.Option(
        "--grace",
        metavar="DURATION",
        parser=parse_grace,
        show_default=False,
        rich_help_panel="Limits",
        help="At the end of --timeout send SIGTERM first, and SIGKILL so much later.",
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """How much the command line says of itself."""

    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only why gwsandbox itself fails.")] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Say each step: backend, limits and what holds them, files.")
    ] = False
    explain: Annotated[bool, typer.Option("--explain", help="Print what would be done, and start nothing.")] = False

    def __post_init__(self) -> None:
        if self.quiet and self.verbose:
            raise typer.BadParameter("give --quiet or --verbose, not both")
        set_verbosity(Verbosity.QUIET if self.quiet else Verbosity.VERBOSE if self.verbose else Verbosity.USUAL)


TALK = group_of(Talk, "Messages")
