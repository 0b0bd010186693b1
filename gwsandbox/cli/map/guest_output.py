"""The output of functions under ``gwsandbox map`` at a terminal, without anything that the terminal would obey."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Self, TextIO

from gwsandbox.model.text import shown

_CHUNK = 1 << 16
_LONGEST_LINE = 1 << 16  # bytes after which a line is printed without its end


class GuestOutput:
    """Inside the block, what guests write to a terminal comes through a pipe, and is printed line by line, escaped.

    The CLI's own ``sys.stdout`` and ``sys.stderr`` go on to the terminal. Streams that are no terminal are left alone.
    """

    def __init__(self) -> None:
        self._undo = contextlib.ExitStack()
        self._streams: dict[int, _Stream] = {}

    def __enter__(self) -> Self:
        """Connect the pipes.

        Raises:
            OSError: No descriptor is left.
        """
        with contextlib.ExitStack() as undo:
            for fd, name in ((1, "stdout"), (2, "stderr")):
                if os.isatty(fd):
                    stream = undo.enter_context(_Stream(fd, name))
                    self._streams[stream.reader] = stream
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def own_descriptors(self) -> list[int]:
        """Descriptors that a guest shall not have."""
        return [fd for stream in self._streams.values() for fd in (stream.reader, stream.terminal.fileno())]

    def readers(self) -> list[int]:
        """Descriptors that can be read when a guest has written something."""
        return list(self._streams)

    def pass_on(self, print_line: Callable[[TextIO, str], None], *, at_end: bool = False) -> None:
        """Print all whole lines that have come; at the end, also what has no line break."""
        for stream in self._streams.values():
            for line in stream.lines(at_end=at_end):
                print_line(stream.terminal, line)


class _Stream:
    """A pipe in the place of descriptor ``fd``, and a text stream to the terminal that was there."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._pending = b""
        own = getattr(sys, name)
        self.terminal = open(os.dup(fd), "w", encoding=own.encoding, errors="backslashreplace", buffering=1)  # noqa: SIM115 - closed below
        self.reader, writer = os.pipe()
        os.set_blocking(self.reader, False)
        os.dup2(writer, fd)
        os.close(writer)

    def __enter__(self) -> Self:
        self._own = getattr(sys, self._name)
        self._own.flush()
        setattr(sys, self._name, self.terminal)
        return self

    def __exit__(self, *_: object) -> None:
        setattr(sys, self._name, self._own)
        self.terminal.flush()
        os.dup2(self.terminal.fileno(), self._fd)
        self.terminal.close()
        os.close(self.reader)

    def lines(self, *, at_end: bool) -> list[str]:
        """The lines that have come, escaped."""
        with contextlib.suppress(BlockingIOError):
            while chunk := os.read(self.reader, _CHUNK):
                self._pending += chunk
                if len(self._pending) > _LONGEST_LINE and not at_end:
                    break
        *whole, self._pending = self._pending.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if self._pending and (at_end or len(self._pending) > _LONGEST_LINE):
            whole.append(self._pending)
            self._pending = b""
        return [shown(line.decode(errors="replace")) for line in whole]
