"""Orders and cancellations on their way to the supervisor, in packets. Nothing here waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

from gwsandbox.client.processes import Processes
from gwsandbox.client.streams import RunningStreams
from gwsandbox.client.uninterrupted import close_all
from gwsandbox.ipc import call, channel
from gwsandbox.ipc.channel import Cancel, Order, Sent
from gwsandbox.model.task import Command

_ORDERS_TOGETHER = 256  # in one packet; each is some 100 bytes without its work
_WORK_TOGETHER = 1 << 15  # bytes


class Outbox:
    """What is to be sent. An order leaves its place when it is sent, so who is interrupted may send it again.

    Args:
        processes: Who gets it.
        streams: Whose guests' ends travel with the orders of their programs.
    """

    def __init__(self, processes: Processes, streams: RunningStreams) -> None:
        self._processes = processes
        self._streams = streams
        self._orders: deque[tuple[Order, bytes | None]] = deque()
        self._cancels: deque[Cancel] = deque()

    def __bool__(self) -> bool:
        return bool(self._orders or self._cancels)

    @property
    def orders(self) -> int:
        """How many orders wait here."""
        return len(self._orders)

    def add(self, order: Order, large: bytes | None) -> None:
        """Take an order.

        Args:
            order: The order.
            large: Its packed task, where that travels in a memfd.
        """
        self._orders.append((order, large))

    def cancel(self, numbers: Collection[int], *, begun: bool) -> set[int]:
        """Cancel orders: those that wait here, which are given back, and with the supervisor the others.

        Args:
            numbers: Of the orders.
            begun: Whether those are meant too whose time has begun.
        """
        unsent = {order.number for order, _ in self._orders}.intersection(numbers)
        self._orders = deque(entry for entry in self._orders if entry[0].number not in unsent)
        if sent := set(numbers) - unsent:
            self._cancels.append(Cancel(tuple(sent), begun))
        return unsent

    def clear(self) -> None:
        """Send nothing of it."""
        self._orders.clear()
        self._cancels.clear()

    def send_next(self) -> Sent:
        """Send the next packet.

        Raises:
            BrokenPipeError: The supervisor is gone. OSError, MemoryError: The packet cannot be made or sent.
        """
        memfds = self._processes.memfds
        try:
            if not self._orders:
                sent = self._processes.send(channel.pack(self._cancels[0], memfds))
                if sent is Sent.DONE:
                    self._cancels.popleft()
                return sent
            return self._send_orders(self._next_packet(), memfds)
        finally:
            close_all(memfds)

    def drop_first(self) -> int:
        """Leave out the order that cannot be sent; its number."""
        number = self._orders[0][0].number
        self._orders.popleft()
        return number

    def _send_orders(self, orders: list[Order], memfds: deque[int]) -> Sent:
        first, large = self._orders[0]
        descriptor = None if large is None else call.store(large, "gwsandbox-task", memfds)
        streams = self._streams.guests_ends(first.number) if first.streams else ()
        sent = self._processes.send(channel.pack(orders, memfds, descriptor, streams))
        if sent is Sent.DONE:
            if streams:
                self._streams.sent(first.number)
            for _ in orders:
                self._orders.popleft()
        return sent

    def _next_packet(self) -> list[Order]:
        """The orders at the head of those that wait, as many as go into one packet."""
        together: list[Order] = []
        size = 0
        for order, large in self._orders:
            size += len(order.work) if isinstance(order.work, bytes) else 0
            if together and (large or order.streams or (order.work is not None and size > _WORK_TOGETHER)):
                break
            together.append(order)
            if large or order.streams or isinstance(order.work, Command) or len(together) == _ORDERS_TOGETHER:
                break
        return together
