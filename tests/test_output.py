"""Pipes of a guest's output: kept within the budget, or passed on without ever blocking."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from gwsandbox.output import Budget, OutputPipe


@pytest.fixture
def pipe() -> Iterator[OutputPipe]:
    made = OutputPipe(Budget(10), None)
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
    assert pipe.kept() == b"1234567890"


def test_the_end(pipe: OutputPipe) -> None:
    os.write(pipe.guests_end, b"last")
    pipe.started()
    assert pipe.read() == (False, False)
    assert pipe.kept() == b"last"


def test_two_pipes_share_a_budget() -> None:
    budget = Budget(6)
    pipes = [OutputPipe(budget, None), OutputPipe(budget, None)]
    for pipe in pipes:
        os.write(pipe.guests_end, b"1234")
    assert [pipe.read() for pipe in pipes] == [(True, False), (False, True)]
    assert [pipe.kept() for pipe in pipes] == [b"1234", b"12"]
    for pipe in pipes:
        pipe.close()


def test_passing_on_does_not_block_and_holds_the_guest_back() -> None:
    reader, target = os.pipe()
    pipe = OutputPipe(Budget(None), target)
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
    pipe = OutputPipe(Budget(5), target)
    os.write(pipe.guests_end, b"12345")
    assert pipe.read() == (True, False)
    os.write(pipe.guests_end, b"6")
    assert pipe.read() == (False, True)  # the budget holds all the same
    pipe.close()
    os.close(target)


def test_a_reader_takes_only_so_much_at_a_time() -> None:
    """Or who writes as fast would keep the supervisor from its clocks."""
    pipe = OutputPipe(Budget(None), None)
    os.set_blocking(pipe.guests_end, False)
    for _ in range(2):
        os.write(pipe.guests_end, b"x" * 65536)
        assert pipe.read(chunks=1) == (True, False)
    assert len(pipe.kept()) == 2 * 65536
    pipe.close()
