"""What the supervisor keeps back of its own limits, so that it can always end what it has begun."""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Callable
from typing import TypeVar

from gwsandbox.linux.errnos import errno_of

T = TypeVar("T")

_KEPT_BACK = 16  # descriptors


class Reserve:
    """A few descriptors between the soft and the hard limit of this process, for what must not fail.

    Everything ordinary runs below the soft limit, and is put off where it finds no descriptor. To end a guest, to read
    what it used and to report it goes up to the hard limit.

    Attributes:
        inherited_limits: The caller's RLIMIT_NOFILE and RLIMIT_FSIZE as they were, for guests to get back.
    """

    def __init__(self) -> None:
        """Raise this process's soft limits: each guest takes up to ten descriptors, and 1024 is a usual soft limit."""
        numbers = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
        self.inherited_limits = {number: resource.getrlimit(number) for number in numbers}
        _, most = self.inherited_limits[resource.RLIMIT_FSIZE]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        self._restore()

    @staticmethod
    def _restore() -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard - _KEPT_BACK, hard // 2), hard))

    def use(self, function: Callable[[], T]) -> T:
        """Call ``function``; and once more with the reserve where it finds no descriptor."""
        try:
            return function()
        except Exception as error:
            if errno_of(error) != errno.EMFILE:
                raise
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            return function()
        finally:
            with contextlib.suppress(OSError, ValueError):
                self._restore()
