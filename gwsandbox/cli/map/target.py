"""The work of ``gwsandbox map`` on each input: a function of a module, or a command line."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, Protocol

from gwsandbox.cli.map import values
from gwsandbox.cli.map.template import Template
from gwsandbox.cli.messages import Failure
from gwsandbox.importer import import_function
from gwsandbox.model.limits import Limits
from gwsandbox.model.task import Command, Task


class Target(Protocol):
    """Makes the task for one input.

    Attributes:
        preload: Modules that a clean interpreter imports once.
    """

    preload: tuple[str, ...]

    def task(self, path: str, output: str | None, limits: Limits | None = None) -> Task | Command:
        """The task that works on ``path`` and, where there is an output folder, writes ``output``.

        ``limits`` are those that differ from the others'.
        """

    def words(self, path: str, output: str | None) -> list[str]:
        """The task in the report: the function or program, and its arguments."""


class CommandTarget:
    """A command line; see ``Template``."""

    preload: tuple[str, ...] = ()

    def __init__(self, template: str, *, has_output: bool) -> None:
        self._template = Template(template, has_output=has_output)

    def words(self, path: str, output: str | None) -> list[str]:
        return self._template.words(path, output)

    def task(self, path: str, output: str | None, limits: Limits | None = None) -> Command:
        return Command(self.words(path, output), limits=limits)


# Guests inherit both by their fork: the function is not pickled, and its module is imported once.
_function: Callable[..., Any] | None = None
_hidden: dict[int, tuple[int, int]] = {}  # descriptors, and the device and inode of each


class FunctionTarget:
    """``MODULE:FUNCTION``, called as ``function(input)`` or ``function(input, output)``.

    Args:
        name: ``MODULE:FUNCTION``.
        has_output: Whether there is an output folder.
        is_inherited: Whether guests are forks of this process; else they are forks of a clean interpreter.

    Raises:
        Failure: The function cannot be imported, or does not take these arguments.
    """

    preload: tuple[str, ...] = ()

    def __init__(self, name: str, *, has_output: bool, is_inherited: bool = True) -> None:
        self._name = name
        function = _load(name, has_output=has_output)
        if is_inherited:
            global _function  # noqa: PLW0603 - the one way to reach guests without pickling
            _function = function
            self._call: Callable[..., bytes] = _call_inherited
        else:
            self._call = functools.partial(_call, function)
            module = name.partition(":")[0]
            self.preload = (module,) if all(map(str.isidentifier, module.split("."))) else ()

    def words(self, path: str, output: str | None) -> list[str]:
        return [self._name, path] if output is None else [self._name, path, output]

    def task(self, path: str, output: str | None, limits: Limits | None = None) -> Task:
        return Task(self._call, (path,) if output is None else (path, output), limits=limits)


def _load(name: str, *, has_output: bool) -> Callable[..., Any]:
    remedy = "leave out --output-dir" if has_output else "say --output-dir DIR"
    try:
        return import_function(
            name,
            [os.getcwd()],
            ("input", "output") if has_output else ("input",),
            if_missing="start in the folder that holds it, or set PYTHONPATH",
            if_unfit=f"{remedy}, or name another function",
        )
    except ValueError as error:
        raise Failure(f"{error}, or --command" if ":" not in name else str(error)) from error


def _call(function: Callable[..., Any], *paths: str) -> bytes:
    """In the guest: call the function; its value for the report."""
    return values.pack(function(*paths))


def _call_inherited(*paths: str) -> bytes:
    """In a guest that is a fork of this process: call the function, without what is this process's alone."""
    assert _function is not None
    for fd, file in _hidden.items():
        # In a guest the same number may be another file: the supervisor closes some descriptors of ours.
        with contextlib.suppress(OSError):
            if _identity(fd) == file:
                os.close(fd)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    return _call(_function, *paths)


def hide_from_guests(*descriptors: int) -> None:
    """Close these descriptors too in a guest, before the function is called: it shall not write to the report."""
    _hidden.update((fd, _identity(fd)) for fd in descriptors)


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino
