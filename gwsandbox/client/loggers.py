"""A fork beside threads that log: no guest finds a log's stream locked by a thread that it does not have.

CPython makes the locks of ``logging`` new in a fork, but not that of the stream below, which a thread holds while it
writes. It writes under its handler's lock: who holds all of those forks beside streams at rest.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable
from itertools import repeat
from typing import Any

_SECONDS = 0.1  # that a handler may take to write one line; a thread that waits in it longer holds nobody up


def other_threads() -> int:
    """How many threads this process has beside the one that asks, as far as Python knows of them."""
    threading = sys.modules.get("threading")
    return 0 if threading is None else threading.active_count() - 1


def fork_beside_loggers(fork: Callable[[], None]) -> None:
    """Call ``fork`` while no handler of ``logging`` writes, where there is more than one thread to do so.

    Args:
        fork: Returns in the parent and in the child.
    """
    logging = sys.modules.get("logging")
    if logging is None or not other_threads():
        fork()
        return
    # First the module's own, as the fork itself takes it: in the other order, somebody might hold the one and wait
    # for the other.
    locks: list[Any] = [logging._lock]
    taken: deque[bool] = deque()
    try:
        taken.extend(map(locks[0].acquire, (True,), (-1,)))  # in one call of C, so that Ctrl-C finds both done or none
        handlers = [reference() for reference in logging._handlerList]
        locks += [lock for handler in handlers if (lock := getattr(handler, "lock", None)) is not None]
        for lock in locks[1:]:
            taken.extend(map(lock.acquire, (True,), repeat(_SECONDS)))
        fork()
    finally:
        for lock, is_taken in zip(locks, taken, strict=False):
            if is_taken:
                with contextlib.suppress(RuntimeError):  # made new in the child, where nobody holds it
                    lock.release()
