"""Messages between host and machine, over a byte stream that outlives mistakes of both ends.

The host may vanish in the middle of a message (Ctrl-C), and the next host speaks on the same stream. So a new
host first sends a preamble of zeros, longer than any frame. It fills up the frame that the agent may be in the
middle of; the agent skips the rest up to the next MAGIC. In the other direction the host skips everything up to
the READY that repeats its own token.

Both sides use this module: standard library only, and nothing newer than Python 3.11.
"""

import contextlib
import enum
import errno
import os
import select
import struct
import time
from collections.abc import Iterator
from typing import TypedDict

MAGIC = b"GWvm"
FRAME_BYTES = 64 * 1024
HEADER = struct.Struct(">4sBBI")
PREAMBLE = bytes(FRAME_BYTES + HEADER.size)


class Kind(enum.IntEnum):
    """What a message says. H: the host sends it; A: the agent sends it."""

    HELLO = 1  # H: a token; every session before this one is over
    READY = 2  # A: the same token
    TREE = 3  # H: the work tree, as JSON {path: Stamp}
    NEED = 4  # A: the paths whose content the agent lacks, as JSON
    FILE = 5  # both: JSON FileHeader on one line, then the content
    TREE_DONE = 6  # H: that was the last file; A: the tree is in place
    RUN = 7  # H: JSON RunRequest
    OUTPUT = 8  # A: bytes that the command wrote
    EXIT = 9  # A: JSON {code}; the command has ended


Stamp = list[int]
"""A file's mode, mtime in nanoseconds, and size in bytes."""


class FileHeader(TypedDict):
    """What stands before a file's content. `path` is relative; `link` is a symbolic link's target."""

    path: str
    mode: int
    mtime_ns: int
    link: str | None


class RunRequest(TypedDict):
    """A command to run. `role` is unit, nspawn, user or root; `out` asks for the files in $OUT."""

    argv: list[str]
    role: str
    env: dict[str, str]
    out: bool


class Disconnected(Exception):
    """The other end is not there, or no longer."""


class DeadlineExpired(Exception):
    """The deadline passed before a whole message arrived."""


class Channel:
    """Whole messages on one non-blocking descriptor, or on one for each direction.

    Deadlines are instants of the monotonic clock.
    """

    def __init__(self, fd: int, write_fd: int | None = None) -> None:
        self.fd = fd
        self._write_fd = fd if write_fd is None else write_fd
        self._buffer = bytearray()
        os.set_blocking(fd, False)
        os.set_blocking(self._write_fd, False)

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        """Send one message, in as many frames as it takes."""
        view = memoryview(payload)
        for start in range(0, max(len(view), 1), FRAME_BYTES):
            part = view[start : start + FRAME_BYTES]
            last = start + FRAME_BYTES >= len(view)
            self.write(HEADER.pack(MAGIC, kind, last, len(part)) + part)

    def receive(self, deadline: float | None = None) -> tuple[Kind, bytes]:
        """The next whole message. A message that one of another kind cuts short is dropped.

        Raises:
            Disconnected: The other end is not there.
            DeadlineExpired: The deadline passed first.
        """
        parts: list[bytes] = []
        before: Kind | None = None
        while True:
            kind, last, part = self._frame(deadline)
            if kind is not before:
                parts.clear()
            before = kind
            parts.append(part)
            if last:
                return kind, b"".join(parts)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block of messages that may travel as one."""
        yield

    def greet(self, token: bytes, deadline: float | None) -> None:
        """Open the host's side: wait until the agent answers with this host's token."""
        self.write(PREAMBLE, deadline)
        self.send(Kind.HELLO, token)
        answer = HEADER.pack(MAGIC, Kind.READY, True, len(token)) + token
        while (found := self._buffer.find(answer)) < 0:
            del self._buffer[: max(0, len(self._buffer) - len(answer))]
            self._fill(deadline)
        del self._buffer[: found + len(answer)]

    def forget(self) -> None:
        """Drop what was received and not yet read."""
        self._buffer.clear()

    def _frame(self, deadline: float | None) -> tuple[Kind, bool, bytes]:
        self._seek_magic(deadline)
        _, kind, last, length = HEADER.unpack_from(self._buffer)
        end = HEADER.size + length
        while len(self._buffer) < end:
            self._fill(deadline)
        part = bytes(self._buffer[HEADER.size : end])
        del self._buffer[:end]
        return Kind(kind), bool(last), part

    def _seek_magic(self, deadline: float | None) -> None:
        while True:
            found = self._buffer.find(MAGIC)
            del self._buffer[: found if found >= 0 else max(0, len(self._buffer) - len(MAGIC) + 1)]
            if found >= 0 and len(self._buffer) >= HEADER.size:
                return
            self._fill(deadline)

    def _fill(self, deadline: float | None) -> None:
        self._wait(select.POLLIN, deadline)
        try:
            data = os.read(self.fd, FRAME_BYTES)
        except BlockingIOError:
            return
        except ConnectionError as error:
            raise Disconnected from error
        if not data:
            raise Disconnected
        self._buffer += self._take(data)

    def _take(self, data: bytes) -> bytes:
        """What received bytes stand for."""
        return data

    def write(self, data: bytes, deadline: float | None = None) -> None:
        """Write all of it, waiting for room."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._write_fd, view) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENODEV):
                    raise Disconnected from error
                raise

    def _wait(self, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self.fd if event == select.POLLIN else self._write_fd, event)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = poll.poll(left)
        if not ready:
            raise DeadlineExpired
        # A hung-up end may still have bytes to read, never room to write to.
        if event == select.POLLOUT and not ready[0][1] & select.POLLOUT:
            raise Disconnected
