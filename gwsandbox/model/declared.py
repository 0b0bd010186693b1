"""The types of its own that a caller lets a guest's result hold where results are plain: ``Task(…, returns=(…))``."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Any

from gwsandbox.model.text import shorten


class Kind(enum.Enum):
    """How values of a declared type are taken apart and put together, without a call of its own code."""

    DATACLASS = "dataclass"
    ENUM = "enum"
    NAMED_TUPLE = "named tuple"
    EXCEPTION = "exception"


def kind_of(declared: object) -> Kind | None:
    """What a type is, or ``None`` where it cannot be declared."""
    if not isinstance(declared, type):
        return None
    if issubclass(declared, enum.Enum):
        return Kind.ENUM
    if issubclass(declared, BaseException):
        return Kind.EXCEPTION if issubclass(declared, Exception) else None
    if issubclass(declared, tuple) and field_names(declared):
        return Kind.NAMED_TUPLE
    # Of another built-in type it would be more than its fields.
    if dataclasses.is_dataclass(declared) and declared.__new__ is object.__new__:
        return Kind.DATACLASS
    return None


def field_names(declared: Any) -> tuple[str, ...]:
    """The fields of a dataclass or a named tuple, in order; none of anything else."""
    if dataclasses.is_dataclass(declared):
        return tuple(field.name for field in dataclasses.fields(declared))
    names = getattr(declared, "_fields", ())
    return names if isinstance(names, tuple) and all(isinstance(name, str) for name in names) else ()


def check_declared(types: object) -> tuple[type, ...]:
    """``types`` as a tuple.

    Raises:
        TypeError: One is no dataclass, enum, named tuple or exception.
    """
    if isinstance(types, type):
        raise TypeError(f"returns must be several types, as in returns=({types.__name__},), and not one")
    if isinstance(types, str) or not isinstance(types, Iterable):
        raise TypeError(f"returns must be types, not {type(types).__name__}: {shorten(types)}")
    found = tuple(types)
    for declared in found:
        if kind_of(declared) is None:
            raise TypeError(
                f"returns may hold dataclasses, enums, named tuples and exceptions; not {shorten(declared)}"
            )
    return found
