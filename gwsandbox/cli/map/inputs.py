"""The input files of ``gwsandbox map``: found and checked before anything starts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass

from gwsandbox.cli.map.outputs import is_staging
from gwsandbox.cli.messages import Failure
from gwsandbox.model.text import shown

NAMED = 10  # of many problems, those that a message names


@dataclass(frozen=True, slots=True)
class Input:
    """One input file.

    Args:
        path: The INPUT argument, or a path below it where that is a folder.
        name: The path relative to the INPUT argument; the output has the same name.
        size: In bytes.
        mtime_ns: Time of the last modification, in nanoseconds since the Epoch.
    """

    path: str
    name: str
    size: int
    mtime_ns: int


def collect(arguments: Sequence[str], never: Iterable[str]) -> tuple[list[Input], list[str]]:
    """All input files, and problems with files that were met in folders.

    The files are in the order of the arguments, folders walked and sorted, none twice.

    Args:
        arguments: Files and folders.
        never: Paths that are no inputs even where they lie in an INPUT folder: the output folder, the report.

    Raises:
        Failure: An argument cannot be read, or nothing can; the text names what cannot.
    """
    excluded = {os.path.realpath(path) for path in never}
    wrong: list[str] = []
    met: list[str] = []
    found: dict[str, Input] = {}
    for argument in map(os.path.normpath, arguments):
        if os.path.isdir(argument) and os.access(argument, os.R_OK | os.X_OK):
            files, problems = _walk(argument, "", excluded, met), met
        else:
            files, problems = iter([(argument, os.path.basename(argument))]), wrong
        for path, name in files:
            key = os.path.abspath(path)
            if key not in found and (file := _check(path, name, problems)):
                found[key] = file
    if not found:
        wrong += met
    if wrong:
        raise Failure(f"{count(wrong, 'input')} cannot be read, so nothing was started: {first_of(wrong)}")
    return list(found.values()), met


def first_of(problems: Sequence[str], *, of: int | None = None) -> str:
    """The first ten problems, and the number of the others, where there are ``of`` altogether."""
    more = (len(problems) if of is None else of) - NAMED
    return "; ".join(problems[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def count(things: Sized, name: str) -> str:
    """``"1 input"``, ``"2 inputs"``."""
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _walk(folder: str, prefix: str, excluded: set[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        problems.append(f"{shown(folder)}: {error.strerror}")
        return
    for entry in inside:
        path = entry.name if folder == os.curdir else os.path.join(folder, entry.name)
        name = os.path.join(prefix, entry.name)
        if excluded and os.path.realpath(path) in excluded:
            continue
        if entry.is_dir(follow_symlinks=False):
            if not is_staging(entry.name):
                yield from _walk(path, name, excluded, problems)
        elif os.path.isfile(path) or not os.path.exists(path):
            yield path, name  # a link that leads nowhere is an input that is missing; pipes and sockets are no inputs


def _check(path: str, name: str, problems: list[str]) -> Input | None:
    try:
        status = os.stat(path)
    except OSError as error:
        problems.append(f"{shown(path)}: {error.strerror}")
        return None
    if stat.S_ISDIR(status.st_mode):
        problems.append(f"{shown(path)}: Permission denied")
    elif not stat.S_ISREG(status.st_mode):
        problems.append(f"{shown(path)}: not a regular file")
    elif not os.access(path, os.R_OK):
        problems.append(f"{shown(path)}: Permission denied")
    else:
        return Input(path, name, status.st_size, status.st_mtime_ns)
    return None
