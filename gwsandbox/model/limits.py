"""``Limits``: the limits of one task. Pure data, and the parsing of "512MiB", "1h30m" and "200%"."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

# ASCII: or \d takes digits of every script, and IGNORECASE the long s and the Kelvin sign for letters.
_FLAGS = re.IGNORECASE | re.ASCII
_SIZE = re.compile(r"\s*(\d{1,30}(?:\.\d+)?)\s*([kmgtp]?)(i?)(b?)\s*", _FLAGS)
_NUMBER = r"\d{1,30}(?:\.\d+)?"
_SECONDS = {
    **dict.fromkeys(("ms", "msec"), 0.001),
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
}
_DURATION_PART = re.compile(rf"({_NUMBER})\s*({'|'.join(sorted(_SECONDS, key=len, reverse=True))})\s*", _FLAGS)
_DURATION = re.compile(rf"\s*(?:{_NUMBER}\s*|(?:{_DURATION_PART.pattern})+)", _FLAGS)
_PERCENTAGE = re.compile(rf"\s*({_NUMBER})\s*%\s*", _FLAGS)

_Number = TypeVar("_Number", int, float)

MIB, GIB = 1024**2, 1024**3  # bytes
LARGEST_SIZE = 2**60  # so that what is added to it is still a size for the kernel, whose type is signed
_MOST_PIDS = 2**22  # PID_MAX_LIMIT, include/linux/threads.h: pids.max takes no more
_MOST_FILES = 2**30  # fs.nr_open is at most that
_MOST_CPUS = 2**16
MOST_WORKERS = 2**16
LONGEST_SECONDS = 1e9  # 31 years: more is a mistake of unit
_SMALLEST_CPU_SHARE = 0.01  # cpu.max takes no quota below 1 ms, of a period of 100 ms


def parse_size(text: str, name: str = "size") -> int:
    """Bytes that a text like ``"512MiB"`` means.

    ``KiB MiB GiB TiB PiB`` and the bare ``K M G T P`` (as systemd and the kernel read them) are powers of
    1024, ``kB MB GB TB PB`` powers of 1000, a bare number is bytes.

    Raises:
        ValueError: The text is not a size; the message names ``name``.
    """
    match = _SIZE.fullmatch(text)
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{name}: {text[:60]!r} is not a size; write for example 512MiB, 2G or 1048576")
    number, prefix, binary, byte = match.groups()
    base = 1000 if byte and not binary and prefix else 1024
    power = " kmgtp".index(prefix.lower()) if prefix else 0
    factor = int(base**power)
    return math.floor(float(number) * factor) if "." in number else int(number) * factor


def parse_duration(text: str, name: str = "duration") -> float:
    """Seconds that a text like ``"5s"``, ``"500ms"``, ``"1h30m"`` or ``"1.5"`` means.

    A bare number is seconds. Units are those of timeout(1) and of systemd.time(7): ``ms s m h d``, and their names.

    Raises:
        ValueError: The text is not a duration; the message names ``name``.
    """
    if _DURATION.fullmatch(text) is None:
        raise ValueError(f"{name}: {text[:60]!r} is not a duration; write for example 5s, 500ms, 2m or 1h30m")
    parts = _DURATION_PART.findall(text)
    return sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts) if parts else float(text)


def parse_share(text: str, name: str = "share") -> float:
    """The share of CPUs that a text like ``"0.5"`` or ``"200%"`` means: 0.5 and 2.0.

    Raises:
        ValueError: The text is no share; the message names ``name``.
    """
    if match := _PERCENTAGE.fullmatch(text):
        return float(match[1]) / 100
    try:
        return float(text)
    except ValueError:
        example = "write for example 0.5 or 50%"
        raise ValueError(f"{name}: {text[:60]!r} is not a share of CPUs; {example}") from None


def check_number(value: object, name: str) -> float:
    """``value`` as a finite number that is not negative: an ``int`` or ``float``, whatever number it was before.

    Raises:
        TypeError: It is not a number. ValueError: It is negative, NaN or infinite. Both name ``name``.
    """
    if type(value) is not int and type(value) is not float:
        value = _plain_number(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}: {value!r}")
    if not 0 <= value < math.inf:  # false for NaN; and no overflow, as isfinite has for integers past a float
        raise ValueError(f"{name} must be 0 (no limit) or a positive number, not {value!r}")
    return value


def _plain_number(value: object) -> object:
    """A number of NumPy, a fraction and the like as ``int`` or ``float``; anything else as it is."""
    import numbers  # noqa: PLC0415 - few callers need it

    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def check_count(value: object, name: str) -> int:
    """``value`` as a whole number that is not negative.

    Raises:
        TypeError, ValueError: As ``check_number``; or it is not whole.
    """
    number = check_number(value, name)
    if number != int(number):
        raise ValueError(f"{name} must be a whole number, not {value!r}")
    return int(number)


def _at_most(most: float, number: _Number, name: str, complaint: str) -> _Number:
    if number > most:
        raise ValueError(f"{name} of {number}{complaint}")
    return number


def check_size(value: object, name: str) -> int:
    """``value`` as bytes: a whole number, or a text like ``"512MiB"``.

    Raises:
        TypeError, ValueError: As ``check_count``; or it is more than any machine has.
    """
    number = check_count(parse_size(value, name) if isinstance(value, str) else value, name)
    return _at_most(LARGEST_SIZE, number, name, f" bytes is more than any machine has ({LARGEST_SIZE})")


def _check_pids(value: object, name: str) -> int:
    return _at_most(_MOST_PIDS, check_count(value, name), name, f" is more than the kernel can count ({_MOST_PIDS})")


def _check_files(value: object, name: str) -> int:
    return _at_most(_MOST_FILES, check_count(value, name), name, f" is more than a process can have ({_MOST_FILES})")


def _check_seconds(value: object, name: str) -> float:
    number = check_number(parse_duration(value, name) if isinstance(value, str) else value, name)
    return _at_most(LONGEST_SECONDS, number, name, " s is more than 31 years; the unit is seconds")


def _check_cpus(value: object, name: str) -> float:
    if isinstance(value, str) and _PERCENTAGE.fullmatch(value):
        value = parse_share(value, name)
    number = check_number(value, name)
    if 0 < number < _SMALLEST_CPU_SHARE:
        raise ValueError(f"{name} of {number} is less than the kernel can give ({_SMALLEST_CPU_SHARE})")
    return float(_at_most(_MOST_CPUS, number, name, f" is more than any machine has ({_MOST_CPUS})"))


_CHECKS = {
    "memory": check_size,
    "swap": check_size,
    "wall_seconds": _check_seconds,
    "cpu_seconds": _check_seconds,
    "cpus": _check_cpus,
    "pids": _check_pids,
    "open_files": _check_files,
    "file_size": check_size,
    "output": check_size,
}


OPTIONS = {
    "memory": "--memory",
    "swap": "--swap",
    "wall_seconds": "--timeout",
    "cpu_seconds": "--cpu-time",
    "cpus": "--cpus",
    "pids": "--pids",
    "open_files": "--open-files",
    "file_size": "--file-size",
    "output": "--output-limit",
}
"""The options of the command line, by limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of one task. Every field is optional: ``None`` is "not said", 0 is "no limit".

    Args:
        memory: Bytes of memory of the guest and all its descendants, or a text like ``"512MiB"``.
        swap: Bytes of swap beyond that. Not said or 0: none, so that ``memory`` is the whole truth.
        wall_seconds: Seconds of wall-clock time, or a text like ``"5s"`` or ``"1h30m"``.
        cpu_seconds: Seconds of CPU time, of all threads and descendants together.
        cpus: Share of CPUs that may be used at a time; 0.5 or ``"50%"`` is half of one.
        pids: Processes and threads alive at a time.
        open_files: Open descriptors of each process (RLIMIT_NOFILE).
        file_size: Bytes of the largest file that may be written (RLIMIT_FSIZE).
        output: Bytes of stdout and stderr together, kept and allowed.

    Raises:
        TypeError: A field is not a number (or text where that is allowed).
        ValueError: A field is negative, NaN, infinite, not whole where it must be, or absurd.
    """

    memory: int | str | None = None
    swap: int | str | None = None
    wall_seconds: float | str | None = None
    cpu_seconds: float | str | None = None
    cpus: float | str | None = None
    pids: int | None = None
    open_files: int | None = None
    file_size: int | str | None = None
    output: int | str | None = None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, check(value, name))

    def overridden_by(self, other: Limits | None) -> Limits:
        """These limits with every field that ``other`` says replaced by its own."""
        if other is None:
            return self
        said = {f.name: v for f in fields(other) if (v := getattr(other, f.name)) is not None}
        return replace(self, **said) if said else self

    def requested(self) -> Mapping[str, float]:
        """The limits that are to be held, by name; those of ``None`` and 0 are left out."""
        return _requested(self)

    def __reduce__(self) -> tuple[Callable[..., Limits], tuple[Any, ...]]:
        # The default for frozen dataclasses with slots takes ten times as long, once per task.
        return _restore, tuple(getattr(self, name) for name in self.__slots__)


@functools.lru_cache(maxsize=64)  # most runs have one, and it is asked several times per task
def _requested(limits: Limits) -> Mapping[str, float]:
    return {f.name: v for f in fields(limits) if (v := getattr(limits, f.name))}


def _restore(*values: Any) -> Limits:
    """Limits that were checked before they were pickled."""
    limits = object.__new__(Limits)
    for name, value in zip(Limits.__slots__, values, strict=True):
        object.__setattr__(limits, name, value)
    return limits
