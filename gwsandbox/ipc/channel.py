"""The manager's link to its supervisor: frames over a Unix stream socket, some with descriptors.

A frame is a length and a pickle; both ends are processes of ours. What a guest wrote travels inside as opaque
bytes, or as a descriptor, and is not looked into by the supervisor.
"""

from __future__ import annotations

import array
import functools
import os
import pickle
import socket
import struct
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from gwsandbox.model.limits import Limits
from gwsandbox.model.result import NOT_STARTED, Enforcement, Outcome, Usage
from gwsandbox.model.task import Command
from gwsandbox.model.verdict import Delivery

_HEAD = struct.Struct("=QB")  # length of the pickle, number of descriptors (0 or 1)
_CHUNK = 1 << 16  # bytes; a larger buffer would be mapped and unmapped by malloc each time
_TRUNCATED = int(socket.MSG_CTRUNC)  # as a plain number, as Python computes with an enum's members in Python
_FRAMES_TOGETHER = 1 << 16
LOST = -1  # in the place of a descriptor that could not be received


class Order(NamedTuple):
    """Manager to supervisor: run this.

    ``work`` is a packed ``Task``, a ``Command``, or ``None`` for what the fork brought along. A large packed task
    comes as the frame's descriptor, and is passed on unread.
    """

    number: int
    limits: Limits
    work: bytes | Command | None = None
    descriptor: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_order, (self.number, _pack_limits(self.limits), self.work, self.descriptor)

    def close(self) -> None:
        """It is done with, or comes to nothing."""
        if self.descriptor is not None:
            os.close(self.descriptor)


class Report(NamedTuple):
    """Supervisor to manager: how one attempt ended.

    ``payload`` is the guest's record where it is small; a large one comes as the frame's descriptor. For a
    program it is what it wrote, as (stdout, stderr); the first ``stored`` bytes of each, where that is much, are
    in the frame's descriptor, an ``output.Store``.
    """

    number: int
    outcome: Outcome
    detail: str
    delivery: Delivery = Delivery.NOTHING
    exit_code: int | None = None
    start_time: float | None = None
    end_time: float | None = None
    usage: Usage = Usage()
    enforcement: Enforcement = NOT_STARTED
    payload: bytes | tuple[bytes, bytes] = b""
    stored: tuple[int, int] = (0, 0)
    error: BaseException | None = None


# Nearly all orders of a run have the same limits: they are pickled once, travel as bytes, and are unpickled once.


@functools.lru_cache(maxsize=64)
def _pack_limits(limits: Limits) -> bytes:
    return pickle.dumps(limits, protocol=5)


@functools.lru_cache(maxsize=64)
def _unpack_limits(packed: bytes) -> Limits:
    limits: Limits = pickle.loads(packed)
    return limits


def _make_order(number: int, limits: bytes, work: bytes | Command | None, descriptor: int | None) -> Order:
    return Order(number, _unpack_limits(limits), work, descriptor)


class Channel:
    """One end of the socket, with an outbox and an inbox.

    The supervisor's end does not block: ``post`` and then ``flush`` whenever the socket can be written. The
    manager's does: ``post`` and ``flush`` at once.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._outbox: deque[tuple[memoryview, int | None]] = deque()
        self._inbox = bytearray()
        self._descriptors: deque[int] = deque()
        self.waiting_bytes = 0
        self.waiting_descriptors = 0

    def fileno(self) -> int:
        return self._socket.fileno()

    def post(self, message: list[Order] | Report, descriptor: int | None = None) -> None:
        """Put a message into the outbox; ``descriptor`` is the link's from here on, which closes it."""
        body = pickle.dumps(message, protocol=5)
        head = _HEAD.pack(len(body), 0 if descriptor is None else 1)
        if len(body) < _FRAMES_TOGETHER:
            self._outbox.append((memoryview(head + body), descriptor))
        else:  # not copied once more
            self._outbox += [(memoryview(head), descriptor), (memoryview(body), None)]
        self.waiting_bytes += len(head) + len(body)
        self.waiting_descriptors += descriptor is not None

    def flush(self) -> bool:
        """Send what the socket takes; whether the outbox is empty now.

        Raises:
            OSError: The other end is gone.
        """
        while self._outbox:
            try:
                self._send_some()
            except BlockingIOError:
                return False
        return True

    def _send_some(self) -> None:
        view, descriptor = self._outbox[0]
        if descriptor is None:
            sent = self._socket.send(self._plain_frames())
            self._drop(sent)
            return
        # The descriptor rides on the first byte of its frame; what is left of the frame goes without.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        sent = self._socket.sendmsg([view], rights)
        os.close(descriptor)
        self.waiting_descriptors -= 1
        self._outbox[0] = (view, None)
        self._drop(sent)

    def _plain_frames(self) -> memoryview | bytes:
        """The frames at the head of the outbox that have no descriptor, as many as go into one send."""
        first = self._outbox[0][0]
        if len(first) >= _FRAMES_TOGETHER or len(self._outbox) == 1:
            return first
        together: list[memoryview] = []
        size = 0
        for view, descriptor in self._outbox:
            if descriptor is not None or size + len(view) > _FRAMES_TOGETHER:
                break
            together.append(view)
            size += len(view)
        return b"".join(together)

    def _drop(self, sent: int) -> None:
        self.waiting_bytes -= sent
        while sent:
            view, descriptor = self._outbox[0]
            if sent < len(view):
                self._outbox[0] = (view[sent:], descriptor)
                return
            sent -= len(view)
            self._outbox.popleft()

    def drop(self) -> None:
        """Forget what is in the outbox: nobody will read it."""
        for _, descriptor in self._outbox:
            if descriptor is not None:
                os.close(descriptor)
        self._outbox.clear()
        self.waiting_bytes = self.waiting_descriptors = 0

    def receive(self) -> list[tuple[Any, int | None]]:
        """The whole messages that have come, each with its descriptor; waits for some where the end blocks.

        The descriptor is ``LOST`` where this process has as many open as it may.

        Raises:
            EOFError: The other end is closed and everything that it sent was received.
        """
        try:
            data, descriptors, flags, _ = socket.recv_fds(self._socket, _CHUNK, 8, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data, descriptors, flags = b"", [], 0
        if flags & _TRUNCATED and not descriptors:
            descriptors = [LOST]
        self._descriptors.extend(descriptors)
        if not data:
            raise EOFError
        self._inbox += data
        return list(self._whole_messages())

    def _whole_messages(self) -> Iterator[tuple[Any, int | None]]:
        start = 0
        inbox = memoryview(self._inbox)
        try:
            while len(inbox) - start >= _HEAD.size:
                length, descriptors = _HEAD.unpack_from(inbox, start)
                body = start + _HEAD.size
                if len(inbox) - body < length:
                    break
                message = pickle.loads(inbox[body : body + length])
                yield message, self._descriptors.popleft() if descriptors else None
                start = body + length
        finally:
            inbox.release()
            del self._inbox[:start]

    def end_of_orders(self) -> None:
        """Tell the other end that nothing more will be sent; it can still be received from."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other end is gone already

    def close(self) -> None:
        """Close this end and every descriptor that was not delivered."""
        self.drop()
        while self._descriptors:
            if (fd := self._descriptors.popleft()) != LOST:
                os.close(fd)
        self._socket.close()
