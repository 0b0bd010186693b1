"""A guest's stdout and stderr where the supervisor reads them: kept, or counted and passed on.

What is kept and large goes into a memfd as it comes, and on to the caller as a descriptor. To join, pickle and
send a flood of 300 MiB kept the supervisor from the deadlines of other guests for 0.7 s.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Iterator

from gwsandbox.ipc.output_store import PLACES, OutputStore
from gwsandbox.supervisor.event_loop import EventLoop

_CHUNK = 1 << 16
_CHUNKS_AT_A_TIME = 16
_ALWAYS_FITS = 4096  # PIPE_BUF: what a pipe or terminal that polls as writable takes without blocking
_KEPT = 1 << 18  # bytes of a stream from which on it is stored


class Budget:
    """Bytes that stdout and stderr of one guest may still write together; ``None`` is no limit."""

    def __init__(self, limit: float | None) -> None:
        self._left = limit

    def take(self, size: int) -> int:
        """How many of ``size`` bytes are allowed, and count them."""
        if self._left is None:
            return size
        allowed = int(min(size, self._left))
        self._left -= allowed
        return allowed


class OutputPipe:
    """A pipe from the guest; what comes is kept, or written to ``target`` without ever blocking on it.

    Owns both ends, and a duplicate of the target to wait on, until ``close``.

    Args:
        number: 0 for stdout, 1 for stderr.
        budget: That both share.
        store: That both share, for what is kept and large.
        target: Where to write what comes; ``None`` to keep it.
    """

    def __init__(self, number: int, budget: Budget, store: OutputStore, target: int | None) -> None:
        self.target = None if target is None else os.dup(target)
        try:
            self.fd, self.guests_end = os.pipe2(os.O_CLOEXEC)
        except OSError:
            if self.target is not None:
                os.close(self.target)
            raise
        os.set_blocking(self.fd, False)
        self.store = store
        self._place = PLACES[number]
        self._budget = budget
        self._kept: deque[bytes] = deque()
        self._kept_bytes = self._stored_bytes = 0
        self._pending = b""

    def started(self) -> None:
        """The guest has its end: without ours, the pipe ends with the guest."""
        os.close(self.guests_end)
        self.guests_end = -1

    def read(self, chunks: int = _CHUNKS_AT_A_TIME) -> tuple[bool, bool]:
        """Read and pass on what there is; (more may come, more was written than the budget allows).

        At most ``chunks`` of it: a guest that writes as fast as we read would keep us from everything else. Does not
        read while what came before could not be passed on, so that the guest waits as it would.
        """
        while chunks and not self.pass_on():
            chunks -= 1
            try:
                data = os.read(self.fd, _CHUNK)
            except BlockingIOError:
                return True, False
            if not data:
                return False, False
            allowed = self._budget.take(len(data))
            if self.target is None:
                self._keep(data[:allowed])
            else:
                self._pending = data[:allowed]
            if allowed < len(data):
                return False, True
        return True, False

    def pass_on(self) -> bool:
        """Write what is pending; whether some of it is left, as the target takes no more now."""
        while self._pending and self.target is not None:
            poll = select.poll()
            poll.register(self.target, select.POLLOUT)
            if not poll.poll(0):
                return True
            try:
                written = os.write(self.target, self._pending[:_ALWAYS_FITS])
            except OSError:  # its reader is gone: nobody misses the rest
                written = len(self._pending)
            self._pending = self._pending[written:]
        return False

    def forget(self, loop: EventLoop) -> None:
        """Wait for neither of its ends any more."""
        loop.forget(self.fd)
        if self.target is not None:
            loop.forget(self.target)

    def keep_rest(self) -> None:
        """Pass nothing on any more: keep what is pending, and what is to come."""
        rest, self._pending = self._pending, b""
        self._keep(rest)
        if self.target is not None:
            fd, self.target = self.target, None
            os.close(fd)

    def discard(self) -> None:
        """Give up what is pending."""
        self._pending = b""

    def _keep(self, data: bytes) -> None:
        self._kept.append(data)
        self._kept_bytes += len(data)
        if self._kept_bytes >= _KEPT:
            self._move_into_store()

    def _move_into_store(self) -> None:
        while self._kept and self.store.write(self._kept[0], self._place + self._stored_bytes):
            moved = len(self._kept.popleft())
            self._stored_bytes += moved
            self._kept_bytes -= moved

    def kept(self) -> tuple[int, bytes]:
        """What came: how many bytes of it are in the store, and what comes after those."""
        if self._stored_bytes:
            self._move_into_store()
        return self._stored_bytes, b"".join(self._kept)

    def descriptors(self) -> list[int]:
        """All that it holds, -1 for what is closed."""
        return [self.fd, self.guests_end, -1 if self.target is None else self.target, self.store.fd]

    def close(self) -> None:
        """Close both ends, the duplicate of the target and the store; safe to call again."""
        self.store.close()
        fds = (self.fd, self.guests_end, self.target)
        self.fd, self.guests_end, self.target = -1, -1, None
        for fd in fds:
            if fd is not None and fd >= 0:
                os.close(fd)


def output_pipes(limit: float | None, targets: tuple[int | None, ...]) -> Iterator[OutputPipe]:
    """Pipes for stdout and stderr, where the guest does not write to the caller's own.

    Args:
        limit: Bytes that both may write together; ``None`` is no limit.
        targets: Where each goes, as ``OutputPipe`` has it; empty where no pipe is needed.
    """
    budget, store = Budget(limit), OutputStore()
    for number, target in enumerate(targets):
        yield OutputPipe(number, budget, store, target)
