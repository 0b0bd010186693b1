"""The files that ``gwsandbox map`` is given: found, checked and named before anything starts."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass

from gwsandbox.cli.map.outputs import is_staging
from gwsandbox.cli.messages import Failure
from gwsandbox.model.text import shown

_NAMED = 10  # of many problems, how many are shown


@dataclass(frozen=True, slots=True)
class Input:
    """One file to work on.

    Args:
        path: As it was given, or below the folder that was given.
        name: Its path relative to the INPUT argument, which is the name of its output.
        size: In bytes.
        mtime_ns: When it was last modified, in nanoseconds since the Epoch.
    """

    path: str
    name: str
    size: int
    mtime_ns: int


def collect(arguments: Sequence[str], never: Iterable[str]) -> list[Input]:
    """All input files: in the order of the arguments, folders walked and sorted, none twice.

    Args:
        arguments: Files and folders.
        never: Paths of what is no input though it lies in a folder: the output folder, the report.

    Raises:
        Failure: Some cannot be read; names them.
    """
    excluded = {os.path.realpath(path) for path in never}
    problems: list[str] = []
    found: dict[str, Input] = {}
    for argument in arguments:
        for path, name in _files(os.path.normpath(argument), excluded, problems):
            key = os.path.abspath(path)
            if key not in found and (file := _check(path, name, problems)):
                found[key] = file
    if problems:
        found_wrong = count(problems, "input")
        raise Failure(f"{found_wrong} cannot be read, so nothing was started: {first_of(problems)}")
    return list(found.values())


def first_of(problems: Sequence[str]) -> str:
    """The first of many, and how many more there are."""
    more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
    return "; ".join(problems[:_NAMED]) + more


def count(things: Sized, name: str) -> str:
    """``"1 input"``, ``"2 inputs"``."""
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _files(argument: str, excluded: set[str], problems: list[str]) -> Iterator[tuple[str, str]]:
    if os.path.isdir(argument):
        yield from _walk(argument, "", excluded, problems)
    else:
        yield argument, os.path.basename(argument)


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
        elif entry.is_file() or (entry.is_symlink() and not os.path.exists(path)):
            yield path, name  # a link that leads nowhere is a missing input; pipes and sockets are none


def _check(path: str, name: str, problems: list[str]) -> Input | None:
    try:
        status = os.stat(path)
    except OSError as error:
        problems.append(f"{shown(path)}: {error.strerror}")
        return None
    if not stat.S_ISREG(status.st_mode):
        problems.append(f"{shown(path)}: not a regular file")
    elif not os.access(path, os.R_OK):
        problems.append(f"{shown(path)}: Permission denied")
    else:
        return Input(path, name, status.st_size, status.st_mtime_ns)
    return None
