"""Finds the line of each key in a TOML text. ``tomllib`` gives values without lines, and people correct lines."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping

KeyPath = tuple[str, ...]

_TOKEN = re.compile(
    r"""
      (?P<text> \"\"\"(?:\\.|[^\\])*?\"{3,5} | '''.*?'{3,5} | "(?:\\.|[^"\\\n])*" | '[^'\n]*' )
    | (?P<comment> \#[^\n]* )
    | (?P<newline> \n )
    | (?P<open> [\[{] )
    | (?P<close> [\]}] )
    | (?P<other> [^\[\]{}\#\n"']+ )
    """,
    re.VERBOSE | re.DOTALL,
)


def find_lines(text: str) -> dict[KeyPath, int]:
    """The line, from 1, of every key and table of a valid TOML text.

    Keys inside of an inline table or an array have no entry: see ``line_of``.
    """
    found: dict[KeyPath, int] = {}
    table: KeyPath = ()
    for number, statement in _statements(text):
        if statement.startswith("["):
            path = table = _parts(statement.strip("[]"))
        else:
            path = (*table, *_parts(_key(statement)))
        for length in range(1, len(path) + 1):
            found.setdefault(path[:length], number)
    return found


def line_of(lines: Mapping[KeyPath, int], path: KeyPath) -> int:
    """The line of a key, or of the innermost table that holds it; 1 where there is none."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 1)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Each key with its value, and each header: the line where it starts, and its text without comments."""
    line = start = 1
    depth = 0
    words: list[str] = []
    for match in _TOKEN.finditer(text + "\n"):
        kind, word = match.lastgroup, match[0]
        depth += (kind == "open") - (kind == "close")
        if kind == "newline" and depth <= 0:
            if statement := "".join(words).strip():
                yield start, statement
            words, start = [], line + 1
        elif kind != "comment":
            words.append(word)
        line += word.count("\n")


def _key(statement: str) -> str:
    """The text before the first ``=`` that is not in quotes."""
    taken: list[str] = []
    for match in _TOKEN.finditer(statement):
        if match.lastgroup == "other" and "=" in match[0]:
            return "".join(taken) + match[0].partition("=")[0]
        taken.append(match[0])
    return statement


def _parts(key: str) -> KeyPath:
    """Split ``a."b c".d`` into its parts, by ``tomllib``."""
    try:
        value: object = tomllib.loads(f"{key.strip()} = 0")
    except tomllib.TOMLDecodeError:
        return (key.strip(),)
    parts = []
    while isinstance(value, dict):
        ((name, value),) = value.items()
        parts.append(name)
    return tuple(parts)
