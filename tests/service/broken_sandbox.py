"""A worker function whose module breaks the service's sandbox: no limit can be set on any guest."""

from __future__ import annotations

import errno
import resource


def refuse(*_: object) -> tuple[int, int]:
    """What prlimit(2) says to a process without the right."""
    raise PermissionError(errno.EPERM, "refused by the test")


resource.prlimit = refuse


def work(_source: str, _output: str) -> None:
    """Never runs."""
