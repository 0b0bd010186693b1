"""Resource trackers of multiprocessing: each guest has its own, which removes what the task forgot and nothing else.

A tracker is a process that removes shared memory and named semaphores, and loky's also folders and files, when those
who registered them have ended. Of shared memory Python registers what a process only attaches to as well (before 3.13,
or without ``track=False``), and a tracker would remove it from under those who use it. So a guest knows what it made.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

_TRACKERS = (
    "multiprocessing.resource_tracker",
    "loky.backend.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
)
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where shm_open(3) makes its files

_made: set[str] = set()


def forget_callers() -> None:
    """In the zygote, once: use the caller's trackers no more, which would keep until its end what a guest forgets."""
    for tracker in _trackers():
        tracker.__init__()
    with contextlib.suppress(ImportError):
        import _posixshmem  # type: ignore[import-not-found] # noqa: PLC0415 - C alone; some Pythons have none

        _posixshmem.shm_open = _noting_what_it_makes(_posixshmem.shm_open)


def _noting_what_it_makes(shm_open: Any) -> Any:
    def noting_shm_open(path: str, flags: int, mode: int = 0o777) -> int:
        fd: int = shm_open(path, flags, mode)
        if flags & os.O_EXCL:
            _made.add(path)
        return fd

    return noting_shm_open


def _trackers() -> Iterator[Any]:
    for name in _TRACKERS:
        if (module := sys.modules.get(name)) is not None:
            yield module.__dict__["_resource_tracker"]


def running() -> Iterator[Any]:
    """In the guest: the trackers that the task has started."""
    return (tracker for tracker in _trackers() if tracker._fd is not None)


def stop(tracker: Any) -> None:
    """Let a tracker see that its process ends, and wait until it has removed what was forgotten."""
    if tracker is sys.modules[_TRACKERS[0]].__dict__["_resource_tracker"]:
        _spare_attached(tracker)
    os.close(tracker._fd)
    tracker._fd = None
    with contextlib.suppress(ChildProcessError):  # the task has reaped it
        os.waitpid(tracker._pid, 0)


def _spare_attached(tracker: Any) -> None:
    """Let it forget the shared memory that this process has not made: who made it shall know whether to keep it."""
    for name in os.listdir(_SHARED_MEMORY):
        if name.isascii() and f"/{name}" not in _made:
            # Registered first, for to unregister what is not registered is an error.
            tracker.register(f"/{name}", "shared_memory")
            tracker.unregister(f"/{name}", "shared_memory")
