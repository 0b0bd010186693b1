"""Pipes of a guest's output: kept within the budget, or passed on without ever blocking."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from gwsandbox.ipc.output_store import OutputStore, received
from gwsandbox.supervisor.output import _KEPT, Budget, OutputPipe


@pytest.fixture
def pipe() -> Iterator[OutputPipe]:
    made = OutputPipe(0, Budget(10), OutputStore(), None)
    yield made
    made.close()


def test_budget() -> None:
    budget = Budget(10)
    assert [budget.take(4), budget.take(6), budget.take(1)] == [4, 6, 0]
    assert Budget(None).take(10**12) == 10**12


def test_what_comes_is_kept_up_to_the_budget(pipe: OutputPipe) -> None:
    os.write(pipe.guests_end, b"12345")
    assert pipe.read() == (True, False)
    os.write(pipe.guests_end, b"67890")
    assert pipe.read() == (True, False)
    os.write(pipe.guests_end, b"!")
    assert pipe.read() == (False, True)
    assert pipe.kept() == (0, b"1234567890")


def test_the_end(pipe: OutputPipe) -> None:
    os.write(pipe.guests_end, b"last")
    pipe.started()
    assert pipe.read() == (False, False)
    assert pipe.kept() == (0, b"last")


def test_two_pipes_share_a_budget() -> None:
    budget = Budget(6)
    pipes = [OutputPipe(number, budget, OutputStore(), None) for number in (0, 1)]
    for pipe in pipes:
        os.write(pipe.guests_end, b"1234")
    assert [pipe.read() for pipe in pipes] == [(True, False), (False, True)]
    assert [pipe.kept() for pipe in pipes] == [(0, b"1234"), (0, b"12")]
    for pipe in pipes:
        pipe.close()


def test_passing_on_does_not_block_and_holds_the_guest_back() -> None:
    reader, target = os.pipe()
    pipe = OutputPipe(0, Budget(None), OutputStore(), target)
    os.set_blocking(pipe.guests_end, False)
    sent = 0
    try:
        while True:
            sent += os.write(pipe.guests_end, b"x" * 65536)
            assert pipe.read() == (True, False)
    except BlockingIOError:
        pass
    assert pipe.pass_on()  # some is left, as nobody reads
    got = 0
    while got < sent:
        got += len(os.read(reader, 65536))
        pipe.read()
    assert not pipe.pass_on()
    pipe.close()
    os.close(reader)
    os.close(target)


def test_a_target_whose_reader_is_gone_swallows() -> None:
    reader, target = os.pipe()
    os.close(reader)
    pipe = OutputPipe(0, Budget(5), OutputStore(), target)
    os.write(pipe.guests_end, b"12345")
    assert pipe.read() == (True, False)
    os.write(pipe.guests_end, b"6")
    assert pipe.read() == (False, True)  # the budget holds all the same
    pipe.close()
    os.close(target)


def test_a_reader_takes_only_so_much_at_a_time() -> None:
    """Or who writes as fast would keep the supervisor from its clocks."""
    pipe = OutputPipe(0, Budget(None), OutputStore(), None)
    os.set_blocking(pipe.guests_end, False)
    for _ in range(2):
        os.write(pipe.guests_end, b"x" * 65536)
        assert pipe.read(chunks=1) == (True, False)
    assert pipe.kept() == (0, b"x" * 2 * 65536)
    pipe.close()


# --- what is kept and large ------------------------------------------------------------------------------


@pytest.fixture
def both() -> Iterator[list[OutputPipe]]:
    budget, store = Budget(None), OutputStore()
    pipes = [OutputPipe(number, budget, store, None) for number in (0, 1)]
    yield pipes
    for pipe in pipes:
        pipe.close()
    assert store.fd < 0


def send(pipe: OutputPipe, data: bytes) -> None:
    for start in range(0, len(data), 1 << 16):
        os.write(pipe.guests_end, data[start : start + (1 << 16)])
        assert pipe.read() == (True, False)


PATTERN = bytes(range(251)) * (2 * _KEPT // 251)  # with a period that no size in between has


@pytest.mark.parametrize(
    ("sizes", "stored"),
    [
        ((_KEPT - 1, 5), (0, 0)),
        ((_KEPT, 5), (_KEPT, 0)),
        ((5, _KEPT), (0, _KEPT)),
        ((_KEPT + 100_000, _KEPT + 7), (_KEPT + 100_000, _KEPT + 7)),
    ],
)
def test_what_is_large_is_stored_and_received_whole(
    both: list[OutputPipe], sizes: tuple[int, int], stored: tuple[int, int]
) -> None:
    sent = [PATTERN[:size] for size in sizes]
    for pipe, data in zip(both, sent, strict=True):
        send(pipe, data)
    (out, rest_out), (err, rest_err) = [pipe.kept() for pipe in both]
    assert (out, err) == stored
    fd = both[0].store.take()
    assert (fd is None) == (stored == (0, 0))
    if fd is not None:
        assert list(received(fd, stored, (rest_out, rest_err))) == sent
        os.close(fd)


def test_more_than_the_kernel_reads_at_once(both: list[OutputPipe], monkeypatch: pytest.MonkeyPatch) -> None:
    send(both[1], PATTERN)
    (stored, rest), store = both[1].kept(), both[1].store
    for at_once in (1000, stored // 2, stored - 1, stored):
        monkeypatch.setattr("gwsandbox.ipc.output_store.READ_AT_ONCE", at_once)
        assert received(store.fd, (0, stored), (b"", rest)) == (b"", PATTERN)


def test_what_the_store_does_not_take_is_kept_as_it_is(both: list[OutputPipe]) -> None:
    """As past the caller's RLIMIT_FSIZE, which counts for memfds too."""
    send(both[0], PATTERN[:_KEPT])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_KEPT + 1000, before[1]))
    try:
        for pipe, data in zip(both, (PATTERN[_KEPT:], PATTERN), strict=True):
            send(pipe, data)
        kept = [pipe.kept() for pipe in both]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert kept == [(_KEPT, PATTERN[_KEPT:]), (0, PATTERN)]
    assert received(both[0].store.fd, (_KEPT, 0), (PATTERN[_KEPT:], PATTERN)) == (PATTERN, PATTERN)


def test_a_store_that_somebody_has_cut(both: list[OutputPipe]) -> None:
    send(both[0], PATTERN)
    stored, rest = both[0].kept()
    os.ftruncate(both[0].store.fd, stored - 1)
    with pytest.raises(OSError, match=f"read output: {stored} B were stored, and are not there any more"):
        received(both[0].store.fd, (stored, 0), (rest, b""))
