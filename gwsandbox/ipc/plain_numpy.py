"""NumPy's arrays and scalars as plain data. It never imports NumPy: a process that holds its values has imported it."""

from __future__ import annotations

import re
import sys
from typing import Any

# Sizes and units of what NumPy keeps as bare memory, in the order of this machine or the other.
_NUMBERS = r"b1|[iu][1248]|f[248]|c(?:8|16)"
_TEXTS = r"[SU][1-9]\d{0,8}"
_TIMES = r"[mM]8(?:\[(?:[1-9]\d{0,3})?[a-zA-Z]{1,2}\])?"
_DTYPE = re.compile(rf"[<>|](?:{_NUMBERS}|{_TEXTS}|{_TIMES})", re.ASCII)


def is_plain(value: Any) -> bool:
    """Whether a value is an array or a scalar of a plain type."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is None or not (type(value) is numpy.ndarray or isinstance(value, numpy.generic)):
        return False
    return _DTYPE.fullmatch(value.dtype.str) is not None


def is_array(value: Any) -> bool:
    """Whether a value that ``is_plain`` has a shape."""
    return type(value) is sys.modules["numpy"].ndarray


def memory_of(value: Any, *, fortran: bool) -> memoryview:
    """The bytes of an array or a scalar, one element behind the other."""
    numpy: Any = sys.modules["numpy"]
    flat = numpy.ascontiguousarray(value.T if fortran else value).reshape(-1)
    return memoryview(flat.view("u1"))


def array_of(kind: str, memory: bytearray, count: int) -> Any:
    """An array of one dimension on top of ``memory``.

    Args:
        kind: NumPy's name of the type of its elements, from anybody.
        memory: The elements.
        count: How many they are.

    Raises:
        ValueError: NumPy is not imported; or the memory does not hold so many elements of such a type.
    """
    numpy: Any = sys.modules.get("numpy")
    if numpy is None:
        raise ValueError("it holds a NumPy array, and this process has not imported numpy")
    if not _DTYPE.fullmatch(kind):
        raise ValueError("an array is of no plain type")
    dtype = numpy.dtype(kind)
    if count * dtype.itemsize != len(memory):
        raise ValueError("an array is longer or shorter than its shape")
    if not memory:
        return numpy.empty(0, dtype)
    # What NumPy takes on trust: a truth value is 0 or 1, a text is of characters that there are.
    most = {"b": ("u1", 1), "U": (f"{dtype.byteorder}u4", sys.maxunicode)}.get(dtype.kind)
    if most is not None and numpy.frombuffer(memory, most[0]).max() > most[1]:
        raise ValueError("an array holds what is no value of its type")
    return numpy.frombuffer(memory, dtype)
