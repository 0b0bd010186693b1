"""What the kernel does with a classic BPF filter, in Python: to ask a filter about any call without making it."""

from __future__ import annotations

import struct

from gwsandbox.linux.bpf import INSTRUCTION


def call_data(number: int, architecture: int, *arguments: int) -> bytes:
    """struct seccomp_data of a call."""
    return struct.pack("=IIQ6Q", number, architecture, 0, *arguments, *(0,) * (6 - len(arguments)))


def run(program: bytes, data: bytes) -> int:
    """The action that a filter answers with. Anything that the kernel's checker refuses is an AssertionError."""
    instructions = list(INSTRUCTION.iter_unpack(program))
    accumulator, place = 0, 0
    while True:
        code, then, otherwise, operand = instructions[place]
        place += 1
        match code:
            case 0x20:
                assert operand % 4 == 0
                (accumulator,) = struct.unpack_from("=I", data, operand)
            case 0x54:
                accumulator &= operand
            case 0x06:
                return int(operand)
            case 0x05:
                place += operand
            case 0x15:
                place += then if accumulator == operand else otherwise
            case 0x35:
                place += then if accumulator >= operand else otherwise
            case 0x45:
                place += then if accumulator & operand else otherwise
            case _:
                raise AssertionError(f"code {code:#x} is none of ours")
