"""The configured worker function: the service imports it once, and forked guests call it.

Guests inherit the function, so nobody pickles it and its module is warm. The guest answers with a JSON text of
bounded size. The service never unpickles an answer, because the input may have taken over the guest.
"""

from __future__ import annotations

import json
import os
import tempfile
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gwsandbox.importer import import_function
from gwsandbox.model.text import safe_text, shorten, shown, type_name

_LONGEST_TEXT = 4000  # characters
_function: Callable[..., Any] | None = None


@dataclass(frozen=True, slots=True)
class WorkerFailure:
    """The exception that the worker function raised, as text.

    Args:
        type: Name of the exception's class.
        message: Its text.
        traceback: Its traceback, without the frame of this module.
    """

    type: str
    message: str
    traceback: str


def load_function(name: str, path: Sequence[str]) -> Callable[..., Any]:
    """Import the function called ``name``.

    Args:
        name: ``MODULE:FUNCTION``.
        path: Folders that Python searches first.

    Raises:
        ValueError: The module cannot be imported, lacks the function, or the function does not take two paths.
    """
    return import_function(
        name,
        path,
        ("input", "output"),
        if_missing="set worker.path to the folder that holds it, or install it",
        if_unfit="name a function that takes both",
    )


def set_function(function: Callable[..., Any] | None) -> None:
    """Choose the function that ``call_in_guest`` calls in guests forked from now on."""
    global _function  # noqa: PLW0603 - guests inherit it without pickling
    _function = function


def environment(names: Sequence[str], scratch: str) -> dict[str, str]:
    """The environment of a worker, which may be an attacker's: nothing in it is a secret of the service.

    Args:
        names: Variables that it gets besides ``PATH`` and ``LANG``, with the values that the service has.
        scratch: Its scratch folder.
    """
    kept = {name: os.environ[name] for name in ("PATH", "LANG", *names) if name in os.environ}
    return {"PATH": os.defpath, "HOME": scratch, "TMPDIR": scratch} | kept


def call_in_guest(source: str, output: str, scratch: str, names: Sequence[str] = ()) -> bytes:
    """Call the function in the attempt's scratch folder.

    Args:
        source: Path of the input.
        output: Path of the output.
        scratch: Path of the folder.
        names: Variables of the environment that the function may see.

    Returns:
        Nothing, or a JSON object that describes the exception of the function.
    """
    assert _function is not None
    kept = environment(names, scratch)
    os.environ.clear()
    os.environ.update(kept)
    tempfile.tempdir = None  # of the service
    os.chdir(scratch)
    try:
        _function(source, output)
    except MemoryError:
        raise  # the engine turns it into OUT_OF_MEMORY
    except Exception as error:  # noqa: BLE001 - every exception of the function becomes an answer
        return json.dumps(asdict(_describe(error))).encode()
    return b""


def do_nothing() -> None:
    """The task of a guest that only shows that a guest can run."""


def _describe(error: Exception) -> WorkerFailure:
    frames = traceback.format_tb(error.__traceback__)[1:]  # the first frame is this module's
    return WorkerFailure(type_name(error), safe_text(error)[:_LONGEST_TEXT], "".join(frames)[-_LONGEST_TEXT:])


def parse_failure(value: object) -> WorkerFailure | None:
    """Read the answer of ``call_in_guest``, which may be forged; ``None`` where the function raised nothing."""
    if not isinstance(value, bytes) or not value:
        return None
    try:
        answer = json.loads(value[: 16 * _LONGEST_TEXT])
        texts = [shown(str(answer[name]))[:_LONGEST_TEXT] for name in ("type", "message", "traceback")]
    except (ValueError, TypeError, KeyError, RecursionError):
        return WorkerFailure("?", f"the answer cannot be read: {shorten(value)}", "")
    return WorkerFailure(*texts)
