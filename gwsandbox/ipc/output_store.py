"""The memfd that holds the large output of one guest: the supervisor writes it, the caller reads it."""

from __future__ import annotations

import errno
import os

PLACES = (0, 1 << 45)  # of stdout and stderr in the store, a sparse file: neither can reach the other
READ_AT_ONCE = 1 << 30  # bytes; the kernel gives 2 GiB at most


class OutputStore:
    """The memfd of one guest's output, made when first wanted; open until ``close`` or ``take``."""

    def __init__(self) -> None:
        self.fd = -1

    def write(self, data: bytes, position: int) -> bool:
        """Whether all of ``data`` was written; not so past RLIMIT_FSIZE, or where no descriptor is free."""
        try:
            if self.fd < 0:
                self.fd = os.memfd_create("gwsandbox-output", os.MFD_CLOEXEC)
            return os.pwrite(self.fd, data, position) == len(data)
        except OSError:
            return False

    def take(self) -> int | None:
        """The descriptor, which the caller closes from here on; ``None`` where nothing was stored."""
        fd, self.fd = self.fd, -1
        return None if fd < 0 else fd

    def close(self) -> None:
        if (fd := self.take()) is not None:
            os.close(fd)


def received(fd: int, stored: tuple[int, int], rest: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    """Stdout and stderr, of which the first ``stored`` bytes are in a store.

    Raises:
        OSError: The store cannot be read, or is shorter than it was: a process of the same user can reach it.
    """
    return _received(fd, PLACES[0], stored[0], rest[0]), _received(fd, PLACES[1], stored[1], rest[1])


def _received(fd: int, place: int, stored: int, rest: bytes) -> bytes:
    parts = [os.pread(fd, min(READ_AT_ONCE, stored - start), place + start) for start in range(0, stored, READ_AT_ONCE)]
    if sum(map(len, parts)) != stored:
        raise OSError(errno.EIO, f"read output: {stored} B were stored, and are not there any more")
    if rest:
        parts.append(rest)
    return b"".join(parts)  # one part alone is not copied
