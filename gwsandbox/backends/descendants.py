"""What both backends do for the processes of guests, wherever those hang in the tree of processes."""

from __future__ import annotations

import os
from collections.abc import Callable

from gwsandbox.backends.fork_memory import ForkMemory
from gwsandbox.backends.orphans import Orphans


class BackendWithOrphans:
    """The part of a backend that knows the supervisor's children; see ``base.Backend`` for the verbs."""

    def __init__(self) -> None:
        self._fork = ForkMemory()
        self._orphans = Orphans()

    def watch_children(self) -> int:
        return self._orphans.watch()

    def child_died(self) -> None:
        self._orphans.reap()

    def adopt(self, zygote: int, init: int, has_births: Callable[[], bool]) -> None:
        self._fork.zygote = zygote
        self._orphans.adopt(zygote, init, has_births)

    def descriptors(self) -> list[int]:
        return self._orphans.descriptors()


class SandboxWithOrphans:
    """The part of a sandbox that knows which processes bear its mark; see ``base.Sandbox`` for the verbs."""

    _fork: ForkMemory
    _orphans: Orphans
    _pid = 0
    _mark = 0
    _waiting = -1
    _keeps_memory = False

    def remaining(self) -> int | None:
        if self._waiting >= 0:
            os.close(self._waiting)
            self._waiting = -1
        for pid in self._orphans.of(self._mark):
            self._waiting = os.pidfd_open(pid)
            return self._waiting
        return None
