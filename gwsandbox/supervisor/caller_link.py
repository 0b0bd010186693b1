"""The supervisor's dealings with its caller: orders come in, reports go out, and its death is noticed."""

from __future__ import annotations

import errno
import functools
import os
import select
import time
from collections import deque
from collections.abc import Callable

from gwsandbox.ipc.channel import Cancel, Message, Order, Report, Sent, Signal
from gwsandbox.ipc.channel_end import Channel
from gwsandbox.linux.errnos import Patience
from gwsandbox.model.result import Outcome
from gwsandbox.model.verdict import NEVER_STARTED
from gwsandbox.supervisor.attempt import failure
from gwsandbox.supervisor.event_loop import EventLoop
from gwsandbox.supervisor.reserve import Reserve

# Reports that the caller has not fetched hold memory and descriptors; past these no further guest is started.
_UNREAD_BYTES = 64 * 1024**2
_UNREAD_DESCRIPTORS = 32

# Orders whose task came as a descriptor, past which no more are received: descriptors are needed for guests.
_ORDERS_WITH_DESCRIPTORS = 4
_FEW_DESCRIPTORS = 256
_DESCRIPTORS_PER_ORDER = 16  # where this process may have few, one such order for so many of them

_LATER_SECONDS = 0.02  # until what the kernel had no memory for is tried again


class CallerLink:
    """The link to the caller, which may stop reading, be stopped, or die at any moment.

    Args:
        channel: The supervisor's end of the socket.
        caller: Its pid.
        loop: The supervisor's.
        reserve: The supervisor's.
        closed: Called once, when the caller wants no more or is gone.
        signalled: Gets each signal for the guests; whether the run goes on.
        cancelled: Gets the orders to be ended, once those that waited here are.
    """

    def __init__(
        self,
        channel: Channel,
        caller: int,
        loop: EventLoop,
        reserve: Reserve,
        *,
        closed: Callable[[], None],
        signalled: Callable[[int], bool],
        cancelled: Callable[[Cancel], None],
    ) -> None:
        self.orders: deque[Order] = deque()
        self.is_closed = False
        self._channel, self._caller = channel, caller
        self._loop, self._reserve = loop, reserve
        self._closed, self._signalled, self._cancelled = closed, signalled, cancelled
        self._mask = 0
        self._resend_at: float | None = None
        self._receive_at: float | None = None
        self._send_patience, self._receive_patience = Patience(), Patience()
        self._pidfd = -1

    def watch(self) -> None:
        """Learn of the caller's death, by its pidfd."""
        try:
            self._pidfd = os.pidfd_open(self._caller)
        except ProcessLookupError:
            self.close_down()
            return
        self._loop.watch(self._pidfd, select.EPOLLIN, self._caller_died)

    def _caller_died(self) -> None:
        self._loop.forget(self._pidfd)
        self.close_down()
        self._channel.drop()  # others may hold its end of the socket, which then never ends

    def close_down(self) -> None:
        """Take no more orders, and cancel those that wait."""
        if self.is_closed:
            return
        self.is_closed = True
        while self.orders:
            self.cancel(self.orders.popleft())
        self._closed()

    def close(self) -> None:
        """Close the socket, and with it the run in the caller's eyes."""
        self._channel.close()

    def descriptors(self) -> list[int]:
        """Those that belong to the link and to the orders that wait."""
        waiting = [fd for order in self.orders for fd in order.descriptors()]
        return [fd for fd in (self._channel.fileno(), self._pidfd, *waiting) if fd >= 0]

    # --- orders -------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take what the caller asks for, as long as there is room for the descriptors that come along."""
        try:
            while self._may_receive() and (received := self._receive_packet()) is not None:
                if isinstance(received, Cancel):
                    self._withdraw(received)
                elif not isinstance(received, Signal):
                    self.orders.extend(received)
                elif not self._signalled(received.signal):
                    self.close_down()
            self._receive_patience.renew()
        except EOFError:
            self.close_down()
        except (OSError, MemoryError) as error:
            self._receive_patience.bear(error)
            self._receive_at = time.monotonic() + _LATER_SECONDS

    def _withdraw(self, cancel: Cancel) -> None:
        """The caller wants some orders no more."""
        numbers = set(cancel.numbers)
        for order in [order for order in self.orders if order.number in numbers]:
            self.orders.remove(order)
            self.cancel(order)
        self._cancelled(cancel)

    def _receive_packet(self) -> list[Order] | Signal | Cancel | None:
        if self._reserve.descriptors >= _FEW_DESCRIPTORS:
            return self._channel.receive()
        return self._reserve.use_at_once(self._channel.receive)  # a descriptor that finds no place is lost for good

    def _may_receive(self) -> bool:
        if self.is_closed or self._receive_at is not None:
            return False
        held = [order.number for order in self.orders if order.descriptor is not None or order.ends]
        return len(held) < min(_ORDERS_WITH_DESCRIPTORS, 1 + self._reserve.descriptors // _DESCRIPTORS_PER_ORDER)

    # --- reports ------------------------------------------------------------------------------------

    def say(self, message: Message) -> None:
        """Send what concerns the run as a whole."""
        self._channel.post(message)

    def report(self, made: Report, descriptor: int | None = None) -> None:
        """Send a report, with the large value that it has, as soon as the socket takes it."""
        self._reserve.use(functools.partial(self._channel.post, made, descriptor))

    def fail(self, order: Order, error: Exception) -> None:
        """Report that we failed, and not the task."""
        order.close()
        self.report(failure(order, error))

    def cancel(self, order: Order) -> None:
        """Report that an order was never started."""
        order.close()
        self.report(Report(order.number, Outcome.CANCELLED, NEVER_STARTED))

    @property
    def is_clogged(self) -> bool:
        """Whether the caller has not fetched so much that nothing more shall be started."""
        return self._channel.waiting_bytes >= _UNREAD_BYTES or self._channel.waiting_descriptors >= _UNREAD_DESCRIPTORS

    @property
    def has_reports(self) -> bool:
        """Whether something is still to be sent."""
        return bool(self._channel.waiting_bytes)

    # --- the loop -----------------------------------------------------------------------------------

    def moments(self) -> tuple[float | None, float | None]:
        """Monotonic moments at which ``update`` has to be called."""
        return self._resend_at, self._receive_at

    def look(self, now: float) -> None:
        """To be called when one of ``moments`` has come."""
        if self._receive_at is not None and now >= self._receive_at:
            self._receive_at = None

    def update(self) -> None:
        """Send what is waiting, and be woken for what the socket does not take."""
        sent = Sent.DONE
        if self._channel.waiting_bytes:
            try:
                sent = self._channel.flush()
            except OSError:
                self.close_down()
                self._channel.drop()
        if sent is Sent.LATER:
            self._send_patience.bear(OSError(errno.ENOBUFS, "send report"))
            self._resend_at = time.monotonic() + _LATER_SECONDS
        else:
            self._send_patience.renew()
            self._resend_at = None
        mask = select.EPOLLIN if self._may_receive() else 0
        if sent is Sent.FULL:
            mask |= select.EPOLLOUT
        if mask != self._mask:
            # Not left registered for nothing: EPOLLHUP comes unasked, and would keep us awake.
            self._loop.forget(self._channel.fileno())
            if mask:
                self._loop.watch(self._channel.fileno(), mask, self._receive)
            self._mask = mask
