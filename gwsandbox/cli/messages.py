"""The messages of the CLI: one line each, on stderr."""

from __future__ import annotations

import contextlib
import enum
import sys
import warnings
from collections.abc import Iterator

from gwsandbox.model.errors import DegradedWarning, SandboxError
from gwsandbox.model.hardening import ENFORCED, OPTIONAL_MECHANISMS
from gwsandbox.model.limits import OPTIONS, Limits
from gwsandbox.model.result import Enforcement
from gwsandbox.model.text import one_line, shown

OWN_FAILURE = 125  # the exit code where gwsandbox itself fails, as of env(1), timeout(1) and docker


class Verbosity(enum.Enum):
    """How much the command line says of itself."""

    QUIET = enum.auto()
    """Only why gwsandbox itself fails."""
    USUAL = enum.auto()
    """How a task ended, and what its user has to know."""
    VERBOSE = enum.auto()
    """Each step too."""


_verbosity = Verbosity.USUAL


def set_verbosity(verbosity: Verbosity) -> None:
    """How much ``note`` and ``detail`` print from now on."""
    global _verbosity  # noqa: PLW0603 - there is one command line in a process
    _verbosity = verbosity


def is_quiet() -> bool:
    """Whether only the failures of gwsandbox itself are printed."""
    return _verbosity is Verbosity.QUIET


def is_verbose() -> bool:
    """Whether each step is printed."""
    return _verbosity is Verbosity.VERBOSE


class Failure(Exception):
    """gwsandbox cannot do its work; the text says why and what to do. Exit code 125."""


def say(text: str, *, prefix: str = "gwsandbox: ", keeps_columns: bool = False) -> None:
    """Print ``text`` on stderr, as one line that holds nothing that a terminal would obey.

    Args:
        text: What to say.
        prefix: What stands before it.
        keeps_columns: ``text`` is a line already, and its spaces stand for something.
    """
    if sys.stderr is not None:  # print() would take stdout
        with contextlib.suppress(OSError):
            print(shown(prefix + (text if keeps_columns else one_line(text))), file=sys.stderr, flush=True)


def note(text: str, *, prefix: str = "gwsandbox: ") -> None:
    """``say`` it, unless --quiet is given."""
    if not is_quiet():
        say(text, prefix=prefix)


def detail(text: str, *, prefix: str = "gwsandbox: ") -> None:
    """``say`` it where --verbose is given."""
    if is_verbose():
        say(text, prefix=prefix)


def not_held(limits: Limits, enforcement: Enforcement) -> list[str]:
    """A warning for each requested limit that nothing holds."""
    missing = limits.requested().keys() & enforcement.degraded.keys() - enforcement.limits.keys()
    return [f"warning: {name} was not limited: {enforcement.degraded[name]}" for name in sorted(missing)]


def not_hardened(enforcement: Enforcement) -> list[str]:
    """A warning for each part of the hardening that was asked for by an option of its own and does not fully hold."""
    held = {name: enforcement.hardening.get(name, ENFORCED) for name in OPTIONAL_MECHANISMS}
    return [f"warning: {name}: {text}" for name, text in held.items() if text != ENFORCED]


@contextlib.contextmanager
def degradation_as_message(limits: Limits, *, has_total: bool = False) -> Iterator[None]:
    """Inside the block a ``DegradedWarning`` prints one line, in the words of the command line.

    It names the limits among ``limits`` that this host holds less than fully; where there are none, nothing is printed.

    Args:
        limits: Those that were asked for.
        has_total: Whether one on the memory of all tasks together was, too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", DegradedWarning)
        show = warnings.showwarning

        def print_message(message: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
            if not issubclass(category, DegradedWarning):
                show(message, category, *rest, **more)  # type: ignore[arg-type]
            elif degraded := _degraded(limits, has_total=has_total):
                note(
                    f"warning: no cgroup v2 here, so limits are held by rlimits and sampling: {'; '.join(degraded)}. "
                    "`gwsandbox doctor` says why, and what to do"
                )

        warnings.showwarning = print_message
        yield


def _degraded(limits: Limits, *, has_total: bool) -> list[str]:
    from gwsandbox.backends.choose import rlimit_degrades

    total = ["--total-memory: nothing but the moment at which a task starts holds it"] if has_total else []
    return [f"{OPTIONS[name]}: {why}" for name, why in sorted(rlimit_degrades(limits).items())] + total


@contextlib.contextmanager
def failures_as_messages(prefix: str = "gwsandbox: ") -> Iterator[None]:
    """Turn a failure of gwsandbox into one line and exit code 125."""
    try:
        yield
    except (Failure, SandboxError) as error:
        say(str(error).replace("backend='rlimit'", "--backend rlimit"), prefix=prefix)
    else:
        return
    sys.exit(OWN_FAILURE)
