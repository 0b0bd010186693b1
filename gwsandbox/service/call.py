"""The configured function: found when the service starts, called in the guests that are forked from it.

The guests inherit it, so that it need not be pickled and its module is warm. What a call gives back is bytes
of ours, and nothing that would have to be unpickled: the guest may have been taken over by what it has read.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from gwsandbox.model.text import shorten, shown

_LONGEST_TEXT = 4000
_function: Callable[..., Any] | None = None


def load(name: str, path: Sequence[str]) -> Callable[..., Any]:
    """The function called ``name``, which is ``MODULE:FUNCTION``.

    Args:
        name: Of the function.
        path: Folders in which to look for its module first.

    Raises:
        ValueError: It cannot be imported, found, or called with two paths.
    """
    sys.path[:0] = [folder for folder in path if folder not in sys.path]
    module, _, attribute = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        why = " ".join("".join(traceback.format_exception_only(error)).split())
        if isinstance(error, ImportError):
            why += "; set worker.path to the folder it is in, or install it"
        raise ValueError(f"module {module} cannot be imported: {why}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"module {module} has no {attribute}; check the name")
        found = getattr(found, part)
    if not callable(found):
        raise ValueError(f"{name} is a {type(found).__name__}; name a function")  # noqa: TRY004 - of the config
    _check_signature(found, name)
    return found  # type: ignore[no-any-return]


def _check_signature(function: Callable[..., Any], name: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # a built-in that tells nothing about itself
    try:
        signature.bind("input", "output")
    except TypeError as error:
        raise ValueError(f"{name}{signature} cannot be called with (input, output): {error}") from error


def choose(function: Callable[..., Any] | None) -> None:
    """Let ``in_guest`` of guests that are forked from here on call ``function``."""
    global _function  # noqa: PLW0603 - the one way to reach guests without pickling
    _function = function


def in_guest(source: str, output: str, scratch: str) -> bytes:
    """Call the function, in its own scratch folder.

    Returns:
        Nothing; or, where it raised, a JSON object that says what.
    """
    assert _function is not None
    os.environ["TMPDIR"] = tempfile.tempdir = scratch
    os.chdir(scratch)
    try:
        _function(source, output)
    except MemoryError:
        raise  # which has a meaning of its own
    except Exception as error:  # noqa: BLE001 - all that a function raises is told
        return _told(error)
    return b""


def _told(error: Exception) -> bytes:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a __str__ may raise anything
        message = "(its text cannot be made)"
    told = {
        "type": name,
        "message": message[:_LONGEST_TEXT],
        "traceback": "".join(traceback.format_tb(error.__traceback__)[1:])[-_LONGEST_TEXT:],  # the first is ours
    }
    return json.dumps(told).encode()


def failure_of(value: object) -> dict[str, str] | None:
    """What ``in_guest`` says went wrong; ``None`` where nothing did. A stranger may have written it."""
    if not isinstance(value, bytes) or not value:
        return None
    try:
        told = json.loads(value[: 16 * _LONGEST_TEXT])
        return {name: shown(str(told[name]))[:_LONGEST_TEXT] for name in ("type", "message", "traceback")}
    except (ValueError, TypeError, KeyError, RecursionError):
        message = f"not told in an understandable way: {shorten(value)}"
        return {"type": "?", "message": message, "traceback": ""}
