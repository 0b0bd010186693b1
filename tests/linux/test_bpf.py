"""The assembler of filters: each instruction, jumps of any length, and what the kernel would refuse."""

from __future__ import annotations

import struct

import pytest
from bpf_machine import run
from hypothesis import given
from hypothesis import strategies as st

from gwsandbox.linux import bpf
from gwsandbox.linux.bpf import ANY_BIT, EQUAL, GREATER_OR_EQUAL, Item, Jump, Label, assemble, end, load

YES, NO = 1, 2


def answer(items: list[Item], word: int) -> int:
    return run(assemble(items), struct.pack("=I", word))


@pytest.mark.parametrize(
    ("code", "operand", "word", "holds"),
    [
        (EQUAL, 7, 7, True),
        (EQUAL, 7, 8, False),
        (GREATER_OR_EQUAL, 7, 7, True),
        (GREATER_OR_EQUAL, 7, 6, False),
        (GREATER_OR_EQUAL, 7, 0xFFFF_FFFF, True),
        (ANY_BIT, 6, 4, True),
        (ANY_BIT, 6, 9, False),
    ],
)
@pytest.mark.parametrize("between", [0, 1, 254, 255, 256, 3000])
def test_a_jump_of_any_length(code: int, operand: int, word: int, holds: bool, between: int) -> None:
    waste: list[Item] = [load(0)] * between
    items = [load(0), Jump(code, operand, then="yes"), *waste, end(NO), Label("yes"), end(YES)]
    assert answer(items, word) == (YES if holds else NO)
    items = [load(0), Jump(code, operand, otherwise="no"), *waste, end(YES), Label("no"), end(NO)]
    assert answer(items, word) == (YES if holds else NO)


def test_bits_are_kept() -> None:
    items: list[Item] = [load(0), bpf.keep_bits(0xF), Jump(EQUAL, 5, otherwise="no"), end(YES), Label("no"), end(NO)]
    assert answer(items, 0xF5) == YES
    assert answer(items, 0xF4) == NO


def test_a_short_jump_is_one_instruction() -> None:
    items: list[Item] = [load(0), Jump(EQUAL, 1, "a", "b"), Label("a"), end(YES), Label("b"), end(NO)]
    assert len(assemble(items)) == 4 * bpf.INSTRUCTION.size


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=40, unique=True), st.integers(0, 400))
def test_a_ladder_of_compares_finds_each(numbers: list[int], between: int) -> None:
    """Far and near jumps in one program, where a jump that grows pushes others past what they reach."""
    items: list[Item] = [load(0)]
    items += [Jump(EQUAL, number, then=str(number)) for number in numbers]
    items += [bpf.Goto("none"), *[load(0)] * between]
    for number in numbers:
        items += [Label(str(number)), *[load(0)] * (number % 7), end(number + 10)]
    items += [Label("none"), end(NO)]
    program = assemble(items)
    for word in {*numbers, 2001}:
        assert run(program, struct.pack("=I", word)) == (word + 10 if word in numbers else NO)


def test_what_the_kernel_would_refuse_is_refused_here() -> None:
    with pytest.raises(ValueError, match="no label 'away'"):
        assemble([bpf.Goto("away")])
    with pytest.raises(ValueError, match="'back' goes backward"):
        assemble([Label("back"), load(0), Jump(EQUAL, 0, then="back"), end(0)])
    with pytest.raises(ValueError, match="more than the kernel takes"):
        assemble([end(0)] * (bpf.MOST_INSTRUCTIONS + 1))
