"""Text for people: values, sizes and exceptions as short, harmless lines."""

from __future__ import annotations

from gwsandbox.model.errors import GuestError
from gwsandbox.model.foreign import ForeignError, call_foreign

INPUT, OUTPUT = "{input}", "{output}"  # the placeholders of a command line that works on files

_SHOWN = 100  # characters of each value in a repr, as existing scripts print them
_LONGEST_DETAIL = 400
_LONGEST_WORD = 4096  # characters, as many as a path may have
_STDERR_TAIL = 2000  # bytes


def shorten(value: object) -> str:
    """``repr(value)``, cut at 100 characters plus ``...``."""
    # A bytes result of a gigabyte must not become a text of four first.
    if isinstance(value, bytes | bytearray | str) and len(value) > _SHOWN:
        return repr(value[:_SHOWN])[:_SHOWN] + "..."
    try:
        text = call_foreign(lambda: repr(value))
    except ForeignError as error:
        text = f"<{type(value).__name__} object, whose repr raised {type(error.raised).__name__}>"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def word(value: object) -> str:
    """``str(value)``, cut at 4096 characters, whatever the ``__str__`` of its class does."""
    # A bytes value of a gigabyte must not become a text of four first.
    text = safe_text(value[:_LONGEST_WORD] if isinstance(value, bytes | bytearray | str) else value)
    return text if len(text) < _LONGEST_WORD else text[:_LONGEST_WORD] + "..."


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


def fill_placeholders(word: str, source: str, output: str) -> str:
    """``word`` with the two paths in place of ``{input}`` and ``{output}``, whatever the paths hold."""
    return output.join(part.replace(INPUT, source) for part in word.split(OUTPUT))


def stderr_tail(stderr: bytes) -> str:
    """The end of what a program wrote to stderr, where programs say why they failed; safe to print."""
    return shown(stderr[-_STDERR_TAIL:].decode(errors="replace")).strip()


def last_line(text: str) -> str:
    """The last line of ``text``; empty where there is none."""
    return text.rstrip().rpartition("\n")[2].strip()


def format_size(size: float) -> str:
    """``size`` bytes for people: "200 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"


def cut(text: str, longest: int) -> str:
    """``text``, or its two ends where it has more than ``longest`` characters: each of them can matter."""
    if len(text) <= longest:
        return text
    end = longest // 2
    rest = len(text) - end
    return f"{text[:end]}\n[{rest - end} characters are left out here]\n{text[rest:]}"


def type_name(value: object) -> str:
    """The name of the type of ``value``, with its module where that is not ``builtins``."""
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def safe_text(value: object) -> str:
    """``str(value)``, whatever the ``__str__`` of its class does."""
    try:
        return call_foreign(lambda: str.__str__(str(value)))  # and no instance of a class derived from it
    except ForeignError:
        return "(its text cannot be made)"


def describe(error: BaseException) -> str:
    """An exception's type and text, whatever its ``__str__`` does."""
    text = safe_text(error)
    return text if isinstance(error, GuestError) else f"{type_name(error)}: {text}"
