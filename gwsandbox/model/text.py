"""Text for people: values, sizes and exceptions as short, harmless lines."""

from __future__ import annotations

from gwsandbox.model.errors import GuestError

_SHOWN = 100  # characters of each value in a repr, as existing scripts print them
_LONGEST_DETAIL = 400


def shorten(value: object) -> str:
    """``repr(value)``, cut at 100 characters plus ``...``."""
    # A bytes result of a gigabyte must not become a text of four first.
    if isinstance(value, bytes | bytearray | str) and len(value) > _SHOWN:
        return repr(value[:_SHOWN])[:_SHOWN] + "..."
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a __repr__ may raise anything, and results are printed
        text = f"<{type(value).__name__} object, whose repr raised {type(error).__name__}>"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def one_line(text: str) -> str:
    """``text`` without line breaks."""
    return " ".join(text.split())


def shown(text: str) -> str:
    """``text`` with everything escaped that a terminal would obey, or a stream could not encode.

    File names and messages of guests come from strangers.
    """
    return "".join(char if char.isprintable() or char in "\n\t" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def shorten_detail(text: str) -> str:
    """``text`` as one line of bearable length."""
    line = one_line(shown(text))
    return line if len(line) <= _LONGEST_DETAIL else line[:_LONGEST_DETAIL] + "..."


def format_size(size: float) -> str:
    """``size`` bytes for people: "200 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def safe_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - a __str__ may raise anything
        return "(its text cannot be made)"


def describe(error: BaseException) -> str:
    """An exception's type and text, whatever its ``__str__`` does."""
    return f"{type_name(error)}: {safe_text(error)}" if not isinstance(error, GuestError) else str(error)
