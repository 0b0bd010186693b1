"""Values as plain data: what a guest that may have been taken over can send, and nothing but data comes out of it.

The decoder knows a list of types and nothing else. It imports nothing, calls nothing by a name that it read, and takes
no more memory than ``MOST_MEMORY`` beside the length of what it reads, whatever that claims. Types of the caller's own
come by their place in a list that the caller made, and are put together without a call of their code.
"""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import functools
import math
import operator
import pathlib
import struct
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gwsandbox.ipc import plain_numpy
from gwsandbox.ipc.pickling import Buffer
from gwsandbox.ipc.plain_format import (
    BUILTIN_ERRORS,
    COMPLEX128,
    DATE,
    DECIMAL,
    DEEPEST,
    DELTA,
    FLOAT64,
    INT64,
    LENGTH,
    LONGEST_FRACTION,
    LONGEST_NUMBER,
    MOST_DIMENSIONS,
    MOST_EQUAL_HASHES,
    MOST_MEMORY,
    OURS,
    SHAPE,
    SMALL,
    TIME,
    Tag,
)
from gwsandbox.model.declared import Kind, field_names, kind_of
from gwsandbox.model.errors import TransferError


class _Malformed(Exception):
    """What was read is not what an encoder writes."""


# What the interpreter's own types, NumPy's and struct say of values that they cannot have.
_FAILURES = (
    *(_Malformed, ValueError, TypeError, ArithmeticError, LookupError),
    *(struct.error, MemoryError, RecursionError),
)


def decode(data: Buffer, returns: Sequence[type] = ()) -> Any:
    """The value that ``plain_encoder.encode`` made of it.

    Args:
        data: From anybody.
        returns: The types that the caller declared, as the encoder had them.

    Raises:
        TransferError: It is malformed, or would take too much memory.
    """
    reader = _Reader(memoryview(data).cast("B"), returns)
    try:
        value = reader.value()
        if reader.position != len(reader.data):
            raise _Malformed("something follows the value")
    except _FAILURES as error:
        detail = f"{type(error).__name__}: {error}" if not isinstance(error, _Malformed) else str(error)
        raise TransferError(f"the result is not plain data, as results='plain' asks for: {detail[:200]}") from None
    return value


class _Reader:
    """One pass over an encoding, from its start to its end."""

    def __init__(self, data: memoryview, returns: Sequence[type]) -> None:
        self.data = data
        self.position = 0
        self._returns = (*OURS, *returns)
        self._memory = MOST_MEMORY + len(data)
        self._depth = 0

    # --- pieces -------------------------------------------------------------------------------------

    def _take(self, size: int) -> memoryview:
        """The next bytes, where there are as many."""
        start, self.position = self.position, self.position + size
        if self.position > len(self.data):
            raise _Malformed("it ends within a value")
        return self.data[start : self.position]

    def _unpack(self, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self._take(form.size))

    def _length(self) -> int:
        """A number of things of which each takes a byte at least."""
        length: int = self._unpack(LENGTH)[0]
        if length > len(self.data) - self.position:
            raise _Malformed("it claims more than there is")
        return length

    def _charge(self, size: int) -> None:
        """Count memory that is about to be taken."""
        self._memory -= size
        if self._memory < 0:
            raise _Malformed(
                f"it would take {MOST_MEMORY >> 20} MiB more than its own length; return bytes, or an array"
            )

    def _buffer(self) -> memoryview:
        raw = self._take(self._length())
        self._charge(len(raw))
        return raw

    def _text(self) -> str:
        raw = self._take(self._length())
        self._charge(80 + 4 * len(raw))
        return str(raw, "utf-8", "surrogatepass")

    # --- values -------------------------------------------------------------------------------------

    def value(self) -> Any:
        """The next value, whatever it is."""
        tag = self._take(1)[0]
        read = _READ.get(tag)
        if read is None:
            raise _Malformed(f"there is no tag {tag}")
        self._depth += 1
        if self._depth > DEEPEST:
            raise _Malformed(f"it is deeper than {DEEPEST} containers")
        self._charge(_CHARGED.get(tag, 48))
        found = read(self)
        self._depth -= 1
        return found

    def of_type(self, *kinds: type) -> Any:
        """The next value, which has to be exactly of one of these types."""
        found = self.value()
        if type(found) not in kinds:
            raise _Malformed(f"a {type(found).__name__} stands where a {kinds[0].__name__} has to")
        return found

    def _integer(self, longest: int = LONGEST_NUMBER) -> int:
        size = self._length()
        if size > longest:
            raise _Malformed(f"a number has more than {longest} bytes")
        self._charge(2 * size)
        return int.from_bytes(self._take(size), "little", signed=True)

    def _elements(self) -> list[Any]:
        count = self._length()
        self._charge(8 * count)
        return [self.value() for _ in range(count)]

    def _keys(self, keys: list[Any]) -> None:
        """Refuse keys that take too long to compare, and those of other types."""
        if not all(map(_is_key, keys)):
            raise _Malformed("a key is of a type that keys are not of")
        if len(keys) > MOST_EQUAL_HASHES:
            ((_, most),) = Counter(map(hash, keys)).most_common(1)
            if most > MOST_EQUAL_HASHES:
                raise _Malformed("its keys are made to be mistaken for each other")

    def dictionary(self) -> dict[Any, Any]:
        count = self._length()
        self._charge(120 * count)
        pairs = [(self.value(), self.value()) for _ in range(count)]
        self._keys([key for key, _ in pairs])
        found = dict(pairs)
        if len(found) != count:
            raise _Malformed("a key stands there twice")
        return found

    def set_of(self, kind: type) -> Any:
        elements = self._elements()
        self._charge(100 * len(elements))
        self._keys(elements)
        found = kind(elements)
        if len(found) != len(elements):
            raise _Malformed("an element stands there twice")
        return found

    def date(self) -> dt.date:
        return dt.date(*self._unpack(DATE))

    def time(self) -> dt.time:
        hour, minute, second, microsecond, fold = self._unpack(TIME)
        return dt.time(hour, minute, second, microsecond, self._zone(), fold=fold)

    def date_and_time(self) -> dt.datetime:
        year, month, day = self._unpack(DATE)
        hour, minute, second, microsecond, fold = self._unpack(TIME)
        return dt.datetime(year, month, day, hour, minute, second, microsecond, self._zone(), fold=fold)

    def _zone(self) -> dt.timezone | None:
        zone: dt.timezone | None = self.of_type(dt.timezone, type(None))
        return zone

    def delta(self) -> dt.timedelta:
        days, seconds, microseconds = self._unpack(DELTA)
        return dt.timedelta(days, seconds, microseconds)

    def timezone(self) -> dt.timezone:
        name = self.of_type(str, type(None))
        return dt.timezone(self.delta()) if name is None else dt.timezone(self.delta(), name)

    def decimal(self) -> decimal.Decimal:
        text = self._text()
        if len(text) > LONGEST_NUMBER or not DECIMAL.fullmatch(text):
            raise _Malformed("a decimal number is none")
        return decimal.Decimal(text)

    def fraction(self) -> fractions.Fraction:
        return fractions.Fraction(self._integer(LONGEST_FRACTION), self._integer(LONGEST_FRACTION))

    def uuid(self) -> uuid.UUID:
        return uuid.UUID(bytes=bytes(self._take(16)))

    # --- NumPy --------------------------------------------------------------------------------------

    def array(self) -> Any:
        kind = self._text()
        fortran, dimensions = self._unpack(SHAPE)
        if dimensions > MOST_DIMENSIONS:
            raise _Malformed(f"an array has more than {MOST_DIMENSIONS} dimensions")
        shape = [self._unpack(LENGTH)[0] for _ in range(dimensions)]
        flat = plain_numpy.array_of(kind, bytearray(self._buffer()), math.prod(shape))
        return flat.reshape(shape, order="F" if fortran else "C")

    def scalar(self) -> Any:
        return plain_numpy.array_of(self._text(), bytearray(self._buffer()), 1)[0]

    # --- types with names ---------------------------------------------------------------------------

    def declared(self) -> Any:
        (place,) = self._unpack(SMALL)
        if place >= len(self._returns):
            raise _Malformed("it is of a type that was not declared")
        kind = self._returns[place]
        match kind_of(kind):
            case Kind.ENUM:
                return self._member(kind)
            case Kind.EXCEPTION:
                return self._exception(kind)
            case what:
                names = field_names(kind)
                values = [self.value() for _ in names]
                self._charge(120 + 120 * len(names))
                return tuple.__new__(kind, values) if what is Kind.NAMED_TUPLE else _filled(kind, names, values)

    def _member(self, kind: Any) -> Any:
        """A member of an enum by its name; of flags several, which are joined."""
        members = [kind.__members__[self._text()] for _ in range(self._length())]
        if len(members) == 1:
            return members[0]
        if not issubclass(kind, enum.Flag):
            raise _Malformed("a member of an enum has one name")
        return functools.reduce(operator.or_, members, kind(0))

    def _exception(self, kind: type[Any]) -> Exception:
        builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
        args = self.of_type(tuple)
        error: Exception = builtin.__new__(kind, *args)
        error.args = args
        error.__dict__.update(self._state())
        return error

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.of_type(dict)
        if not all(type(name) is str for name in state):
            raise _Malformed("an exception has an attribute without a name")
        return state

    def builtin_error(self) -> Exception:
        kind = BUILTIN_ERRORS[self._text()]
        args = self.of_type(tuple)
        if issubclass(kind, UnicodeError | SyntaxError) and not _is_sound(kind, args):
            raise _Malformed(f"a {kind.__name__} points out of its text")
        error = kind(*args)
        error.__dict__.update(self._state())
        return error


def _is_key(value: Any) -> bool:
    """Whether a value may be a key: of types whose hash and equality are the interpreter's."""
    if type(value) in {tuple, frozenset}:
        return all(map(_is_key, value))
    return type(value) in _KEYS or isinstance(value, enum.Enum)


def _filled(kind: type[Any], names: Iterable[str], values: Iterable[Any]) -> Any:
    """An object of a dataclass, without a call of its ``__init__`` and what that calls."""
    made: Any = object.__new__(kind)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(made, name, value)
    return made


def _is_sound(kind: type[Exception], args: tuple[Any, ...]) -> bool:
    """Whether the interpreter can print it: some versions read past the end of what these two point into."""
    if issubclass(kind, SyntaxError) or kind is UnicodeError:
        return all(type(argument) is str for argument in args[:1]) and len(args) <= 1
    if [type(argument) for argument in args[-3:]] != [int, int, str]:
        return False
    *_, text, start, end, _ = args
    return type(text) in {str, bytes} and 0 <= start < end <= len(text)


_KEYS = {
    *(type(None), bool, int, float, complex, str, bytes, decimal.Decimal, fractions.Fraction, uuid.UUID),
    *(dt.date, dt.time, dt.datetime, dt.timedelta, dt.timezone),
    *(pathlib.PosixPath, pathlib.PurePosixPath),
}
# Bytes that a value takes, what it holds aside; where it is not named, 48.
_CHARGED: dict[int, int] = {
    Tag.NONE: 0,
    Tag.TRUE: 0,
    Tag.FALSE: 0,
    Tag.LIST: 96,
    Tag.TUPLE: 64,
    Tag.DICT: 240,
    Tag.SET: 240,
    Tag.FROZENSET: 240,
    Tag.DECIMAL: 240,
    Tag.FRACTION: 160,
    Tag.UUID: 200,
    Tag.PATH: 600,
    Tag.PURE_PATH: 600,
    Tag.ARRAY: 400,
    Tag.SCALAR: 200,
    Tag.DECLARED: 400,
    Tag.ERROR: 600,
}
_READ: dict[int, Callable[[_Reader], Any]] = {
    Tag.NONE: lambda _: None,
    Tag.TRUE: lambda _: True,
    Tag.FALSE: lambda _: False,
    Tag.INT: lambda reader: reader._unpack(INT64)[0],
    Tag.LONG: _Reader._integer,
    Tag.FLOAT: lambda reader: reader._unpack(FLOAT64)[0],
    Tag.COMPLEX: lambda reader: complex(*reader._unpack(COMPLEX128)),
    Tag.STR: _Reader._text,
    Tag.BYTES: lambda reader: bytes(reader._buffer()),
    Tag.BYTEARRAY: lambda reader: bytearray(reader._buffer()),
    Tag.LIST: _Reader._elements,
    Tag.TUPLE: lambda reader: tuple(reader._elements()),
    Tag.DICT: _Reader.dictionary,
    Tag.SET: lambda reader: reader.set_of(set),
    Tag.FROZENSET: lambda reader: reader.set_of(frozenset),
    Tag.DATE: _Reader.date,
    Tag.TIME: _Reader.time,
    Tag.DATETIME: _Reader.date_and_time,
    Tag.TIMEDELTA: _Reader.delta,
    Tag.TIMEZONE: _Reader.timezone,
    Tag.DECIMAL: _Reader.decimal,
    Tag.FRACTION: _Reader.fraction,
    Tag.UUID: _Reader.uuid,
    Tag.PATH: lambda reader: pathlib.PosixPath(reader._text()),
    Tag.PURE_PATH: lambda reader: pathlib.PurePosixPath(reader._text()),
    Tag.ARRAY: _Reader.array,
    Tag.SCALAR: _Reader.scalar,
    Tag.DECLARED: _Reader.declared,
    Tag.ERROR: _Reader.builtin_error,
}
