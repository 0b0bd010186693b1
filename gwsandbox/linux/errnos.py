"""What an errno means for whoever has to go on: the thing is gone, not now, or never.

What is in neither set is "never": to try again changes nothing.
"""

from __future__ import annotations

import errno

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
