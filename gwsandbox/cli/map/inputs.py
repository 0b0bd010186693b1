"""The input files of ``gwsandbox map``: found and checked before anything starts."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from typing import NamedTuple

from gwsandbox.cli.map.outputs import is_staging
from gwsandbox.cli.messages import Failure
from gwsandbox.model.text import shown

NAMED = 10  # of many problems, those that a message names


@dataclass(frozen=True, slots=True)
class Input:
    """One input file.

    Args:
        path: The INPUT argument, or a path below it where that is a folder.
        name: Path of its output in the output folder: that of the file relative to the INPUT argument.
        size: In bytes.
        mtime_ns: Time of the last modification, in nanoseconds since the Epoch.
    """

    path: str
    name: str
    size: int
    mtime_ns: int


class Found(NamedTuple):
    """What the arguments name.

    Args:
        inputs: In the order of the arguments, none twice.
        problems: Files that were met in folders, and cannot be read.
    """

    inputs: list[Input]
    problems: list[str]


def collect(arguments: Sequence[str], never: Iterable[str], *, null: bool = False) -> Found:
    """All input files.

    Args:
        arguments: Files, folders (which are walked, sorted), patterns, and - for paths from stdin.
        never: Paths that are no inputs even where they lie in an INPUT folder: the output folder, the report.
        null: Whether each path on stdin is ended by a NUL, and not by a line break.

    Raises:
        Failure: An argument cannot be read, or nothing can; the text names what cannot.
    """
    excluded = {os.path.realpath(path) for path in never}
    wrong: list[str] = []
    met: list[str] = []
    found: dict[str, Input] = {}
    for argument, name in _named(arguments, excluded, wrong, null=null):
        if os.path.isdir(argument) and os.access(argument, os.R_OK | os.X_OK):
            files, problems = _walk(argument, name, excluded, met), met
        else:
            files, problems = iter([(argument, name or os.path.basename(argument))]), wrong
        for path, place in files:
            key = os.path.abspath(path)
            if key not in found and (file := _check(path, place, problems)):
                found[key] = file
    if not found:
        wrong += met
    if wrong:
        raise Failure(f"{count(wrong, 'input')} cannot be read, so nothing was started: {first_of(wrong)}")
    return Found(list(found.values()), met)


def _named(arguments: Sequence[str], excluded: set[str], wrong: list[str], *, null: bool) -> Iterator[tuple[str, str]]:
    """Each path that the arguments name, and its place in the output folder; empty: that of its own name."""
    for argument in arguments:
        if argument == "-":
            for path in _from_stdin(null=null):
                place = _place(path, os.curdir)
                yield os.path.normpath(path), os.path.abspath(path).lstrip("/") if place.startswith("..") else place
        elif glob.has_magic(argument) and not os.path.lexists(argument):
            base = _fixed_part(argument)
            matches = sorted(map(os.path.normpath, glob.iglob(argument, recursive=True)))
            if not matches:
                wrong.append(f"{shown(argument)}: no file has a name like this")
            yield from ((match, _place(match, base)) for match in matches if not _is_below(match, excluded))
        else:
            yield os.path.normpath(argument), ""


def _from_stdin(*, null: bool) -> Iterator[str]:
    end = b"\0" if null else b"\n"
    with open(0, "rb", closefd=False) as file:
        paths = file.read().split(end)
    yield from (os.fsdecode(path) for path in paths if path)


def _fixed_part(pattern: str) -> str:
    """The folder in which a pattern begins to stand for more than one."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder or os.curdir


def _place(path: str, base: str) -> str:
    """The path relative to ``base``; empty for ``base`` itself."""
    place = os.path.relpath(path, base)
    return "" if place == os.curdir else place


def _is_below(path: str, folders: set[str]) -> bool:
    real = os.path.realpath(path)
    return any(real == folder or real.startswith(f"{folder}/") for folder in folders)


def with_suffix(inputs: Iterable[Input], suffix: str) -> list[Input]:
    """The inputs, with ``suffix`` in the place of that of their outputs' names."""
    return [replace(file, name=os.path.splitext(file.name)[0] + suffix) for file in inputs]


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
