"""What an errno means for a caller that has to go on: the thing is gone, not now, or never.

What is in neither set is "never": to try again changes nothing.
"""

from __future__ import annotations

import errno
import time

GONE = frozenset({errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ESRCH, errno.ENODEV, errno.ENOENT})
"""The peer, process or cgroup does not exist any more."""

NOT_NOW = frozenset(
    {
        errno.EAGAIN,  # fork(2): a limit on processes; sockets: full
        errno.EMFILE,  # RLIMIT_NOFILE
        errno.ENFILE,  # fs.file-max
        errno.ENOMEM,
        errno.ENOBUFS,
        errno.ETOOMANYREFS,  # unix(7): more descriptors in flight than RLIMIT_NOFILE
        errno.ENOSPC,  # epoll_ctl(2): max_user_watches
    }
)
"""Something is used up that others may give back."""


def errno_of(error: BaseException) -> int:
    """The errno that an exception carries; ENOMEM for a ``MemoryError``, 0 where there is none."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    number = getattr(error, "errno", 0)
    return number if isinstance(number, int) else 0


def is_not_now(error: BaseException) -> bool:
    """Whether the same call may succeed later."""
    return errno_of(error) in NOT_NOW


class Patience:
    """How long "not now" is accepted: what lasts longer than a few seconds does not pass by waiting."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._seconds = seconds
        self._since: float | None = None

    def bear(self, error: OSError | MemoryError) -> None:
        """The kernel has refused once more.

        Raises:
            OSError, MemoryError: ``error``, where it is not "not now", or has been for too long.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if not is_not_now(error) or now - self._since > self._seconds:
            raise error

    def renew(self) -> None:
        """It went well."""
        self._since = None
