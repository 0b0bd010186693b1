"""Messages between host and guest, over a byte stream that outlives both ends' mistakes.

The host's end may vanish in the middle of a message (Ctrl-C), and the next host speaks on the same stream. So
a new host sends a preamble of zeros, longer than any frame: whatever frame the guest was in the middle of is
filled up by it, and what is left over is skipped up to the next MAGIC. The other way round the host skips
everything up to the READY that repeats its own token.

Used on both sides: standard library only, and nothing newer than Python 3.11.
"""

import enum
import errno
import os
import select
import struct
import time

MAGIC = b"GWvm"
FRAME_BYTES = 64 * 1024
HEADER = struct.Struct(">4sBBI")
PREAMBLE = bytes(FRAME_BYTES + HEADER.size)


class Kind(enum.IntEnum):
    """What a message says. H is sent by the host, G by the guest."""

    HELLO = 1  # H: a token; forget every session before this one
    READY = 2  # G: the same token
    TREE = 3  # H: the work tree, as JSON {path: [mode, mtime_ns, size]}
    NEED = 4  # G: the paths whose content the guest lacks, as JSON
    FILE = 5  # both: JSON {path, mode, mtime_ns, link} on one line, then the content
    LAID = 6  # H: that was the last file; G: the tree is in place
    RUN = 7  # H: an order, as JSON
    OUTPUT = 8  # G: bytes that the command wrote
    EXIT = 9  # G: JSON {code}; the end of an order


class Gone(Exception):
    """The other end is not there (any more)."""


class Late(Exception):
    """The deadline passed before a whole message was there."""


class Channel:
    """Whole messages on one non-blocking descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._buffer = bytearray()
        os.set_blocking(fd, False)

    def send(self, kind: Kind, payload: bytes = b"") -> None:
        view = memoryview(payload)
        for start in range(0, max(len(view), 1), FRAME_BYTES):
            part = view[start : start + FRAME_BYTES]
            last = start + FRAME_BYTES >= len(view)
            self.write(HEADER.pack(MAGIC, kind, last, len(part)) + part)

    def receive(self, deadline: float | None = None) -> tuple[Kind, bytes]:
        """The next whole message. A message cut short by another of a different kind is dropped."""
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

    def greet(self, token: bytes, deadline: float | None) -> None:
        """The host's opening: wait until the guest answers with our own token."""
        self.write(PREAMBLE, deadline)
        self.send(Kind.HELLO, token)
        answer = HEADER.pack(MAGIC, Kind.READY, True, len(token)) + token
        while (found := self._buffer.find(answer)) < 0:
            del self._buffer[: max(0, len(self._buffer) - len(answer))]
            self._fill(deadline)
        del self._buffer[: found + len(answer)]

    def forget(self) -> None:
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
            raise Gone from error
        if not data:
            raise Gone
        self._buffer += data

    def write(self, data: bytes, deadline: float | None = None) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.fd, view) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, deadline)
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENODEV):
                    raise Gone from error
                raise

    def _wait(self, event: int, deadline: float | None) -> None:
        poll = select.poll()
        poll.register(self.fd, event)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = poll.poll(left)
        if not ready:
            raise Late
        # A hung-up end may still have bytes to be read, never room to be written to.
        if event == select.POLLOUT and not ready[0][1] & select.POLLOUT:
            raise Gone
