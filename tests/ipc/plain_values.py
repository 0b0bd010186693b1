"""Types that a caller declares, exceptions that are built in, and the way of a value as plain data."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gwsandbox.ipc import plain
from gwsandbox.ipc.plain_encoder import encode


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Rights(enum.Flag):
    READ = 1
    WRITE = 2


class Point(NamedTuple):
    x: int
    y: Any = 0


@dataclass(frozen=True, slots=True)
class Page:
    number: int
    text: str = ""
    parts: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        called.append("__post_init__")


@dataclass
class Book:
    pages: list[Page]


class Broken(Exception):
    def __init__(self, where: str, how: int) -> None:
        super().__init__(f"{where} is broken")
        self.how = how
        called.append("__init__")


class Undeclared(Exception):
    pass


RETURNS = (Colour, Rights, Point, Page, Book, Broken)
called: list[str] = []


def through(value: object, returns: tuple[type, ...] = ()) -> Any:
    return plain.decode(b"".join(encode(value, returns)), returns)


BUILT_IN = [
    ValueError("a", 1),
    FileNotFoundError(2, "No such file", "/x"),
    OSError(5, "Input/output error"),
    OSError("text only"),
    KeyError("k"),
    MemoryError(),
    StopIteration(3),
    UnicodeDecodeError("utf-8", b"abc", 1, 2, "why"),
    UnicodeEncodeError("ascii", "abc", 0, 3, "why"),
    UnicodeTranslateError("abc", 0, 1, "why"),
    ZeroDivisionError("division by zero"),
    RecursionError("deep"),
]
