"""Values as pickles: made in the guest, which sees that they unpickle again, and opened in the caller.

Large buffers (arrays) go beside the pickle. Exceptions go without a call of their ``__init__``, which need not take
what ``args`` holds, and may make a text of it once more.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, MethodDescriptorType, WrapperDescriptorType
from typing import Any

from gwsandbox.model.errors import TransferError
from gwsandbox.model.foreign import ForeignError, call_foreign
from gwsandbox.model.text import describe

Buffer = bytes | bytearray | memoryview


def dump_checked(value: object, *, in_band: bool = False) -> tuple[bytes, list[memoryview]]:
    """Pickle ``value``; where it holds more than plain data, see in the guest whether it unpickles again.

    So that what raises, hangs or exits when unpickled does so in the guest, under its limits, and not in the
    caller's process.

    Args:
        value: Anything.
        in_band: Whether buffers are to be in the pickle too.

    Returns:
        The pickle, and the buffers beside it.

    Raises:
        BaseException: Whatever the code of its classes raises; it cannot travel.
    """
    try:
        return _dump(_Pickler, value, in_band=in_band)
    except (pickle.PicklingError, TypeError, AttributeError):
        # Local functions and classes, which only cloudpickle can send. If it cannot either, its error counts.
        return _dump(_by_value_pickler, value, in_band=in_band)


def _dump(make: Callable[..., Any], value: object, *, in_band: bool) -> tuple[bytes, list[memoryview]]:
    target = io.BytesIO()
    buffers: list[pickle.PickleBuffer] = []
    pickler = make(target, protocol=5, buffer_callback=None if in_band else buffers.append)
    pickler.dump(value)
    views = [buffer.raw() for buffer in buffers]
    body = target.getvalue()  # the buffer itself, and nothing that BytesIO would wait for when it is collected
    if getattr(pickler, "foreign", True):
        pickle.loads(body, buffers=views)
    return body, views


class _Pickler(pickle.Pickler):
    """Pickles by reference where it can, as pickle does, and notes whether anything but plain data came by."""

    foreign = False

    def reducer_override(self, value: Any) -> Any:
        self.foreign = True  # called for everything that is not of a built-in type
        return _reduced_exception(value) if isinstance(value, BaseException) else NotImplemented


def _by_value_pickler(target: io.BytesIO, **options: Any) -> Any:
    import cloudpickle  # noqa: PLC0415 - 20 ms, and most runs pickle nothing by value

    class ByValuePickler(cloudpickle.Pickler):  # type: ignore[misc] # it is untyped
        def reducer_override(self, value: Any) -> Any:
            reduced = _reduced_exception(value) if isinstance(value, BaseException) else NotImplemented
            return super().reducer_override(value) if reduced is NotImplemented else reduced

    return ByValuePickler(target, **options)


# --- exceptions ------------------------------------------------------------------------------------------


def _reduced_exception(error: BaseException) -> Any:
    """How to pickle an exception whose class makes its instances in Python, and says nothing of pickling."""
    kind = type(error)
    says_how = (kind.__reduce__, kind.__reduce_ex__, kind.__setstate__)
    if not all(map(_is_builtin, says_how)) or (_is_builtin(kind.__init__) and _is_builtin(kind.__new__)):
        return NotImplemented
    reduced: tuple[Any, ...] = error.__reduce__()  # type: ignore[assignment] # what a built-in class gives
    _, made_of, *state = reduced  # of an OSError more than its ``args``, of an ImportError more than its attributes
    if isinstance(error, BaseExceptionGroup):
        made_of = (error.message, error.exceptions)
    return rebuild, (kind, made_of, error.args, *state)


def _is_builtin(function: object) -> bool:
    return isinstance(function, BuiltinFunctionType | MethodDescriptorType | WrapperDescriptorType)


def rebuild(
    kind: type[BaseException], made_of: tuple[Any, ...], args: tuple[Any, ...], state: dict[str, Any] | None = None
) -> BaseException:
    """An exception as it was, made by the built-in class that its own is derived from.

    Its attributes are set past its class, for a frozen dataclass refuses every change.

    Args:
        kind: Its class.
        made_of: Arguments of the built-in class.
        args: Its ``args``.
        state: Its attributes.
    """
    error: BaseException = _of_builtin(kind, "__new__")(kind, *made_of)
    _of_builtin(kind, "__init__")(error, *made_of)
    for name, value in {**(state or {}), "args": args}.items():
        object.__setattr__(error, name, value)
    return error


def _of_builtin(kind: type[BaseException], name: str) -> Callable[..., Any]:
    """The first method of that name, in the order of inheritance, that is not written in Python."""
    found: Callable[..., Any] = next(
        method for parent in kind.__mro__ if name in vars(parent) and _is_builtin(method := getattr(parent, name))
    )
    return found


# --- in the caller ---------------------------------------------------------------------------------------


_EXTENSION_CODES = frozenset(pickle.EXT1 + pickle.EXT2 + pickle.EXT4)  # found in a cache, and not by ``find_class``
_SMALL = 1 << 10  # bytes, which open in no time; what is larger is not opened twice


class _NothingImported(pickle.Unpickler):
    """Opens what is plain data, for which no code of the guest's can run: what runs has to be found first."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"not plain data: {module}.{name}")


def load(body: Buffer, buffers: Sequence[Buffer] = ()) -> Any:
    """What a pickle of a guest's holds.

    Raises:
        TransferError: It does not unpickle here, whatever its code raises.
    """
    if len(body) <= _SMALL and not buffers and _EXTENSION_CODES.isdisjoint(body):
        try:
            return _NothingImported(io.BytesIO(body)).load()
        except Exception:  # noqa: BLE001, S110 - it is opened once more below, where code of the guest's may run
            pass
    try:
        return call_foreign(lambda: pickle.loads(body, buffers=buffers))
    except ForeignError as error:
        raise TransferError(f"result cannot be unpickled here: {describe(error.raised)}") from error.raised
