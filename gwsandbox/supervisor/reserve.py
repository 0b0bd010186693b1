"""What the supervisor keeps back of its own limits, so that it can always end what it has begun."""

from __future__ import annotations

import contextlib
import errno
import resource
from collections.abc import Callable
from typing import TypeVar

from gwsandbox.linux.errnos import errno_of, is_not_now

T = TypeVar("T")

_TRIES = 3
_KEPT_BACK = 16  # descriptors; where the hard limit is low, an eighth of it


class Reserve:
    """A few descriptors between the soft and the hard limit of this process, for what must not fail.

    Everything ordinary runs below the soft limit, and is put off where it finds no descriptor. To end a guest, to read
    what it used and to report it goes up to the hard limit.

    Attributes:
        inherited_limits: The caller's RLIMIT_NOFILE and RLIMIT_FSIZE as they were, for guests to get back.
        limits_file_size: Whether guests get a limit on the size of files from the caller.
        limits_room: Whether this process has one, which it cannot raise.
        descriptors: How many this process may have open for what is ordinary.
    """

    def __init__(self) -> None:
        """Raise this process's soft limits: each guest takes up to ten descriptors, and 1024 is a usual soft limit."""
        numbers = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)
        self.inherited_limits = {number: resource.getrlimit(number) for number in numbers}
        own, most = self.inherited_limits[resource.RLIMIT_FSIZE]
        self.limits_file_size = own != resource.RLIM_INFINITY
        self.limits_room = most != resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        self._restore()

    def _restore(self) -> None:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.descriptors = hard - min(_KEPT_BACK, hard // 8)
        resource.setrlimit(resource.RLIMIT_NOFILE, (self.descriptors, hard))

    def use(self, function: Callable[[], T]) -> T:
        """Call ``function``, which can be called again; and again where the kernel says "not now", with the reserve."""
        for _ in range(_TRIES - 1):
            try:
                return function()
            except Exception as error:
                if not is_not_now(error):
                    raise
                if errno_of(error) == errno.EMFILE:
                    return self.use_at_once(function)
        return function()

    def use_at_once(self, function: Callable[[], T]) -> T:
        """Call ``function`` with the reserve: for what cannot be tried twice."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        try:
            return function()
        finally:
            with contextlib.suppress(OSError, ValueError):
                self._restore()
