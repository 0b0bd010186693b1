"""What ``gwsandbox map`` does with each input: a function of a module, or a command line."""

from __future__ import annotations

import importlib
import inspect
import os
import shlex
import sys
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from gwsandbox.cli.messages import Failure
from gwsandbox.model.task import Command, Task
from gwsandbox.model.text import one_line, shown

_INPUT, _OUTPUT = "{input}", "{output}"


class Target(Protocol):
    """Makes the task for one input."""

    def task(self, path: str, output: str | None) -> Task | Command:
        """The task that works on ``path`` and, where there is an output folder, writes ``output``."""

    def words(self, path: str, output: str | None) -> list[str]:
        """What the task is called in reports."""


class CommandTarget:
    """A command line in which ``{input}`` and ``{output}`` stand for the paths. No shell reads it.

    Raises:
        Failure: It cannot be taken apart, or lacks what it must have.
    """

    def __init__(self, template: str, *, has_output: bool) -> None:
        try:
            self._words = shlex.split(template)
        except ValueError as error:
            raise Failure(f"--command {template!r}: {error}; check its quotes") from error
        if not any(_INPUT in word for word in self._words):
            raise Failure(f"--command {template!r} has no {_INPUT}; write it where the input's path goes")
        says_output = any(_OUTPUT in word for word in self._words)
        if says_output and not has_output:
            raise Failure(f"--command {template!r} has an {_OUTPUT}; say --output-dir DIR, or take it out")
        if has_output and not says_output:
            raise Failure(f"--command {template!r} has no {_OUTPUT}; add it, or leave out --output-dir")

    def words(self, path: str, output: str | None) -> list[str]:
        # A path may begin with a dash, or hold "{output}".
        path = os.path.join(".", path) if path.startswith("-") else path
        return [_filled(word, path, output or "") for word in self._words]

    def task(self, path: str, output: str | None) -> Command:
        return Command(self.words(path, output))


def _filled(word: str, path: str, output: str) -> str:
    return output.join(part.replace(_INPUT, path) for part in word.split(_OUTPUT))


# Guests inherit both by their fork: the function need not be pickled, and its module is warm.
_function: Callable[..., Any] | None = None
_descriptors: list[int] = []


class FunctionTarget:
    """``MODULE:FUNCTION``, called as ``function(input)`` or ``function(input, output)``.

    Raises:
        Failure: It cannot be imported, found or called so.
    """

    def __init__(self, name: str, *, has_output: bool) -> None:
        self._name = name
        module, _, attribute = name.partition(":")
        if not module or not attribute:
            raise Failure(f"{name!r} is not MODULE:FUNCTION; write worker:convert for example, or --command")
        function = _find(_import(module), attribute, name)
        _check_call(function, name, has_output=has_output)
        global _function  # noqa: PLW0603 - the one way to reach guests without pickling
        _function = function

    def words(self, path: str, output: str | None) -> list[str]:
        return [self._name, path] if output is None else [self._name, path, output]

    def task(self, path: str, output: str | None) -> Task:
        return Task(_call, (path,) if output is None else (path, output))


def _call(*paths: str) -> None:
    """In the guest. What the function returns is nobody's: it is not sent back."""
    assert _function is not None
    for fd in _descriptors:
        os.close(fd)
    _function(*paths)


def hide_from_guests(*descriptors: int) -> None:
    """Close these in a guest before the function is called: what reads documents shall write no reports."""
    _descriptors[:] = descriptors


def _import(name: str) -> Any:
    sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            raise Failure(
                f"there is no module {name!r} in {os.getcwd()} or among the packages of {sys.executable}; "
                "start in the folder that holds it, or set PYTHONPATH"
            ) from error
        raise Failure(f"module {name!r} cannot be imported: {_where(error)}{_text(error)}") from error


def _text(error: BaseException) -> str:
    return one_line(shown("".join(traceback.format_exception_only(error))))


def _where(error: BaseException) -> str:
    """The file and line that raised, where one of its own did."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    own = [frame for frame in frames if "<frozen" not in frame.filename and "importlib" not in frame.filename]
    return f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""


def _find(module: Any, attribute: str, name: str) -> Callable[..., Any]:
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise Failure(f"{name!r}: {module.__name__} ({_file(module)}) has no {attribute!r}; check the name")
        found = getattr(found, part)
    if not callable(found):
        raise Failure(f"{name!r} cannot be called: it is of type {type(found).__name__}; name a function")
    return found  # type: ignore[no-any-return]


def _file(module: Any) -> str:
    return getattr(module, "__file__", None) or "built in"


def _check_call(function: Callable[..., Any], name: str, *, has_output: bool) -> None:
    arguments = ("input", "output") if has_output else ("input",)
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # a built-in that tells nothing about itself
    try:
        signature.bind(*arguments)
    except TypeError as error:
        remedy = "leave out --output-dir" if has_output else "say --output-dir DIR"
        raise Failure(
            f"{name!r} cannot be called as function({', '.join(arguments)}): {error}, its signature is "
            f"{signature}; {remedy}, or name another function"
        ) from error
