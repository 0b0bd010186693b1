"""``MODULE:FUNCTION``: imports the module and finds the function."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from types import FunctionType, ModuleType
from typing import Any

from gwsandbox.model.text import one_line, shown


def import_function(
    name: str, folders: Sequence[str], parameters: Sequence[str], *, if_missing: str, if_unfit: str
) -> Callable[..., Any]:
    """Import the function ``name``. A coroutine function is wrapped, so that a call runs it to its end.

    Args:
        name: ``MODULE:FUNCTION``; the function may be an attribute of a class: ``worker:Steps.convert``.
        folders: Folders in which the module is searched first; they stay on ``sys.path``.
        parameters: Names of the arguments that it will be called with, by position.
        if_missing: Remedy where there is no such module.
        if_unfit: Remedy where the function does not take these arguments.

    Raises:
        ValueError: There is no such module or function, the import fails, or the function cannot be called so.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or module_name.endswith(".py") or "/" in module_name:
        raise ValueError(f"{name!r} is not MODULE:FUNCTION; write {_suggestion(name)}")
    sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]
    module = _import(module_name, folders, if_missing)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{name!r}: {module_name} ({_file(module)}) has no {attribute!r}; {_remedy(found, part)}")
        found = getattr(found, part)
    if not callable(found):
        kind = type(found).__name__
        raise ValueError(f"{name!r} cannot be called: it is of type {kind}; name a function")  # noqa: TRY004
    _check_call(found, name, parameters, if_unfit)
    return _as_plain_function(found)


def _check_call(function: Callable[..., Any], name: str, parameters: Sequence[str], remedy: str) -> None:
    calls = function, getattr(function, "__call__", None)  # noqa: B004 - the method of an object
    if any(inspect.isgeneratorfunction(call) or inspect.isasyncgenfunction(call) for call in calls):
        raise ValueError(f"{name!r} is a generator function: a call runs nothing of it; name a function that returns")
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # a built-in function without a signature
    try:
        signature.bind(*parameters)
    except TypeError as error:
        call = f"function({', '.join(parameters)})"
        raise ValueError(
            f"{name!r} cannot be called as {call}: {error}, its signature is {signature}; {remedy}"
        ) from error


def _suggestion(name: str) -> str:
    """``MODULE:FUNCTION`` as the user may have meant it by ``name``."""
    path, _, attribute = name.partition(":")
    is_file = path.endswith(".py")
    module = os.path.normpath(path.removesuffix(".py")).strip("/.").replace("/", ".")
    if not attribute and not is_file and "." in module:
        module, _, attribute = module.rpartition(".")
    if not module or not (is_file or attribute):
        return "worker:convert for example"
    return f"{module}:{attribute or 'FUNCTION'}"


def _remedy(holder: object, name: str) -> str:
    """Name the attribute of ``holder`` that looks most like ``name``, where one does."""
    import difflib  # noqa: PLC0415 - for a message only

    close = difflib.get_close_matches(name, dir(holder), n=1)
    return f"check the name (did you mean {close[0]!r}?)" if close else "check the name"


def _import(name: str, folders: Sequence[str], remedy: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            places = " or ".join([*(f"in {folder}" for folder in folders), f"among the packages of {sys.executable}"])
            raise ValueError(f"there is no module {name!r} {places}; {remedy}") from error
        text = one_line(shown("".join(traceback.format_exception_only(error))))
        raise ValueError(f"module {name!r} cannot be imported: {_where(error)}{text}") from error


def _where(error: BaseException) -> str:
    """The file and line that raised, where it is not one of the interpreter's import system."""
    frames = traceback.extract_tb(error.__traceback__)[1:]  # the first is ours
    own = [frame for frame in frames if "<frozen" not in frame.filename and "importlib" not in frame.filename]
    return f"{own[-1].filename}, line {own[-1].lineno}: " if own else ""


def _file(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built in"


def _as_plain_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function``; or, for a coroutine function, a function that runs it by ``asyncio.run``."""
    return functools.partial(_run_coroutine, function) if _is_coroutine_function(function) else function


def _is_coroutine_function(function: Any) -> bool:
    while isinstance(function, functools.partial):
        function = function.func
    if isinstance(function, FunctionType):  # nearly always
        return inspect.iscoroutinefunction(function)
    method = getattr(function, "__call__", None)  # noqa: B004 - the method of an object
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)


def _run_coroutine(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    import asyncio  # noqa: PLC0415 - 60 ms, and most tasks are plain functions

    return asyncio.run(function(*args, **kwargs))
