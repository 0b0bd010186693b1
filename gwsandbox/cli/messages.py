"""What the CLI tells people: one line at a time, on stderr."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator

from gwsandbox.model.errors import DegradedWarning, SandboxError
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Enforcement
from gwsandbox.model.text import one_line

OWN_FAILURE = 125  # the exit code for what is gwsandbox's fault, as env, timeout and docker have it


class Failure(Exception):
    """gwsandbox cannot do what it was asked to; the text says why and what to do. Exit code 125."""


def say(text: str, *, prefix: str = "gwsandbox: ") -> None:
    """Print ``text`` on stderr, as one line."""
    with contextlib.suppress(BrokenPipeError):
        print(prefix + one_line(text), file=sys.stderr, flush=True)


def not_held(limits: Limits, enforcement: Enforcement) -> list[str]:
    """A line for each limit that was asked for and that nothing holds."""
    missing = limits.requested().keys() & enforcement.degraded.keys() - enforcement.limits.keys()
    return [f"warning: {name} was not limited: {enforcement.degraded[name]}" for name in sorted(missing)]


@contextlib.contextmanager
def told_warnings(*, wanted: bool) -> Iterator[None]:
    """Inside, a ``DegradedWarning`` is one line on stderr; or nothing, where it is not ``wanted``."""
    with warnings.catch_warnings():
        warnings.simplefilter("always" if wanted else "ignore", DegradedWarning)
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], *rest: object, **more: object) -> None:
            if issubclass(category, DegradedWarning):
                say(f"warning: {message}")
            else:
                show(message, category, *rest, **more)  # type: ignore[arg-type]

        warnings.showwarning = tell
        yield


@contextlib.contextmanager
def told_failures(prefix: str = "gwsandbox: ") -> Iterator[None]:
    """Turn what is gwsandbox's fault into one line and exit code 125."""
    try:
        yield
    except (Failure, SandboxError) as error:
        say(str(error), prefix=prefix)
    else:
        return
    sys.exit(OWN_FAILURE)
