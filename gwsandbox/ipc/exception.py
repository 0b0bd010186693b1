"""How an exception travels: its texts, which always arrive, and beside them its pickle, which need not.

The body is a count of texts, each text as a length and UTF-8, and then the pickle. Whoever may not unpickle what a
guest wrote reads the texts alone.
"""

from __future__ import annotations

import struct
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from gwsandbox.ipc import pickling
from gwsandbox.ipc.pickling import Buffer
from gwsandbox.model.errors import RemoteError, RemoteTraceback, TransferError
from gwsandbox.model.foreign import ForeignError, call_foreign
from gwsandbox.model.text import cut, describe, format_size, safe_text, type_name

LONGEST_TEXT = 1 << 16
"""Characters of the text, of the traceback, and of all notes together."""
LARGEST_PICKLE = 1 << 22
"""Bytes up to which the exception itself travels."""
FORGED = "the record that it left holds no exception, as those of ours do"
_MOST_NOTES = 100
_NUMBER = struct.Struct("=I")
_FIXED = 4  # texts before the notes
_CAUSE: Any = BaseException.__dict__["__cause__"]
_E = TypeVar("_E", bound=BaseException)
_MOST_BYTES = 4 * (LONGEST_TEXT + 100)  # of one text as UTF-8, with what ``cut`` adds
LARGEST_BODY = LARGEST_PICKLE + (_FIXED + _MOST_NOTES) * _NUMBER.size + (_FIXED + 1) * _MOST_BYTES
"""Bytes of a record's body that ``pack`` never exceeds."""


class Raised(NamedTuple):
    """What is known of an exception without unpickling it.

    Args:
        type_name: Its class, with the module.
        text: What ``str`` gave for it.
        traceback: As the interpreter prints it; "" where there is none.
        reason: Why it could not be pickled, or "".
        notes: Its notes.
        pickled: The exception itself, as a pickle or plain data; empty where it could not be packed, or is too large.
    """

    type_name: str
    text: str
    traceback: str
    reason: str
    notes: tuple[str, ...]
    pickled: bytes

    def describe(self) -> str:
        """Its class and text; the text alone where the class is one of ours."""
        is_ours = self.type_name.startswith(f"{RemoteError.__module__}.")
        return self.text if is_ours else f"{self.type_name}: {self.text}"

    def stand_in(self, reason: str = "") -> RemoteError:
        """An exception of ours that says what is known of it."""
        return _complete(RemoteError(self.type_name, self.text, reason or self.reason), self)

    def exception(self, load: Callable[[Buffer], Any] = pickling.load) -> BaseException:
        """The exception itself, or a stand-in for what cannot be made here; its cause is the traceback.

        Args:
            load: Makes it of what it was packed as.
        """
        if not self.pickled:
            return self.stand_in()
        try:
            error = load(self.pickled)
        except TransferError as why:
            return self.stand_in(str(why))
        if not isinstance(error, BaseException):
            return self.stand_in(f"it was unpickled as {type_name(error)}")
        return _complete(error, self)


def _complete(error: _E, raised: Raised) -> _E:
    """``error`` with what its pickle may lack. Set past its class, for a frozen dataclass refuses every change."""
    if raised.traceback:
        _CAUSE.__set__(error, RemoteTraceback(raised.traceback))
    if raised.notes:
        error.__dict__.setdefault("__notes__", list(raised.notes))
    return error


# --- in the guest ----------------------------------------------------------------------------------------


def _pickled(error: BaseException) -> bytes:
    return pickling.dump_checked(error, in_band=True)[0]


def pack(
    error: BaseException, *, with_traceback: bool = True, dump: Callable[[BaseException], bytes] = _pickled
) -> bytes:
    """The body of the record of an exception. Whatever its class does, it comes to one.

    Args:
        error: The exception.
        with_traceback: Whether its traceback is of use.
        dump: Makes bytes of the exception itself.
    """
    pickled, reason = b"", ""
    try:
        pickled = dump(error)
        if len(pickled) > LARGEST_PICKLE:
            pickled, reason = (
                b"",
                f"it takes {format_size(len(pickled))}, and the most is {format_size(LARGEST_PICKLE)}",
            )
    except BaseException as why:  # noqa: BLE001 - a __reduce__ may raise anything, SystemExit too
        reason = describe(why)
    texts = [type_name(error), safe_text(error), _traceback(error) if with_traceback else "", reason, *_notes(error)]
    parts = [_NUMBER.pack(len(texts))]
    for text in texts:
        encoded = cut(text, LONGEST_TEXT).encode("utf-8", "surrogatepass")
        parts += [_NUMBER.pack(len(encoded)), encoded]
    return b"".join([*parts, pickled])


def _traceback(error: BaseException) -> str:
    try:
        return call_foreign(lambda: "".join(traceback.format_exception(error)))
    except ForeignError as why:
        return f"(the traceback cannot be made: {type_name(why.raised)})"


def _notes(error: BaseException) -> list[str]:
    notes = getattr(error, "__notes__", ())
    if not isinstance(notes, list | tuple):
        return []
    shortened, room = [], LONGEST_TEXT
    for note in notes[:_MOST_NOTES]:
        if room > 0:
            shortened.append(cut(safe_text(note), room))
            room -= len(shortened[-1])
    return shortened


# --- in the caller ---------------------------------------------------------------------------------------


def unpack(body: memoryview) -> Raised:
    """The texts of an exception, and its pickle as it is.

    Raises:
        TransferError: It is not what ``pack`` makes.
    """
    try:
        (count,) = _NUMBER.unpack_from(body)
        position, texts = _NUMBER.size, []
        for _ in range(min(count, _FIXED + _MOST_NOTES)):
            (length,) = _NUMBER.unpack_from(body, position)
            position += _NUMBER.size
            texts.append(str(body[position : position + min(length, _MOST_BYTES)], "utf-8", "surrogatepass"))
            position += length
        kind, text, trace, reason, *notes = texts
    except (struct.error, ValueError) as error:
        raise TransferError(FORGED) from error
    return Raised(kind, text, trace, reason, tuple(notes), bytes(body[position:]))
