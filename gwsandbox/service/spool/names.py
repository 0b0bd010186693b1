"""File names in the spool.

Producers choose names: any 255 bytes but NUL and slash may be in them. The service holds them as text with
surrogates for bytes that are not UTF-8 (``os.fsdecode``), and counts lengths in bytes.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator

_LONGEST_NAME = 255  # bytes; of every file system that people put a spool on
_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,16}\Z")


def is_for_us(name: str) -> bool:
    """Whether the service may take the file. Producers write under names that start with a dot or end in ``.part``."""
    return not name.startswith(".") and not name.endswith(".part")


def suffix(name: str) -> str:
    """The end of a name that says its type, such as ``".pdf"``; empty where it has no harmless one."""
    found = _SUFFIX.search(name, 1)
    return found[0] if found else ""


def names_like(name: str, number: int, *, room: int = 0) -> Iterator[str]:
    """Names to try, best first: ``name`` itself, then with ``~number`` in it, without end.

    Args:
        name: The wanted name.
        number: The job's number: no other job asks for a name with it.
        room: Bytes to leave for a suffix that the caller appends.
    """
    longest = _LONGEST_NAME - room
    if len(os.fsencode(name)) <= longest:
        yield name
    end = suffix(name)
    stem = name[: len(name) - len(end)]
    for again in itertools.count(1):
        mark = f"~{number}" if again == 1 else f"~{number}.{again}"
        while len(os.fsencode(stem + mark + end)) > longest:
            stem = stem[:-1]
        yield stem + mark + end
