"""What a guest that was taken over sends as an exception: forged texts, and code that would run in the caller."""

from __future__ import annotations

import os
import pickle
import signal
import struct
from collections.abc import Iterator
from typing import Any

import pytest
from arrival import raised
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from gwsandbox import RemoteError, TransferError
from gwsandbox.ipc import exception, record
from gwsandbox.model.verdict import Delivery

# --- what code of the guest does in the caller -----------------------------------------------------------


class RaisesHere(Exception):
    """Unpickles in peace where ``armed`` is False, which is the guest."""

    armed = False
    error: BaseException = KeyboardInterrupt()

    def __setstate__(self, _state: object) -> None:
        if type(self).armed:
            raise type(self).error


@pytest.fixture(params=[KeyboardInterrupt(), SystemExit(3), GeneratorExit(), ValueError("no")], ids=repr)
def armed(request: pytest.FixtureRequest) -> Iterator[BaseException]:
    RaisesHere.error = request.param
    yield request.param
    RaisesHere.armed = False


def test_whatever_is_raised_when_it_is_unpickled_is_a_transfer_error(armed: BaseException) -> None:
    error = RaisesHere("text")
    error.state = 5  # type: ignore[attr-defined]
    found = raised(error)
    fd = record.create()
    record.write_value(fd, [error])
    _, inline, _ = record.inspect(fd)
    os.close(fd)
    RaisesHere.armed = True
    again = found.exception()
    assert isinstance(again, RemoteError)
    assert again.text == "text"
    with pytest.raises(TransferError, match="result cannot be unpickled here"):
        record.read_inline(inline)


def test_a_true_interrupt_meanwhile_is_one() -> None:
    """Sent by the value itself as it is unpickled, which is as good a moment as any."""
    body = pickle.dumps(SendsItself(signal.SIGINT))
    fd = record.create()
    os.pwrite(fd, record._HEAD.pack(b"gws1", Delivery.VALUE.value, len(body), 0, record._HEAD.size + len(body)), 0)
    os.pwrite(fd, body, record._HEAD.size)
    _, inline, _ = record.inspect(fd)
    os.close(fd)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        record.read_inline(inline)
    assert signal.getsignal(signal.SIGINT) is before


class SendsItself:
    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return send, (self.number,)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


# --- forged ----------------------------------------------------------------------------------------------


@settings(max_examples=examples(300))
@given(
    st.binary(max_size=200)
    | st.lists(st.integers(0, 2**32 - 1), max_size=8).map(lambda n: struct.pack(f"={len(n)}I", *n))
)
def test_a_forged_body_is_texts_or_a_transfer_error(body: bytes) -> None:
    try:
        found = exception.unpack(memoryview(body))
    except TransferError as error:
        assert str(error) == exception.FORGED
    else:
        assert all(isinstance(text, str) for text in (*found[:4], *found.notes))
        assert len(found.notes) <= 100


def test_a_record_larger_than_ours_ever_are_is_not_read() -> None:
    fd = record.create()
    size = 2 * exception.LARGEST_BODY
    os.pwrite(fd, bytes(size), 0)
    os.pwrite(fd, record._HEAD.pack(b"gws1", Delivery.RAISED.value, size - record._HEAD.size, 0, size), 0)
    assert record.inspect(fd)[0] is Delivery.RAISED
    with pytest.raises(TransferError, match="holds no exception"):
        record.read_descriptor(fd)
    os.close(fd)
