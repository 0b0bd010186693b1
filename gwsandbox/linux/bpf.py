"""An assembler of classic BPF, as far as seccomp(2) takes it: loads, compares, jumps to labels, returns.

A conditional jump reaches 255 instructions; past that the assembler puts a long jump behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

INSTRUCTION = struct.Struct("=HBBI")
"""struct sock_filter: code, jump if true, jump if false, operand (include/uapi/linux/filter.h)."""

MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS, include/uapi/linux/bpf_common.h

# BPF_LD | BPF_W | BPF_ABS and so on, include/uapi/linux/bpf_common.h
_LOAD = 0x20
_JUMP = 0x05
EQUAL, GREATER_OR_EQUAL, ANY_BIT = 0x15, 0x35, 0x45
_RETURN = 0x06
_AND = 0x54
_FARTHEST = 0xFF


class Label(NamedTuple):
    """A place that jumps name."""

    name: str


class Plain(NamedTuple):
    """An instruction that jumps nowhere."""

    code: int
    operand: int


def load(offset: int) -> Plain:
    """The 32-bit word at ``offset`` of struct seccomp_data becomes the accumulator."""
    return Plain(_LOAD, offset)


def keep_bits(mask: int) -> Plain:
    """Of the accumulator only the bits of ``mask`` are left."""
    return Plain(_AND, mask)


def end(action: int) -> Plain:
    """The program ends with this action."""
    return Plain(_RETURN, action)


class Jump(NamedTuple):
    """Compare the accumulator with ``operand``, and go to a label, or to what follows where it is ``""``."""

    code: int
    operand: int
    then: str = ""
    otherwise: str = ""


class Goto(NamedTuple):
    """Go to a label, however far."""

    label: str


Item = Label | Plain | Jump | Goto


def assemble(items: Sequence[Item]) -> bytes:
    """The program as the kernel reads it.

    Raises:
        ValueError: A label is missing or lies behind; or the program is longer than the kernel takes.
    """
    far: set[int] = set()
    while True:
        places, labels = _layout(items, far)
        new = {
            number
            for number, item in enumerate(items)
            if isinstance(item, Jump) and _is_far(item, places[number], labels)
        }
        if new <= far:
            break
        far |= new
    code = b"".join(_encode(item, places[number], labels, far=number in far) for number, item in enumerate(items))
    if len(code) // INSTRUCTION.size > MOST_INSTRUCTIONS:
        raise ValueError(
            f"assemble filter: {len(code) // INSTRUCTION.size} instructions are more than the kernel takes"
        )
    return code


def _layout(items: Sequence[Item], far: set[int]) -> tuple[list[int], dict[str, int]]:
    places, labels, place = [], {}, 0
    for number, item in enumerate(items):
        places.append(place)
        if isinstance(item, Label):
            labels[item.name] = place
        else:
            place += 3 if number in far else 1
    return places, labels


def _distance(label: str, place: int, labels: dict[str, int]) -> int:
    """How many instructions behind the next one a label lies; none where there is no name."""
    if label and label not in labels:
        raise ValueError(f"assemble filter: there is no label {label!r}")
    distance = labels[label] - place - 1 if label else 0
    if distance < 0:
        raise ValueError(f"assemble filter: a jump to {label!r} goes backward, which the kernel refuses")
    return distance


def _is_far(jump: Jump, place: int, labels: dict[str, int]) -> bool:
    return max(_distance(label, place, labels) for label in (jump.then, jump.otherwise)) > _FARTHEST


def _encode(item: Item, place: int, labels: dict[str, int], *, far: bool) -> bytes:
    match item:
        case Label():
            return b""
        case Plain(code, operand):
            return INSTRUCTION.pack(code, 0, 0, operand)
        case Goto(label):
            return INSTRUCTION.pack(_JUMP, 0, 0, _distance(label, place, labels))
        case Jump(code, operand):
            then, otherwise = (_distance(label, place, labels) for label in (item.then, item.otherwise))
            if not far:
                return INSTRUCTION.pack(code, then, otherwise, operand)
            # Three instructions stand where there was one: where it goes to "what follows", that is behind them.
            then, otherwise = (max(distance - 1, 1) for distance in (then, otherwise))
            return (
                INSTRUCTION.pack(code, 0, 1, operand)
                + INSTRUCTION.pack(_JUMP, 0, 0, then)
                + INSTRUCTION.pack(_JUMP, 0, 0, otherwise - 1)
            )
