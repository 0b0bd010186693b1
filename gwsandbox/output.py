"""A guest's stdout and stderr where the supervisor reads them: kept, or counted and passed on."""

from __future__ import annotations

import os
import select

_CHUNK = 1 << 16
_CHUNKS_AT_A_TIME = 16
_ALWAYS_FITS = 4096  # PIPE_BUF: what a pipe or terminal that polls as writable takes without blocking


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
    """

    def __init__(self, budget: Budget, target: int | None) -> None:
        self.fd, self.guests_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.fd, False)
        self.target = None if target is None else os.dup(target)
        self._budget = budget
        self._kept: list[bytes] = []
        self._pending = b""

    def started(self) -> None:
        """The guest has its end: without ours, the pipe ends with the guest."""
        os.close(self.guests_end)
        self.guests_end = -1

    def read(self, chunks: int = _CHUNKS_AT_A_TIME) -> tuple[bool, bool]:
        """Read and pass on what there is; (more may come, more was written than the budget allows).

        At most ``chunks`` of it: who writes as fast as we read would keep us from everything else. Does not
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
                self._kept.append(data[:allowed])
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

    def discard(self) -> None:
        """Give up what is pending."""
        self._pending = b""

    def kept(self) -> bytes:
        return b"".join(self._kept)

    def close(self) -> None:
        for fd in (self.fd, self.guests_end, self.target):
            if fd is not None and fd >= 0:
                os.close(fd)
