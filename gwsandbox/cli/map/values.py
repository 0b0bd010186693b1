"""The value of a function under ``gwsandbox map``, from the guest into the report: as JSON, where it is JSON."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass
from typing import Any

from gwsandbox.model.text import shown, type_name

_LARGEST = 1 << 20  # bytes of JSON in a row


@dataclass(frozen=True, slots=True)
class Value:
    """What the report says of a value.

    Args:
        json: The value, where the report holds it.
        why_not: Why it does not; empty where it does.
    """

    json: Any = None
    why_not: str = ""


def pack(value: object) -> bytes:
    """In the guest: ``value`` for the way to the CLI, which unpickles nothing of a guest.

    Raises:
        TypeError: It is a generator or an awaitable: nothing of the work was done.
    """
    if inspect.isgenerator(value) or inspect.isasyncgen(value) or inspect.isawaitable(value):
        kind = type(value).__name__
        raise TypeError(f"the function returned a {kind}, of which nothing was run; let it return a value")
    if value is None:
        return b""
    try:
        text = json.dumps({"value": value}, allow_nan=False, default=_plain)
    except Exception:  # noqa: BLE001 - a class of the user's may raise anything
        return json.dumps({"why_not": f"a value of type {type_name(value)} is not JSON"}).encode()
    if len(text) > _LARGEST:
        return json.dumps({"why_not": f"a value of {len(text)} bytes of JSON is too large"}).encode()
    return text.encode()


def _plain(value: Any) -> Any:
    """A number of NumPy and the like as a plain one."""
    import numbers

    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    raise TypeError


def unpack(packed: object) -> Value:
    """In the CLI: what ``pack`` packed. A stranger may have written it."""
    if not isinstance(packed, bytes) or not packed:
        return Value()
    try:
        found = json.loads(packed[: 2 * _LARGEST])
        return Value(found["value"]) if "value" in found else Value(why_not=shown(str(found["why_not"])[:200]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return Value(why_not="the guest sent no JSON")
