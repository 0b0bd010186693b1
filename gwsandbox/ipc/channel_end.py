"""The supervisor's end of the socket to the caller: what waits to be sent, and what was received and is to be read."""

from __future__ import annotations

import _socket
import errno
import os
from collections import deque

from gwsandbox.ipc.channel import (
    ANCILLARY,
    HEAD,
    PACKET,
    READ_SECONDS,
    RECEIVE_FLAGS,
    Cancel,
    Message,
    Order,
    Packet,
    Received,
    Report,
    Sent,
    Signal,
    descriptors_of,
    pack,
    send,
    unpack,
)
from gwsandbox.linux.errnos import NOT_NOW, Patience, errno_of
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.limits import Limits
from gwsandbox.model.result import Outcome
from gwsandbox.model.verdict import Delivery


class Channel:
    """The supervisor's end of the socket, with an outbox. It never blocks: ``post``, and then ``flush``."""

    def __init__(self, end: _socket.socket) -> None:
        self._socket = end
        self._outbox: deque[tuple[Packet, deque[int]]] = deque()
        self._packet: tuple[bytes, list[tuple[int, int, bytes]], int] | None = None  # received, and not yet read
        self._patience = Patience(READ_SECONDS)
        self._last_order = 0
        self.waiting_bytes = 0
        self.waiting_descriptors = 0

    def fileno(self) -> int:
        """The descriptor to wait on."""
        return self._socket.fileno()

    def post(self, message: Message, descriptor: int | None = None) -> None:
        """Put a message into the outbox; ``descriptor`` is the channel's from here on, which closes it."""
        owned: deque[int] = deque(() if descriptor is None else (descriptor,))
        try:
            packet = pack(message, owned, descriptor)
        except (OSError, MemoryError) as error:
            _close_all(owned)
            if not isinstance(message, Report) or message.error is not None:
                raise
            self.post(_without_payload(message, error))
            return
        self._outbox.append((packet, owned))
        self.waiting_bytes += len(packet.data)
        self.waiting_descriptors += len(packet.descriptors)

    def flush(self) -> Sent:
        """Send what the socket takes; DONE where the outbox is empty now.

        Raises:
            OSError: The other end is gone, or the kernel refuses for good.
        """
        while self._outbox:
            if (sent := send(self._socket, self._outbox[0][0])) is not Sent.DONE:
                return sent
            self._drop_first()
        return Sent.DONE

    def _drop_first(self) -> None:
        packet, owned = self._outbox.popleft()
        self.waiting_bytes -= len(packet.data)
        self.waiting_descriptors -= len(packet.descriptors)
        _close_all(owned)

    def drop(self) -> None:
        """Forget what is in the outbox: nobody will read it."""
        while self._outbox:
            self._drop_first()

    def receive(self) -> list[Order] | Signal | Cancel | None:
        """What one packet holds, without waiting; ``None`` where none has come.

        Each order has its own descriptor, or minus an errno where that or the order itself could not be received.

        Raises:
            EOFError: The other end is closed, and everything that it sent was received; or it sends what is no packet.
            OSError, MemoryError: The kernel cannot give it now. It is still to be received.
        """
        if self._packet is None and not self._take_packet():
            return None
        assert self._packet is not None
        data, ancillary, flags = self._packet
        try:
            received = unpack(data, ancillary, flags)
            _check(received.message)
        except (OSError, MemoryError) as error:
            received = self._unread(error)
        except Exception as error:
            self._drop_packet()
            raise EOFError from error
        self._packet = None
        self._patience.renew()
        if isinstance(received.message, Signal | Cancel):
            return received.message
        return self._orders_in(received, data, descriptors_of(ancillary))

    def _take_packet(self) -> bool:
        """Whether a packet has come, which stays here until it is read."""
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(PACKET, ANCILLARY, RECEIVE_FLAGS)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in NOT_NOW:
                raise
            data = b""
        if len(data) < HEAD.size:
            raise EOFError
        self._packet = data, ancillary, flags
        return True

    def _unread(self, error: OSError | MemoryError) -> Received:
        """What stands for a packet that cannot be read.

        Raises:
            OSError, MemoryError: It may be read later.
        """
        try:
            self._patience.bear(error)
        except (OSError, MemoryError):
            return Received(None, -errno_of(error))
        raise error

    def _drop_packet(self) -> None:
        if self._packet is not None:
            (_, ancillary, _), self._packet = self._packet, None
            _close_all(deque(descriptors_of(ancillary)))

    def _orders_in(self, received: Received, data: bytes, descriptors: list[int]) -> list[Order]:
        """Those that did not come before: a caller that is interrupted may send a packet twice."""
        orders, descriptor = received
        _, first, last = HEAD.unpack_from(data)
        if orders is None:
            orders = [Order(number, Limits(), descriptor=descriptor) for number in range(first, last + 1) if number]
        elif descriptor is not None:
            orders = [orders[0]._replace(descriptor=descriptor)]
        if orders and orders[0].streams and descriptor is None:
            orders = [orders[0]._replace(ends=tuple(descriptors[-orders[0].streams.bit_count() :]))]
        fresh = [order for order in orders if order.number > self._last_order]
        kept = {fd for order in fresh for fd in order.descriptors()}
        for fd in descriptors:
            if fd not in kept:
                os.close(fd)
        self._last_order = max(self._last_order, last)
        return fresh

    def close(self) -> None:
        """Close this end, and every descriptor that was not sent or not read."""
        self.drop()
        self._drop_packet()
        self._socket.close()


def _check(message: object) -> None:
    """See that a message is one of those that a caller sends.

    Raises:
        TypeError: It is none.
    """
    if message is None or isinstance(message, Signal | Cancel):
        return
    if not isinstance(message, list) or not message or any(type(order) is not Order for order in message):
        raise TypeError(f"no orders, but {type(message).__name__}")


def _without_payload(report: Report, error: OSError | MemoryError) -> Report:
    """What can still be said of an attempt whose result finds no memory or descriptor to travel in."""
    reason = SandboxError("send result", errno=getattr(error, "errno", None) or errno.ENOMEM, remedy="raise ulimit -n")
    return report._replace(
        outcome=Outcome.SANDBOX_ERROR, detail=str(reason), delivery=Delivery.NOTHING, payload=b"", error=reason
    )


def _close_all(descriptors: deque[int]) -> None:
    while descriptors:
        os.close(descriptors.popleft())
