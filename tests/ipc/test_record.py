"""The record in which a guest's value or exception travels: whole or absent, and never trusted too far."""

from __future__ import annotations

import fcntl
import gc
import mmap
import os
import pickle
import struct
import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from gwsandbox import Task, TransferError
from gwsandbox.ipc import call, record
from gwsandbox.model.text import type_name
from gwsandbox.model.verdict import Delivery

HEAD = struct.Struct("=4sBxxxQQQ")  # written a second time: the format must not change unnoticed


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = record.create()
    yield fd
    os.close(fd)


def new_record() -> int:
    return record.create()


def read_back(fd: int) -> Any:
    """What the caller gets of a record; keeps the descriptor."""
    delivery, inline, is_whole = record.inspect(fd)
    assert delivery is not Delivery.NOTHING
    return record.read_inline(inline) if is_whole else record.read_descriptor(fd)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=examples(100))
@given(plain)
def test_plain_values_arrive_as_they_were(value: object) -> None:
    fd = new_record()
    try:
        assert record.write_value(fd, value)
        again = read_back(fd)
        assert again == value
        assert type(again) is type(value)
    finally:
        os.close(fd)


@pytest.mark.parametrize("around", [record.INLINE, record._MAPPED])
@pytest.mark.parametrize("less", [-200, -40, -33, -32, -31, -1, 0, 1, 100])
def test_sizes_around_the_borders(around: int, less: int, memfd: int) -> None:
    value = b"x" * (around + less)
    record.write_value(memfd, value)
    assert read_back(memfd) == value
    pickled = new_record()
    record.write_value(pickled, [value, None])
    assert read_back(pickled) == [value, None]
    os.close(pickled)


@pytest.mark.parametrize("length", [10, 100_000, record._MAPPED + 1])
def test_arrays_arrive_writable_aligned_and_equal(length: int, memfd: int) -> None:
    value: dict[str, Any] = {"a": np.arange(length // 8), "b": np.ones((3, 5), dtype=np.float32), "c": "text"}
    assert record.write_value(memfd, value)
    again = read_back(memfd)
    for name in "ab":
        assert np.array_equal(again[name], value[name])
        assert again[name].flags.writeable
        assert again[name].ctypes.data % again[name].itemsize == 0
        again[name] += 1
    assert again["c"] == "text"
    second = record.read_descriptor(memfd)
    assert np.array_equal(second["a"], value["a"])  # what was written into the first stayed there
    del again, second
    gc.collect()


def test_arrays_in_other_orders_and_empty_ones(memfd: int) -> None:
    values = [np.asfortranarray(np.arange(12).reshape(3, 4)), np.empty(0), np.arange(20)[::3], np.array(5)]
    record.write_value(memfd, values)
    for again, value in zip(read_back(memfd), values, strict=True):
        assert np.array_equal(again, value)


def test_bytes_are_never_unpickled(memfd: int) -> None:
    record.write_value(memfd, pickle.dumps(5))
    assert read_back(memfd) == pickle.dumps(5)


# --- what cannot travel ----------------------------------------------------------------------------------


class Raises:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        raise self.error


def raise_it(error: BaseException) -> None:
    raise error


class RaisesWhenLoaded:
    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return raise_it, (self.error,)


class EndlessRegress:
    def __reduce__(self) -> Any:
        return EndlessRegress, (EndlessRegress(),)


class Nested:
    class Lock:
        def __init__(self) -> None:
            self.lock = threading.Lock()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Raises(ValueError("not me")), "ValueError: not me"),
        (Raises(SystemExit(3)), "SystemExit: 3"),
        (Raises(KeyboardInterrupt()), "KeyboardInterrupt"),
        (RaisesWhenLoaded(ValueError("not back")), "ValueError: not back"),
        (RaisesWhenLoaded(SystemExit(3)), "SystemExit: 3"),
        (EndlessRegress(), "RecursionError"),
        (threading.Lock(), "_thread.lock"),
        ((n for n in range(3)), "generator"),
        ([Nested.Lock()], "_thread.lock"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_travel_is_refused_with_its_type(value: object, text: str, memfd: int) -> None:
    assert not record.write_value(memfd, value)
    delivery, inline, _ = record.inspect(memfd)
    assert delivery is Delivery.NOT_TRANSFERABLE
    refusal = record.read_inline(inline).exception()
    assert isinstance(refusal, TransferError)
    assert text in str(refusal)
    assert f"result of type {type_name(value)} cannot be sent back" in str(refusal)
    assert refusal.__cause__ is None


def test_local_classes_and_functions_travel_by_value(memfd: int) -> None:
    class Local:
        def __init__(self, x: int) -> None:
            self.x = x

    record.write_value(memfd, [Local(5), lambda: 7])
    local, function = read_back(memfd)
    assert (local.x, function()) == (5, 7)


# --- torn, junk, forged ----------------------------------------------------------------------------------


def test_an_empty_record_is_nothing(memfd: int) -> None:
    assert record.inspect(memfd) == (Delivery.NOTHING, b"", True)


def test_a_record_cut_anywhere_is_nothing(memfd: int) -> None:
    record.write_value(memfd, ["some value", 5])
    whole = os.pread(memfd, 1000, 0)
    for length in range(len(whole)):
        fd = new_record()
        os.pwrite(fd, whole[:length], 0)
        assert record.inspect(fd)[0] is Delivery.NOTHING, length
        os.close(fd)


def test_a_record_whose_head_is_not_there_yet_is_nothing(memfd: int) -> None:
    record.write_value(memfd, os.urandom(100))
    whole = os.pread(memfd, 1000, 0)
    for missing in range(1, len(record._MAGIC) + 1):
        os.pwrite(memfd, bytes(missing) + whole[missing:], 0)
        assert record.inspect(memfd)[0] is Delivery.NOTHING


@settings(max_examples=examples(200))
@given(st.binary(max_size=200))
def test_junk_is_nothing(junk: bytes) -> None:
    fd = new_record()
    os.pwrite(fd, junk, 0)
    assert record.inspect(fd) == (Delivery.NOTHING, b"", True)
    os.close(fd)


@settings(max_examples=examples(300))
@given(
    st.integers(0, 255),
    st.integers(0, 2**64 - 1) | st.integers(0, 300),
    st.integers(0, 2**64 - 1) | st.integers(0, 3),
    st.integers(0, 2**64 - 1) | st.integers(0, 300),
    st.binary(max_size=200),
)
def test_a_forged_head_gives_a_value_or_a_transfer_error(
    kind: int, body: int, buffers: int, length: int, rest: bytes
) -> None:
    fd = new_record()
    try:
        os.pwrite(fd, HEAD.pack(b"gws1", kind, body, buffers, length) + rest, 0)
        delivery, inline, is_whole = record.inspect(fd)
        if delivery is Delivery.NOTHING:
            return
        assert is_whole
        try:
            record.read_inline(inline)
        except TransferError as error:
            assert "cannot be unpickled here" in str(error)
    finally:
        os.close(fd)


@pytest.mark.parametrize("length", [2**20, 2**31, 2**40, 2**62])
def test_a_length_that_no_memory_stands_behind_is_not_believed(length: int, memfd: int) -> None:
    """A guest under a limit of megabytes must not make its caller read a terabyte of holes."""
    os.ftruncate(memfd, length)
    os.pwrite(memfd, HEAD.pack(b"gws1", Delivery.VALUE.value | 0x80, length - HEAD.size, 0, length), 0)
    assert record.inspect(memfd)[0] is Delivery.NOTHING


def test_a_large_record_is_sealed_before_it_is_believed(memfd: int) -> None:
    record.write_value(memfd, os.urandom(2 * record.INLINE))
    assert record.inspect(memfd) == (Delivery.VALUE, b"", False)
    with pytest.raises(PermissionError):
        os.pwrite(memfd, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(memfd, 0)


def test_a_large_record_can_be_looked_at_again(memfd: int) -> None:
    """Where the kernel had no memory for the end of the first look."""
    record.write_value(memfd, os.urandom(2 * record.INLINE))
    assert record.inspect(memfd) == record.inspect(memfd) == (Delivery.VALUE, b"", False)


def test_a_record_that_its_guest_has_sealed(memfd: int) -> None:
    record.write_value(memfd, os.urandom(2 * record.INLINE))
    os.ftruncate(memfd, 10 * record.INLINE)
    fcntl.fcntl(memfd, 1033, 0x0001 | 0x0002)  # F_ADD_SEALS: F_SEAL_SEAL and F_SEAL_SHRINK
    with pytest.raises(PermissionError):
        record.inspect(memfd)


def test_a_result_of_more_than_2_gib_is_written_and_read_in_pieces(memfd: int) -> None:
    """pwrite(2) takes 2 GiB less a page at a time; a sparse file and mapping stand in for the memory."""
    size = 2**31 + 5
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as holes:
        holes[-1] = 7
        taken = []

        def pwrite(fd: int, data: memoryview, position: int) -> int:
            taken.append((len(data), position))
            return min(len(data), 0x7FFFF000)

        real, os.pwrite = os.pwrite, pwrite  # type: ignore[assignment]
        try:
            with memoryview(holes) as view:
                assert record.write_all(memfd, view, 40) == size + 40
        finally:
            os.pwrite = real
    assert taken == [(size, 40), (size - 0x7FFFF000, 40 + 0x7FFFF000)]


# --- the call --------------------------------------------------------------------------------------------


def test_a_task_by_reference_and_by_value() -> None:
    task = Task(sorted, ("abc",), {"reverse": True})
    for by_value in (False, True):
        assert call.unpack_call(call.pack_task(task, by_value=by_value)) == (
            sorted,
            ("abc",),
            {"reverse": True},
            (),
        )
    local, *_ = call.unpack_call(call.pack_task(Task(lambda: 5), by_value=False))
    assert local() == 5


def test_a_task_that_cannot_travel_names_the_type_and_the_remedy() -> None:
    with pytest.raises(TransferError, match=r"task cannot be sent to its process: .*_thread\.lock.*queue it before"):
        call.pack_task(Task(len, (threading.Lock(),)), by_value=False)


def test_a_task_that_cannot_be_unpickled_names_what_is_missing() -> None:
    packed = call.pack_task(Task(len, ("x",)), by_value=False).replace(b"builtins", b"builtinz")
    with pytest.raises(TransferError, match="task cannot be unpickled in its process: .*builtinz"):
        call.unpack_call(packed)


def test_stored_data_is_read_from_its_start() -> None:
    memfds: deque[int] = deque()
    fd = call.store(b"x" * 100_000, "name", memfds)
    assert list(memfds) == [fd]
    assert call.read_stored(fd) == call.read_stored(fd) == b"x" * 100_000
    os.close(fd)
