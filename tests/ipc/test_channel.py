"""The link between manager and supervisor: frames however they are cut, descriptors, peers that are gone."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import MIB, examples

from gwsandbox import Limits, Outcome
from gwsandbox.ipc.channel import LOST, Channel, Order, Report


@pytest.fixture
def pair() -> Iterator[tuple[Channel, Channel]]:
    ends = socket.socketpair()
    links = Channel(ends[0]), Channel(ends[1])
    yield links
    for link in links:
        link.close()


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


def receive(link: Channel, count: int) -> list[tuple[Any, int | None]]:
    found: list[tuple[Any, int | None]] = []
    while len(found) < count:
        found += link.receive()
    return found


def test_orders_and_reports(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    orders = [Order(1, Limits(memory=5)), Order(2, Limits(), b"packed")]
    one.post(orders)
    assert one.flush()
    assert receive(other, 1) == [(orders, None)]
    other.post(report(1, b"x"))
    assert other.flush()
    assert receive(one, 1) == [(report(1, b"x"), None)]


def test_nothing_is_sent_before_flush(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    other._socket.setblocking(False)
    one.post(report(1))
    assert one.waiting_bytes > 0
    assert other.receive() == []
    assert one.flush()
    assert one.waiting_bytes == 0
    assert len(other.receive()) == 1


def test_each_descriptor_comes_with_its_own_frame(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    for number in range(20):
        one.post(report(number), descriptor(b"%d" % number) if number % 3 else None)
    assert one.waiting_descriptors == 13
    assert one.flush()
    assert one.waiting_descriptors == 0
    for number, (message, fd) in enumerate(receive(other, 20)):
        assert message.number == number
        assert (content(fd) if number % 3 else fd) == (b"%d" % number if number % 3 else None)


class Cutting:
    """A socket that takes or gives few bytes at a time, as a busy one may."""

    def __init__(self, real: socket.socket, sizes: Iterator[int]) -> None:
        self._real = real
        self._sizes = sizes

    def send(self, data: Any) -> int:
        return self._real.send(data[: next(self._sizes)])

    def sendmsg(self, buffers: list[Any], rights: Any) -> int:
        return self._real.sendmsg([buffers[0][: next(self._sizes)]], rights)

    def recvmsg(self, size: int, *rest: int) -> Any:
        return self._real.recvmsg(next(self._sizes), *rest)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


@settings(max_examples=examples(60))
@given(
    st.lists(st.tuples(st.binary(max_size=300), st.booleans()), min_size=1, max_size=6),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
    st.lists(st.integers(1, 40), min_size=1, max_size=20),
)
def test_frames_cut_at_any_byte_arrive_whole_with_their_descriptors(
    messages: list[tuple[bytes, bool]], sent: list[int], received: list[int]
) -> None:
    ends = socket.socketpair()
    one = Channel(Cutting(ends[0], _cycle(sent)))  # type: ignore[arg-type]
    other = Channel(Cutting(ends[1], _cycle(received)))  # type: ignore[arg-type]
    for number, (payload, with_descriptor) in enumerate(messages):
        one.post(report(number, payload), descriptor(payload) if with_descriptor else None)
    ends[0].setblocking(False)
    found: list[tuple[Any, int | None]] = []
    while len(found) < len(messages):
        one.flush()
        found += other.receive()
    for number, (message, fd) in enumerate(found):
        payload, with_descriptor = messages[number]
        assert (message.number, message.payload) == (number, payload)
        assert (fd is not None) == with_descriptor
        if fd is not None:
            assert content(fd) == payload
    one.close()
    other.close()


def _cycle(sizes: list[int]) -> Iterator[int]:
    while True:
        yield from sizes


def test_what_a_full_socket_does_not_take_waits(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one._socket.setblocking(False)
    for number in range(8):
        one.post(report(number, bytes(MIB)), descriptor(b"%d" % number))
    found: list[tuple[Any, int | None]] = []
    assert not one.flush()
    assert 0 < one.waiting_bytes < 8 * 1.1 * MIB
    while len(found) < 8:
        found += other.receive()
        one.flush()
    assert one.waiting_bytes == 0
    assert [content(fd) for _, fd in found] == [b"%d" % number for number in range(8)]


def test_the_end_of_the_other_side(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.post(report(1))
    one.flush()
    one.end_of_orders()
    assert len(other.receive()) == 1
    with pytest.raises(EOFError):
        other.receive()
    other.post(report(2))  # the other direction still works
    assert other.flush()
    assert receive(one, 1)[0][0].number == 2


def test_a_peer_that_is_gone(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    other.post(report(1))
    other.flush()
    one.post(report(2), descriptor(b""))
    other.close()
    with pytest.raises(OSError):  # of which kind depends on what is in the socket
        while True:
            one.flush()
            one.post(report(3))
    one.drop()
    assert (one.waiting_bytes, one.waiting_descriptors) == (0, 0)
    assert [message.number for message, _ in receive(one, 1)] == [1]
    with pytest.raises(EOFError):
        one.receive()
    one.end_of_orders()  # says nothing about it


def test_a_frame_that_ends_in_the_middle_is_no_message(pair: tuple[Channel, Channel]) -> None:
    one, other = pair
    one.post(report(1))
    whole = bytes(one._outbox[0][0])
    one.drop()
    one._socket.sendall(whole + whole[:-1])
    one._socket.shutdown(socket.SHUT_WR)
    assert [message.number for message, _ in other.receive()] == [1]
    with pytest.raises(EOFError):
        other.receive()


def test_descriptors_that_were_not_delivered_are_closed() -> None:
    ends = socket.socketpair()
    one, other = Channel(ends[0]), Channel(ends[1])
    one.post(report(1), descriptor(b"never sent"))
    one.close()
    other.close()
    ends = socket.socketpair()
    one, other = Channel(ends[0]), Channel(ends[1])
    one.post(report(1, bytes(1000)), descriptor(b"sent with half a frame"))
    view, fd = one._outbox[0]
    one._outbox[0] = (view[:100], fd)
    one.flush()
    assert other.receive() == []
    one.close()
    other.close()  # the fixture of all tests would find them


def test_a_descriptor_that_does_not_fit_is_said_to_be_lost(pair: tuple[Channel, Channel]) -> None:
    import resource

    one, other = pair
    one.post(report(1), descriptor(b"a"))
    one.post(report(2), descriptor(b"b"))
    one.flush()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        ((first, lost),) = other.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (first.number, lost) == (1, LOST)
    ((second, fd),) = other.receive()
    assert (second.number, content(fd)) == (2, b"b")


def test_messages_are_plain_and_small() -> None:
    """A report of a small result costs its pickle; which must not grow unnoticed."""
    assert len(pickle.dumps(report(1), protocol=5)) < 600
    assert len(pickle.dumps(Order(1, Limits(memory=5)), protocol=5)) < 400
