"""Data of any size, packed into little: each block of zeros costs the same few bytes."""

from __future__ import annotations

import struct
import zlib

MIB = 1024**2
GIB = 1024**3


def deflated(start: bytes, zeros: int) -> bytes:
    """Raw deflate of `start` and then so many zeros, a whole number of MiB: one block stands for each."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * (zeros // MIB) + b"\x03\x00"


def zlibbed(start: bytes, zeros: int) -> bytes:
    # Adler-32: a zero leaves the low half as it is, and adds it once more to the high half.
    high, low = divmod(zlib.adler32(start), 1 << 16)
    return b"\x78\xda" + deflated(start, zeros) + struct.pack(">HH", (high + zeros * low) % 65521, low)


def crc_of_zeros(size: int) -> int:
    """The CRC-32 of `size` zeros in a moment: feeding one zero bit is a linear map, which can be squared."""
    column = [0xEDB88320, *(1 << bit for bit in range(31))]
    state, bits = 0xFFFFFFFF, size * 8
    while bits:
        if bits & 1:
            state = _applied(column, state)
        column = [_applied(column, bit) for bit in column]
        bits >>= 1
    return state ^ 0xFFFFFFFF


def _applied(column: list[int], state: int) -> int:
    result = 0
    for bit, value in enumerate(column):
        if state >> bit & 1:
            result ^= value
    return result
