"""How plain values are written: tags, numbers and bounds, which the encoder and the decoder share.

A value is a tag and what follows it. All numbers are little-endian. Lengths and counts take 8 bytes, so that many
small values cost the sender too.
"""

from __future__ import annotations

import builtins
import enum
import re
import struct

from gwsandbox.model.errors import GuestSetupError, TransferError

MOST_MEMORY = 1 << 28
"""Bytes that a decoded value may take beside the length of its encoding."""
DEEPEST = 100
"""Containers in each other."""
LONGEST_NUMBER = 1 << 16
"""Bytes of an integer, and characters of a decimal number."""
LONGEST_FRACTION = 1 << 12
"""Bytes of each half of a fraction, which are divided by what they share."""
MOST_DIMENSIONS = 32
MOST_EQUAL_HASHES = 32
"""Keys of one hash; more take a number of comparisons that is the square of theirs."""


class Tag(enum.IntEnum):
    """What a value is."""

    NONE = 0
    TRUE = 1
    FALSE = 2
    INT = 3
    LONG = 4
    FLOAT = 5
    COMPLEX = 6
    STR = 7
    BYTES = 8
    BYTEARRAY = 9
    LIST = 10
    TUPLE = 11
    DICT = 12
    SET = 13
    FROZENSET = 14
    DATE = 15
    TIME = 16
    DATETIME = 17
    TIMEDELTA = 18
    TIMEZONE = 19
    DECIMAL = 20
    FRACTION = 21
    UUID = 22
    PATH = 23
    PURE_PATH = 24
    ARRAY = 25
    SCALAR = 26
    DECLARED = 27
    ERROR = 28


LENGTH = struct.Struct("<Q")
INT64 = struct.Struct("<q")
FLOAT64 = struct.Struct("<d")
COMPLEX128 = struct.Struct("<dd")
DATE = struct.Struct("<HBB")
TIME = struct.Struct("<BBBIB")  # hour, minute, second, microsecond, fold
DELTA = struct.Struct("<qqq")  # days, seconds, microseconds
SHAPE = struct.Struct("<BB")  # whether in the order of Fortran, and how many dimensions
SMALL = struct.Struct("<H")

DECIMAL = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:E[+-]?\d{1,18})?|[+-]?Infinity|[+-]?s?NaN\d*", re.ASCII)

BUILTIN_ERRORS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in vars(builtins).values() if isinstance(kind, type) and issubclass(kind, Exception)
}
"""The exceptions that come as themselves, undeclared. Those that end an interpreter are not among them."""

OURS: tuple[type, ...] = (TransferError, GuestSetupError)
"""What a guest's own steps raise, before what the caller declared."""
