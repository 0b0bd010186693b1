"""How the value or the exception of a task travels back.

A guest writes one record into its result descriptor, a memfd: first the body, and the head last, so that a
record is either whole or absent, whenever the guest is killed. Bytes go as they are. Everything else is
pickled with protocol 5, large buffers (arrays) beside the pickle so that the caller maps and does not copy
them.

Trust: a value of a Python call is unpickled in the caller's process, so a guest that was taken over can run
code there. Where that matters, use a ``Command`` or a function that returns bytes or ``None``:
bytes are never unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import pickle
import resource
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any

from gwsandbox.ipc import exception, pickling
from gwsandbox.ipc.pickling import Buffer
from gwsandbox.linux import syscalls
from gwsandbox.model.errors import TransferError
from gwsandbox.model.text import describe, shorten_detail, type_name
from gwsandbox.model.verdict import Delivery

_HEAD = struct.Struct("=4sBxxxQQQ")  # magic, delivery, length of the body, number of buffers, of the record
_LENGTH = struct.Struct("=Q")
_MAGIC = b"gws1"
_VALUE = Delivery.VALUE.value  # which before Python 3.12 is Python code, and pages written in a guest
_NO_ROOM = Delivery.NO_ROOM.value
_BYTES_VALUE = 0x80  # beside the delivery: the body is the value itself
_ALIGN = 64  # of out-of-band buffers: what NumPy wants of an array's memory
_ROOM = 1 << 46  # bytes; more than any record, and less than the largest file
_PLACE = _ROOM + 0x677773  # of the file's offset, which marks it: no other file is read or written there
_LARGEST_ERRNO = 4095  # include/linux/err.h
_NOTE = struct.Struct("=4sH")  # magic, bytes of text that follow
_NOTE_MAGIC = b"left"
_NOTE_PLACE = _ROOM - 4096
_LONGEST_NOTE = 300  # bytes
_MAPPED = 1 << 26  # bytes from which on a record is mapped and not copied, before Python 3.13
_AT_ONCE = 4096  # bytes of a page, which the kernel writes in one go or not at all when the guest is killed
INLINE = 1 << 16  # bytes up to which a record travels in the report itself

_PLAIN = frozenset({type(None), bool, int, float, str})  # what pickles in no other way than unpickles


Load = Callable[[Buffer, Sequence[Buffer]], Any]
"""What makes a value of the body of a record and the buffers behind it."""


class ResultLostError(Exception):
    """A guest cannot write its record; the text says why."""


# --- the record, written by the guest -------------------------------------------------------------------


def write_value(fd: int, value: object, _returns: Sequence[type] = ()) -> bool:
    """Write the value that the function returned; whether that went well.

    Where it cannot be pickled, or not be unpickled again, an exception that says so is written instead. Of the types
    that the caller declared only ``plain_record`` makes use.

    Raises:
        ResultLostError: The descriptor is not that of the record any more.
    """
    if value is None and _is_record(fd) and os.pwrite(fd, _NONE, 0) == len(_NONE):
        return True
    if type(value) is bytes:
        _write_record(fd, _VALUE | _BYTES_VALUE, value, [])
        return True
    if type(value) in _PLAIN:
        _write_record(fd, _VALUE, pickle.dumps(value, protocol=5), [])
        return True
    try:
        body, buffers = pickling.dump_checked(value)
    except MemoryError:
        raise
    except BaseException as error:  # noqa: BLE001 - a __reduce__ may raise anything, SystemExit too
        refusal = TransferError(
            f"result of type {type_name(value)} cannot be sent back: {describe(error)}; "
            "return plain data, or write it to a file"
        )
        _write_record(fd, Delivery.NOT_TRANSFERABLE.value, exception.pack(refusal, with_traceback=False), [])
        return False
    _write_record(fd, _VALUE, body, buffers)
    return True


def write_pieces(fd: int, kind: int, pieces: Sequence[Buffer]) -> None:
    """Write a record whose body is these pieces, one behind the other.

    Raises:
        ResultLostError: The descriptor is not that of the record any more.
    """
    if len(pieces) == 1:
        _write_record(fd, kind, pieces[0], [])
        return
    _check_record(fd)
    try:
        position = _HEAD.size
        for piece in pieces:
            position = write_all(fd, piece, position)
        _write_head(fd, _HEAD.pack(_MAGIC, kind, position - _HEAD.size, 0, position))
    except OSError as error:
        raise _lost(fd, error) from error


def write_exception(fd: int, error: BaseException, delivery: Delivery, _returns: Sequence[type] = ()) -> None:
    """Write an exception, with its texts.

    Raises:
        ResultLostError: The descriptor is not that of the record any more.
    """
    _write_record(fd, delivery.value, exception.pack(error), [])


def _is_record(fd: int) -> bool:
    """Whether ``fd`` is what ``create`` made.

    The task may have closed it, and opened a file of its own that got the same number. Its place shows that: one page
    fault in a fresh fork, where fstat(2) takes seven.
    """
    try:
        return os.lseek(fd, 0, os.SEEK_CUR) == _PLACE
    except OSError:
        return False


def _check_record(fd: int) -> None:
    if not _is_record(fd):
        raise ResultLostError("the task has closed it, or put another file in its place")


def _write_record(fd: int, kind: int, body: Buffer, buffers: list[memoryview]) -> None:
    _check_record(fd)
    try:
        _write_parts(fd, kind, body, buffers)
    except OSError as error:
        if error.errno == errno.EFBIG and kind != _NO_ROOM:
            _write_record(fd, _NO_ROOM, b"", [])
            return
        raise _lost(fd, error) from error


def _lost(fd: int, error: OSError) -> ResultLostError:
    """Note why a record cannot be written, which needs no memory: the supervisor has the same file's offset."""
    os.lseek(fd, _PLACE + (error.errno or 0), os.SEEK_SET)
    return ResultLostError(describe(error))


def why_lost(fd: int) -> int:
    """The errno with which a guest could not write its record; 0 where it noted none."""
    number = os.lseek(fd, 0, os.SEEK_CUR) - _PLACE
    return number if 0 < number <= _LARGEST_ERRNO else 0


def _write_parts(fd: int, kind: int, body: Buffer, buffers: list[memoryview]) -> None:
    if _HEAD.size + len(body) <= _AT_ONCE and not buffers:
        record = _small_record(kind, body)
        if os.pwrite(fd, record, 0) == len(record):
            return
    position = write_all(fd, body, _HEAD.size)
    for buffer in buffers:
        write_all(fd, _LENGTH.pack(buffer.nbytes), position)
        position = write_all(fd, buffer, _aligned(position + _LENGTH.size))
    _write_head(fd, _HEAD.pack(_MAGIC, kind, len(body), len(buffers), position))


def _small_record(kind: int, body: Buffer) -> bytes:
    return _HEAD.pack(_MAGIC, kind, len(body), 0, _HEAD.size + len(body)) + body


def write_unfinished(fd: int, what: str) -> None:
    """Say, far behind the record, what the guest waits for: should it be killed meanwhile, that is known."""
    text = what.encode("utf-8", "replace")[:_LONGEST_NOTE]
    with contextlib.suppress(OSError):
        if _is_record(fd):
            write_all(fd, _NOTE.pack(_NOTE_MAGIC, len(text)) + text, _NOTE_PLACE)


# What most tasks return. Made beforehand: in a fresh fork that takes two dozen page faults.
_NONE = _small_record(_VALUE, pickle.dumps(None, protocol=5))


def _write_head(fd: int, head: bytes) -> None:
    # The magic last: past a file-size limit within the head, it is written in pieces.
    write_all(fd, head[len(_MAGIC) :], len(_MAGIC))
    write_all(fd, _MAGIC, 0)


def write_all(fd: int, data: Buffer, position: int) -> int:
    view = memoryview(data).cast("B")
    while view:
        try:
            written = os.pwrite(fd, view, position)  # at most 2 GiB at a time
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            written = _write_mapped(fd, view, position)
        view, position = view[written:], position + written
    return position


def _write_mapped(fd: int, view: memoryview, position: int) -> int:
    """Past RLIMIT_FSIZE, which counts for memfds too but not for what is written through a mapping.

    The supervisor has made the file long enough; see ``make_room``.

    Raises:
        OSError: It could not, as its own hard limit is lower.
    """
    start = position // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    skipped = position - start
    if os.fstat(fd).st_size < position + len(view):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    with mmap.mmap(fd, skipped + len(view), offset=start) as mapped:
        mapped[skipped:] = view
    return len(view)


def _aligned(position: int) -> int:
    return -(-position // _ALIGN) * _ALIGN


# --- the record, made and read by supervisor and manager ------------------------------------------------


def create() -> int:
    """A memfd for one record, which its guest can distinguish from any other file."""
    fd = os.memfd_create("gwsandbox-result", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.lseek(fd, _PLACE, os.SEEK_SET)
    return fd


def make_room(fd: int) -> None:
    """Let a guest write a record of any length where its file-size limit would stop it; holds no memory.

    Where this process has such a limit itself, room is made up to that.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    os.ftruncate(fd, _ROOM if limit == resource.RLIM_INFINITY else min(_ROOM, limit))


def read_unfinished(fd: int) -> str:
    """What ``write_unfinished`` said last, as one line; "" where it said nothing. To be called before ``inspect``."""
    note = os.pread(fd, _NOTE.size + _LONGEST_NOTE, _NOTE_PLACE)
    if len(note) < _NOTE.size or not note.startswith(_NOTE_MAGIC):
        return ""
    _, length = _NOTE.unpack_from(note)
    return shorten_detail(note[_NOTE.size :][:length].decode("utf-8", "replace"))


def inspect(fd: int) -> tuple[Delivery, bytes, bool]:
    """What a record claims to hold, the record where it is small, and whether that is all of it.

    NOTHING where it is absent, torn or junk. A large one is cut to its length and sealed, so that who still
    holds the descriptor can neither change nor shorten what the caller is going to map. A guest may claim any
    length, and make a file of that length without a page in it: what is not backed by memory that it was
    charged for is not believed.

    It can be called again after it has failed.

    Raises:
        OSError: It cannot be read or sealed. EPERM: its guest has sealed it. EBUSY: somebody outside of the sandbox
            has it mapped for writing.
    """
    record = os.pread(fd, INLINE, 0)
    delivery, length = _claim(fd, record)
    if length <= INLINE:
        return delivery, record[:length], True
    if os.fstat(fd).st_size != length or fcntl.fcntl(fd, syscalls.F_GET_SEALS) != syscalls.F_SEAL_ALL:
        os.ftruncate(fd, length)
        fcntl.fcntl(fd, syscalls.F_ADD_SEALS, syscalls.F_SEAL_ALL)
    if _claim(fd, os.pread(fd, _HEAD.size, 0)) != (delivery, length):
        return Delivery.NOTHING, b"", True
    return delivery, b"", False


def _claim(fd: int, record: bytes) -> tuple[Delivery, int]:
    if len(record) < _HEAD.size:
        return Delivery.NOTHING, 0
    magic, kind, _, _, length = _HEAD.unpack_from(record)
    status = os.fstat(fd)
    backed = min(status.st_size, max(status.st_blocks * 512, INLINE))
    if magic != _MAGIC or not _HEAD.size <= length <= backed:
        return Delivery.NOTHING, 0
    try:
        return Delivery(kind & ~_BYTES_VALUE), length
    except ValueError:
        return Delivery.NOTHING, 0


def is_bytes(record: bytes) -> bool:
    """Whether a record holds a value of bytes, which is read without unpickling."""
    return bool(record[4] & _BYTES_VALUE)


def read_inline(record: bytes, load: Load = pickling.load) -> Any:
    """The value, or the ``Raised``, of a small record.

    Args:
        record: The record.
        load: Makes the value of its bytes.

    Raises:
        TransferError: No value can be made of it.
    """
    if record == _NONE:
        return None
    if is_bytes(record):
        return record[_HEAD.size : _HEAD.size + _HEAD.unpack_from(record)[2]]
    # A bytearray, so that arrays come out writable as they were.
    return _load(memoryview(bytearray(record)), load)


def read_descriptor(fd: int, load: Load = pickling.load) -> Any:
    """The value, or the ``Raised``, of a large record in ``fd``, which stays open; else as ``read_inline``.

    Raises:
        TransferError: No value can be made of it, or there is no memory for it.
    """
    head = fitting(lambda: os.pread(fd, _HEAD.size, 0))
    if head[4] & _BYTES_VALUE:
        return fitting(lambda: _read_bytes(fd))
    if head[4] != _VALUE and fitting(lambda: os.fstat(fd)).st_size > _HEAD.size + exception.LARGEST_BODY:
        raise TransferError(exception.FORGED)
    return _load(memoryview(fitting(lambda: _map(fd))), load)


def _read_bytes(fd: int) -> bytes:
    """The body of a record, in one object of the right size: nothing is held twice."""
    with open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(_HEAD.size)
        return file.readall()


def fitting(read: Callable[[], Any]) -> Any:
    """What ``read`` gives.

    Raises:
        TransferError: There is not so much memory.
    """
    try:
        return read()
    except (MemoryError, OSError) as error:
        raise TransferError(
            f"result cannot be received: {describe(error)}; let the task write it to a file, or drop results earlier"
        ) from error


def _map(fd: int) -> mmap.mmap:
    """The memory of a record. What the caller writes into an array there stays its own."""
    access = mmap.PROT_READ | mmap.PROT_WRITE
    if sys.version_info >= (3, 13):
        return mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=access, trackfd=False)
    size = os.fstat(fd).st_size
    if size >= _MAPPED:
        return mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=access)
    # A mapping holds a descriptor, of which a caller that keeps a thousand arrays has too few.
    copy = mmap.mmap(-1, size)
    os.preadv(fd, [copy], 0)
    return copy


def _load(record: memoryview, load: Load) -> Any:
    try:
        _, kind, length, count, _ = _HEAD.unpack_from(record)
        position = _HEAD.size + length
        buffers = []
        for _ in range(count):
            (size,) = _LENGTH.unpack_from(record, position)
            start = _aligned(position + _LENGTH.size)
            buffers.append(record[start : start + size])
            position = start + size
    except (struct.error, OverflowError) as error:
        raise TransferError(f"result cannot be unpickled here: {describe(error)}") from error
    body = record[_HEAD.size : _HEAD.size + length]
    return load(body, buffers) if kind == _VALUE else exception.unpack(body)
