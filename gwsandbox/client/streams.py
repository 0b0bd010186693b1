"""The caller's side of a program's streams, where it is fed by an iterable or its output is handed on as it comes.

Each stream is a pipe. The supervisor has the other end of it: it counts what the guest writes against the output limit,
and passes on what the pipe takes, so a caller that is slow makes the guest wait and nobody else.
"""

from __future__ import annotations

import contextlib
import enum
import io
import os
import select
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, starmap
from typing import Literal

from gwsandbox.client.processes import Processes, forget_private, keep_private
from gwsandbox.ipc.channel import STDERR, STDIN, STDOUT
from gwsandbox.model.task import Command, CommandOutput, OutputChunk

PAUSE = object()
"""What a callback returns that wants nothing more before ``RunningStreams.resume``."""

_CHUNK = 1 << 16  # bytes that are read at a time, and of which a line has no more


class Next(enum.Enum):
    """What follows a step."""

    AGAIN = enum.auto()
    """Wait for the descriptor again."""
    PAUSE = enum.auto()
    """Wait for it when somebody asks for more."""
    END = enum.auto()
    """Nothing: it is closed."""


class _Stream:
    """One pipe: the caller's end and the guest's."""

    def __init__(self, *, is_input: bool) -> None:
        self._ends: deque[io.FileIO] = deque()
        # In one call of C, so that Ctrl-C finds both ends here or none: see ``uninterrupted``.
        self._ends.extend(starmap(io.FileIO, zip(_pipe(), "rw", strict=False)))
        self.own, self.guests = reversed(self._ends) if is_input else self._ends
        os.set_blocking(self.own.fileno(), False)
        keep_private(self.own.fileno())

    def close(self) -> None:
        if not self.own.closed:
            forget_private(self.own.fileno())
        for end in self._ends:
            end.close()


def _pipe() -> Iterator[int]:
    return chain.from_iterable(starmap(os.pipe2, ((os.O_CLOEXEC,),)))


class _Output(_Stream):
    """What a program writes, handed on in chunks or whole lines."""

    mask = select.EPOLLIN

    def __init__(
        self, name: Literal["stdout", "stderr"], hand_on: Callable[[OutputChunk], object], *, lines: bool
    ) -> None:
        super().__init__(is_input=False)
        self._name: Literal["stdout", "stderr"] = name
        self._hand_on = hand_on
        self._lines = lines
        self._rest = b""
        self.late = b""

    def step(self) -> Next:
        """Hand on what has come."""
        data = self._read()
        if data is not None and self._give(data) is PAUSE:
            return Next.PAUSE
        return Next.END if data == b"" else Next.AGAIN

    def finish(self) -> None:
        """The guest is dead: hand on what is left, in the pipe and with the report."""
        while not self.own.closed and (data := self._read()):
            self._give(data)
        late, self.late = self.late, b""
        if late:
            self._give(late)
        rest, self._rest = self._rest, b""
        if rest:
            self._hand_on(OutputChunk(self._name, rest))

    def _read(self) -> bytes | None:
        """What there is; ``None`` where there is nothing now."""
        try:
            return os.read(self.own.fileno(), _CHUNK)
        except BlockingIOError:
            return None

    def _give(self, data: bytes) -> object:
        parts = [data]
        if self._lines:
            *whole, self._rest = (self._rest + data).split(b"\n")
            parts = [line + b"\n" for line in whole]
            if len(self._rest) >= _CHUNK:
                parts.append(self._rest)
                self._rest = b""
        answers = [self._hand_on(OutputChunk(self._name, part)) for part in parts if part]
        return PAUSE if PAUSE in answers else None


class _Input(_Stream):
    """What a program reads, drawn from an iterable as it reads."""

    mask = select.EPOLLOUT

    def __init__(self, data: Iterator[bytes]) -> None:
        super().__init__(is_input=True)
        self._data = data
        self._pending = memoryview(b"")

    def step(self) -> Next:
        """Write what the pipe takes."""
        if not self._pending:
            if (data := next(self._data, None)) is None:
                return Next.END
            self._pending = memoryview(data)
        # The read end is open here until the task is done, so nobody gets SIGPIPE.
        with contextlib.suppress(BlockingIOError):
            self._pending = self._pending[os.write(self.own.fileno(), self._pending) :]
        return Next.AGAIN

    def finish(self) -> None:
        """The guest is dead, and reads no more."""


class Streams:
    """Those of one program, from its order to its result.

    Args:
        command: The program.

    Raises:
        OSError: There is no descriptor for them.
    """

    def __init__(self, command: Command) -> None:
        self._streams: dict[int, _Output | _Input] = {}
        try:
            if command.stdin is not None and not isinstance(command.stdin, bytes):
                self._streams[STDIN] = _Input(iter(command.stdin))
            if command.on_output is not None:
                hand_on, lines = command.on_output, command.lines
                self._streams[STDOUT] = _Output("stdout", hand_on, lines=lines)
                self._streams[STDERR] = _Output("stderr", hand_on, lines=lines)
        except BaseException:
            self.close()
            raise

    @property
    def mask(self) -> int:
        """Which there are."""
        return sum(self._streams)

    def guests_ends(self) -> tuple[int, ...]:
        """Descriptors for the supervisor, in the order of their numbers in ``mask``."""
        return tuple(stream.guests.fileno() for stream in self._streams.values())

    def sent(self) -> None:
        """The supervisor has its ends. That of the input stays open here as well: see ``_Input.step``."""
        for stream in self._streams.values():
            if isinstance(stream, _Output):
                stream.guests.close()

    def waits(self) -> list[tuple[int, int]]:
        """Descriptors to wait for, each with an epoll mask."""
        return [(stream.own.fileno(), stream.mask) for stream in self._streams.values() if not stream.own.closed]

    def step(self, fd: int) -> Next:
        """A descriptor is ready: do what there is to do, code of the user's among it."""
        for stream in self._streams.values():
            if not stream.own.closed and stream.own.fileno() == fd:
                if (following := stream.step()) is Next.END:
                    stream.close()
                return following
        return Next.END

    def keep_rest(self, output: CommandOutput) -> None:
        """What the supervisor could not pass on."""
        for number, data in ((STDOUT, output.stdout), (STDERR, output.stderr)):
            stream = self._streams.get(number)
            if isinstance(stream, _Output):
                stream.late = data

    def finish(self) -> None:
        """The task is done: hand on what is left of its output, and close all."""
        for stream in self._streams.values():
            stream.finish()
        self.close()

    def close(self) -> None:
        """Close all; safe to call again."""
        for stream in self._streams.values():
            stream.close()


class RunningStreams:
    """The streams of the programs of one session.

    Nothing of the user's is called from here but by ``calls``: whoever drives the session makes them, one after the
    other, before it takes results. One that was interrupted may be made again.

    Args:
        processes: Whose epoll the descriptors are waited for by.
    """

    def __init__(self, processes: Processes) -> None:
        self.calls: deque[Callable[[], None]] = deque()
        self._processes = processes
        self._by_order: dict[int, Streams] = {}
        self._orders: dict[int, int] = {}  # by descriptor, of those that are waited for
        self._paused: dict[int, list[tuple[int, int]]] = {}

    def add(self, order: int, command: Command) -> int:
        """Open the streams of a program; which there are.

        Raises:
            OSError: There is no descriptor for them.
        """
        if (interrupted := self._by_order.pop(order, None)) is not None:
            interrupted.close()
        self._by_order[order] = Streams(command)
        return self._by_order[order].mask

    def guests_ends(self, order: int) -> tuple[int, ...]:
        """See ``Streams``."""
        return self._by_order[order].guests_ends()

    def sent(self, order: int) -> None:
        """The supervisor has its ends of them."""
        self._by_order[order].sent()
        for fd, mask in self._by_order[order].waits():
            self._wait_for(order, fd, mask)

    def _wait_for(self, order: int, fd: int, mask: int) -> None:
        assert self._processes.epoll is not None
        self._orders[fd] = order
        with contextlib.suppress(FileExistsError):  # an interrupted call has done so
            self._processes.epoll.register(fd, mask)

    def _forget(self, fd: int) -> None:
        assert self._processes.epoll is not None
        if self._orders.pop(fd, None) is not None and not self._processes.epoll.closed:
            with contextlib.suppress(FileNotFoundError):  # likewise
                self._processes.epoll.unregister(fd)

    def take(self, ready: dict[int, int]) -> set[int]:
        """Have calls of what is ready; the descriptors that are none of a stream.

        Args:
            ready: Descriptors, with their masks.
        """
        for fd, mask in ready.items():
            if (order := self._orders.get(fd)) is not None:
                self._forget(fd)
                self.calls.append(partial(self._step, order, fd, mask & (select.EPOLLIN | select.EPOLLOUT)))
                ready = {other: mask for other, mask in ready.items() if other != fd}
        return set(ready)

    def _step(self, order: int, fd: int, mask: int) -> None:
        streams = self._by_order.get(order)
        following = Next.END if streams is None else streams.step(fd)
        if following is Next.AGAIN:
            self._wait_for(order, fd, mask)
        elif following is Next.PAUSE:
            self._paused.setdefault(order, []).append((fd, mask))

    def resume(self, order: int) -> None:
        """Wait again for what was paused."""
        for fd, mask in self._paused.pop(order, ()):
            self._wait_for(order, fd, mask)

    def keep_rest(self, order: int, output: CommandOutput) -> None:
        """What of a program's output came with its report."""
        if (streams := self._by_order.get(order)) is not None:
            streams.keep_rest(output)

    def finish(self, order: int) -> None:
        """The task is done."""
        if order in self._by_order:
            self.calls.append(partial(self._finish, order))

    def _finish(self, order: int) -> None:
        if (streams := self._by_order.get(order)) is not None:
            for fd in [fd for fd, other in self._orders.items() if other == order]:
                self._forget(fd)
            self._paused.pop(order, None)
            streams.finish()
            self._by_order.pop(order, None)

    def make_calls(self) -> None:
        """Make the calls that there are.

        Raises:
            Exception: What code of the user's raised. The next call of this goes on.
        """
        while self.calls:
            self.calls[0]()
            self.calls.popleft()

    def drop_call(self) -> None:
        """Leave out the call that raised."""
        self.calls.popleft()

    def close(self) -> None:
        """Close all, and hand on nothing more."""
        self.calls.clear()
        for streams in self._by_order.values():
            streams.close()
        self._by_order.clear()
        self._orders.clear()
