"""The socket between caller and supervisor: packets that are whole or absent, descriptors, peers that are gone."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MIB, examples

from gwsandbox import Limits, Outcome, SandboxError
from gwsandbox.ipc import channel
from gwsandbox.ipc.channel import (
    ANCILLARY,
    LOST,
    PACKET,
    Ended,
    Order,
    Received,
    Report,
    Sent,
    Signal,
    Started,
)
from gwsandbox.ipc.channel_end import Channel


class Pair:
    """The supervisor's channel, and the caller's bare end."""

    def __init__(self) -> None:
        self.end, supervisors = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel = Channel(supervisors)

    def order(self, orders: Sequence[Order], fd: int | None = None) -> Sent:
        memfds: deque[int] = deque(() if fd is None else (fd,))
        sent = channel.send(self.end, channel.pack(orders, memfds, fd))
        for memfd in memfds:
            os.close(memfd)
        return sent

    def receive(self) -> Received:
        """What the caller gets; the descriptor of a large pickle is closed, what came with the message is not."""
        data, ancillary, flags, _ = self.end.recvmsg(PACKET, ANCILLARY, channel.RECEIVE_FLAGS)
        found = channel.unpack(data, ancillary, flags)
        for fd in set(channel.descriptors_of(ancillary)) - {found.descriptor}:
            os.close(fd)
        return found

    def close(self) -> None:
        self.end.close()
        self.channel.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.close()


def report(number: int, payload: bytes = b"") -> Report:
    return Report(number, Outcome.SUCCEEDED, "", payload=payload)


def descriptor(content: bytes) -> int:
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    os.pwrite(fd, content, 0)
    return fd


def content(fd: int | None) -> bytes:
    assert fd is not None
    with open(fd, "rb") as file:
        return file.read()


def test_orders_and_reports(pair: Pair) -> None:
    orders = [Order(1, Limits(memory=5)), Order(2, Limits(), b"packed"), Order(3, Limits(), inherited=7)]
    assert pair.order(orders) is Sent.DONE
    assert pair.channel.receive() == orders
    assert pair.channel.receive() is None
    pair.channel.post(report(1, b"x"))
    assert pair.channel.flush() is Sent.DONE
    assert pair.receive() == (report(1, b"x"), None)


def test_what_concerns_the_run(pair: Pair) -> None:
    error = SandboxError("step", path="/path", value="value", errno=5, remedy="remedy")
    for message in (Started("group"), Ended(error, "note")):
        pair.channel.post(message)
    assert pair.channel.flush() is Sent.DONE
    assert pair.receive().message == Started("group")
    ended = pair.receive().message
    assert (str(ended.error), ended.note) == (str(error), "note")


def test_nothing_is_sent_before_flush(pair: Pair) -> None:
    pair.channel.post(report(1))
    assert pair.channel.waiting_bytes > 0
    with pytest.raises(BlockingIOError):
        pair.receive()
    assert pair.channel.flush() is Sent.DONE
    assert pair.channel.waiting_bytes == 0
    assert pair.receive().message.number == 1


@settings(max_examples=examples(60))
@given(st.lists(st.tuples(st.integers(0, 3 * PACKET), st.booleans()), min_size=1, max_size=6))
def test_messages_of_any_size_arrive_whole_with_their_descriptors(messages: list[tuple[int, bool]]) -> None:
    pair = Pair()
    for number, (size, attached) in enumerate(messages, 1):
        pair.channel.post(report(number, b"x" * size), descriptor(b"%d" % number) if attached else None)
    while pair.channel.flush() is not Sent.DONE:
        pass
    for number, (size, attached) in enumerate(messages, 1):
        message, fd = pair.receive()
        assert message == report(number, b"x" * size)
        assert (content(fd) if attached else fd) == (b"%d" % number if attached else None)
    pair.close()


def test_a_large_order_arrives_beside_its_descriptor(pair: Pair) -> None:
    pair.order([Order(1, Limits(), b"x" * MIB)], descriptor(b"attached"))
    orders = pair.channel.receive()
    assert isinstance(orders, list)
    assert orders[0].work == b"x" * MIB
    assert content(orders[0].descriptor) == b"attached"


def test_orders_that_are_sent_twice_arrive_once(pair: Pair) -> None:
    """As a caller does that is interrupted between sending them and noting it."""
    first, second, third = (Order(number, Limits()) for number in (1, 2, 3))
    pair.order([first, second])
    pair.order([first, second])
    pair.order([second, third])
    assert [pair.channel.receive() for _ in range(3)] == [[first, second], [], [third]]
    pair.order([Order(4, Limits())], descriptor(b"a"))
    pair.order([Order(4, Limits())], descriptor(b"b"))
    orders = pair.channel.receive()
    assert isinstance(orders, list)
    assert content(orders[0].descriptor) == b"a"
    assert pair.channel.receive() == []  # and the second descriptor is closed: all tests look for it


def test_what_a_full_socket_does_not_take_waits(pair: Pair) -> None:
    posted = 0
    while pair.channel.flush() is Sent.DONE:
        posted += 1
        pair.channel.post(report(posted, bytes(PACKET // 2)), descriptor(b"%d" % posted))
    assert pair.channel.flush() is Sent.FULL
    assert pair.channel.waiting_bytes > 0
    for number in range(1, posted + 1):
        message, fd = pair.receive()
        assert (message.number, content(fd)) == (number, b"%d" % number)
        pair.channel.flush()
    assert (pair.channel.waiting_bytes, pair.channel.waiting_descriptors) == (0, 0)


@pytest.mark.parametrize("number", ["ENOBUFS", "ENOMEM", "ETOOMANYREFS", "EMFILE"])
def test_what_the_kernel_refuses_for_now_is_kept(number: str, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        """A socket for whose message the kernel has no room."""

        def sendmsg(self, *_: Any) -> int:
            raise OSError(getattr(errno, number), "refused")

        def close(self) -> None:
            """Nothing to close."""

    pair.channel.post(report(1))
    real = pair.channel._socket
    monkeypatch.setattr(pair.channel, "_socket", Refusing())
    assert pair.channel.flush() is Sent.LATER
    monkeypatch.setattr(pair.channel, "_socket", real)
    assert pair.channel.flush() is Sent.DONE
    assert pair.receive().message.number == 1


def test_the_end_of_the_other_side(pair: Pair) -> None:
    pair.order([Order(1, Limits())])
    pair.end.shutdown(socket.SHUT_WR)
    assert pair.channel.receive() == [Order(1, Limits())]
    for _ in range(2):
        with pytest.raises(EOFError):
            pair.channel.receive()
    pair.channel.post(report(2))  # the other direction still works
    assert pair.channel.flush() is Sent.DONE
    assert pair.receive().message.number == 2


def test_a_peer_that_is_gone(pair: Pair) -> None:
    pair.channel.post(report(2), descriptor(b""))
    pair.end.close()
    with pytest.raises(BrokenPipeError):
        pair.channel.flush()
    pair.channel.drop()
    assert (pair.channel.waiting_bytes, pair.channel.waiting_descriptors) == (0, 0)
    with pytest.raises(EOFError):
        pair.channel.receive()


def test_descriptors_that_were_not_sent_are_closed(pair: Pair) -> None:
    before = os.listdir("/proc/self/fd")
    pair.channel.post(report(1, bytes(2 * PACKET)), descriptor(b"never sent"))
    pair.channel.drop()
    assert os.listdir("/proc/self/fd") == before


def test_a_descriptor_that_does_not_fit_is_said_to_be_lost(pair: Pair) -> None:
    pair.channel.post(report(1), descriptor(b"a"))
    pair.channel.post(report(2), descriptor(b"b"))
    pair.channel.post(report(3, bytes(2 * PACKET)))
    pair.channel.flush()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert pair.receive() == (report(1), LOST)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    message, fd = pair.receive()
    assert (message.number, content(fd)) == (2, b"b")
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        data, ancillary, flags, _ = pair.end.recvmsg(PACKET, ANCILLARY, channel.RECEIVE_FLAGS)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert channel.unpack(data, ancillary, flags) == (None, LOST)
    assert channel.number_of(data) == 3


def test_a_report_that_finds_no_descriptor_says_so(pair: Pair) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        pair.channel.post(report(5, bytes(2 * PACKET)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    pair.channel.flush()
    message = pair.receive().message
    assert (message.number, message.outcome, message.payload) == (5, Outcome.SANDBOX_ERROR, b"")
    assert message.detail == "send result: Too many open files [errno 24]; raise ulimit -n"


def test_messages_are_plain_and_small() -> None:
    """A report of a small result costs its pickle; which must not grow unnoticed."""
    assert len(pickle.dumps(report(1), protocol=5)) < 600
    assert len(pickle.dumps(Order(1, Limits(memory=5)), protocol=5)) < 400


def test_a_signal_is_none_of_the_orders(pair: Pair) -> None:
    pair.order([Order(1, Limits())])
    assert channel.send(pair.end, channel.pack(Signal(15), deque())) is Sent.DONE
    pair.order([Order(2, Limits())])
    assert [pair.channel.receive() for _ in range(3)] == [[Order(1, Limits())], Signal(15), [Order(2, Limits())]]
