"""Values taken apart into plain data, in the guest; ``plain`` puts them together in the caller."""

from __future__ import annotations

import datetime as dt
import decimal
import enum
import fractions
import pathlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from gwsandbox.ipc import plain_format, plain_numpy
from gwsandbox.ipc.plain_format import (
    BUILTIN_ERRORS,
    COMPLEX128,
    DATE,
    DEEPEST,
    DELTA,
    FLOAT64,
    INT64,
    LENGTH,
    OURS,
    SHAPE,
    SMALL,
    TIME,
    Tag,
)
from gwsandbox.model.declared import Kind, field_names, kind_of
from gwsandbox.model.errors import TransferError
from gwsandbox.model.text import type_name

_LARGE = 1 << 16  # bytes from which on a buffer is passed on and not copied

Buffer = bytes | bytearray | memoryview


def encode(value: object, returns: Sequence[type] = ()) -> list[Buffer]:
    """``value`` as plain data, in pieces that belong together.

    Args:
        value: What to send.
        returns: The types that the caller declared, as the decoder has them.

    Raises:
        TransferError: It holds what is not plain data; names its type, where it is, and what to do.
    """
    writer = _Writer(returns)
    writer.value(value)
    return writer.pieces()


class _Writer:
    """What was written so far, and where in the value it is."""

    def __init__(self, returns: Sequence[type]) -> None:
        self._done: list[Buffer] = []
        self._open = bytearray()
        self._places = {kind: place for place, kind in reversed(list(enumerate((*OURS, *returns))))}
        self._path: list[str] = []

    def pieces(self) -> list[Buffer]:
        """All that was written, in order."""
        return [*self._done, self._open]

    # --- pieces -------------------------------------------------------------------------------------

    def tag(self, tag: Tag, rest: bytes = b"") -> None:
        self._open.append(tag)
        self._open += rest

    def _buffer(self, data: Buffer) -> None:
        self._open += LENGTH.pack(len(data))
        if len(data) < _LARGE:
            self._open += data
            return
        self._done += (self._open, data)
        self._open = bytearray()

    def _bare_text(self, text: str) -> None:
        self._buffer(text.encode("utf-8", "surrogatepass"))

    def text(self, text: str) -> None:
        self.tag(Tag.STR)
        self._bare_text(text)

    def _inside(self, step: str, value: object) -> None:
        self._path.append(step)
        if len(self._path) >= DEEPEST:
            raise self._refusal(f"is nested deeper than {DEEPEST} containers, or holds itself", "return it flat")
        self.value(value)
        self._path.pop()

    def _refusal(self, what: str, remedy: str) -> TransferError:
        where = "".join(self._path[:8]) + ("…" if len(self._path) > 8 else "")
        return TransferError(f"the result{where} {what}, which results='plain' does not carry; {remedy}")

    # --- values -------------------------------------------------------------------------------------

    def value(self, value: object) -> None:
        """Write a value, whatever it is."""
        write = _WRITE.get(type(value))
        if write is not None:
            write(self, value)
        elif type(value) in self._places:
            self._declared(value)
        elif plain_numpy.is_plain(value):
            self._numpy(value)
        elif isinstance(value, Exception) and BUILTIN_ERRORS.get(type(value).__name__) is type(value):
            self._builtin_error(value)
        else:
            raise self._refusal(f"is of type {type_name(value)}", _remedy(value))

    def integer(self, value: int) -> None:
        if -(1 << 63) <= value < 1 << 63:
            self.tag(Tag.INT, INT64.pack(value))
            return
        self.tag(Tag.LONG)
        self._long(value, plain_format.LONGEST_NUMBER)

    def _long(self, value: int, longest: int) -> None:
        size = value.bit_length() // 8 + 1
        if size > longest:
            raise self._refusal(f"is a number of {size} bytes", "return it as bytes or text")
        self._buffer(value.to_bytes(size, "little", signed=True))

    def elements(self, tag: Tag, values: Sequence[object]) -> None:
        self.tag(tag, LENGTH.pack(len(values)))
        for place, value in enumerate(values):
            self._inside(f"[{place}]", value)

    def members(self, tag: Tag, values: set[Any] | frozenset[Any]) -> None:
        self.tag(tag, LENGTH.pack(len(values)))
        for value in values:
            self._inside("{…}", value)

    def dictionary(self, values: dict[Any, Any]) -> None:
        self.tag(Tag.DICT, LENGTH.pack(len(values)))
        for key, value in values.items():
            self._inside(" (a key)", key)
            self._inside(f"[{str(key)[:40]!r}]" if type(key) is str else "[…]", value)

    def bytes_(self, tag: Tag, value: Buffer) -> None:
        self.tag(tag)
        self._buffer(value)

    def date(self, value: dt.date) -> None:
        self.tag(Tag.DATE, DATE.pack(value.year, value.month, value.day))

    def time(self, value: dt.time) -> None:
        self.tag(Tag.TIME, TIME.pack(value.hour, value.minute, value.second, value.microsecond, value.fold))
        self._inside(".tzinfo", value.tzinfo)

    def date_and_time(self, value: dt.datetime) -> None:
        self.tag(Tag.DATETIME, DATE.pack(value.year, value.month, value.day))
        self._open += TIME.pack(value.hour, value.minute, value.second, value.microsecond, value.fold)
        self._inside(".tzinfo", value.tzinfo)

    def delta(self, value: dt.timedelta) -> None:
        self.tag(Tag.TIMEDELTA, DELTA.pack(value.days, value.seconds, value.microseconds))

    def timezone(self, value: dt.timezone) -> None:
        self.tag(Tag.TIMEZONE)
        offset, *name = value.__getinitargs__()  # type: ignore[attr-defined]  # the name only where it was given
        self.value(name[0] if name else None)
        self._open += DELTA.pack(offset.days, offset.seconds, offset.microseconds)

    def decimal(self, value: decimal.Decimal) -> None:
        text = str(value)
        if len(text) > plain_format.LONGEST_NUMBER:
            raise self._refusal(f"is a number of {len(text)} digits", "return it as text")
        self.tag(Tag.DECIMAL)
        self._bare_text(text)

    def fraction(self, value: fractions.Fraction) -> None:
        self.tag(Tag.FRACTION)
        self._long(value.numerator, plain_format.LONGEST_FRACTION)
        self._long(value.denominator, plain_format.LONGEST_FRACTION)

    def path(self, tag: Tag, value: pathlib.PurePath) -> None:
        self.tag(tag)
        self._bare_text(str(value))

    # --- NumPy --------------------------------------------------------------------------------------

    def _numpy(self, value: Any) -> None:
        is_array = plain_numpy.is_array(value)
        fortran = value.flags.f_contiguous and not value.flags.c_contiguous
        self.tag(Tag.ARRAY if is_array else Tag.SCALAR)
        self._bare_text(value.dtype.str)
        if is_array:
            self._open += SHAPE.pack(fortran, value.ndim) + b"".join(map(LENGTH.pack, value.shape))
        self._buffer(plain_numpy.memory_of(value, fortran=fortran))

    # --- types with names ---------------------------------------------------------------------------

    def _declared(self, value: Any) -> None:
        kind = type(value)
        self.tag(Tag.DECLARED, SMALL.pack(self._places[kind]))
        match kind_of(kind):
            case Kind.ENUM:
                self._member(value)
            case Kind.EXCEPTION:
                self._inside(".args", value.args)
                self._inside(".__dict__", value.__dict__)
            case what:
                for place, name in enumerate(field_names(kind)):
                    self._inside(f".{name}", value[place] if what is Kind.NAMED_TUPLE else getattr(value, name, None))

    def _member(self, value: enum.Enum) -> None:
        if value.name in type(value).__members__:
            names = [value.name]
        else:
            names = [str(member.name) for member in value] if isinstance(value, enum.Flag) else []
        self._open += LENGTH.pack(len(names))
        for name in names:
            self._bare_text(name)

    def _builtin_error(self, error: Exception) -> None:
        args = error.args
        if isinstance(error, OSError) and type(error.filename) in {str, bytes, int} and len(args) == 2:
            args = (*args, error.filename, None, error.filename2)
        elif isinstance(error, SyntaxError):
            args = (str(error),)  # where in which text is said there too
        self.tag(Tag.ERROR)
        self._bare_text(type(error).__name__)
        self._inside(".args", args)
        self._inside(".__dict__", {"__notes__": notes} if (notes := getattr(error, "__notes__", None)) else {})


def _remedy(value: object) -> str:
    kind = type(value)
    if kind_of(kind) is not None:
        return f"declare it: Task(…, returns=({kind.__qualname__},))"
    for plain in (dict, list, tuple, set, str, bytes, int, float):
        if isinstance(value, plain):
            return f"return {plain.__name__}(value)"
    if isinstance(value, dt.tzinfo):
        return "return value.astimezone(datetime.timezone.utc)"
    return "return plain data made of it, or write it to a file"


_WRITE: dict[type, Callable[[_Writer, Any], None]] = {
    type(None): lambda writer, _: writer.tag(Tag.NONE),
    bool: lambda writer, value: writer.tag(Tag.TRUE if value else Tag.FALSE),
    int: _Writer.integer,
    float: lambda writer, value: writer.tag(Tag.FLOAT, FLOAT64.pack(value)),
    complex: lambda writer, value: writer.tag(Tag.COMPLEX, COMPLEX128.pack(value.real, value.imag)),
    str: _Writer.text,
    bytes: lambda writer, value: writer.bytes_(Tag.BYTES, value),
    bytearray: lambda writer, value: writer.bytes_(Tag.BYTEARRAY, value),
    list: lambda writer, value: writer.elements(Tag.LIST, value),
    tuple: lambda writer, value: writer.elements(Tag.TUPLE, value),
    dict: _Writer.dictionary,
    set: lambda writer, value: writer.members(Tag.SET, value),
    frozenset: lambda writer, value: writer.members(Tag.FROZENSET, value),
    dt.date: _Writer.date,
    dt.time: _Writer.time,
    dt.datetime: _Writer.date_and_time,
    dt.timedelta: _Writer.delta,
    dt.timezone: _Writer.timezone,
    decimal.Decimal: _Writer.decimal,
    fractions.Fraction: _Writer.fraction,
    uuid.UUID: lambda writer, value: writer.tag(Tag.UUID, value.bytes),
    pathlib.PosixPath: lambda writer, value: writer.path(Tag.PATH, value),
    pathlib.PurePosixPath: lambda writer, value: writer.path(Tag.PURE_PATH, value),
}
