"""The record of a guest whose results are plain: values and exceptions as plain data, and no pickle anywhere."""

from __future__ import annotations

from collections.abc import Sequence

from gwsandbox.ipc import exception, record
from gwsandbox.ipc.plain_encoder import encode
from gwsandbox.model.errors import TransferError
from gwsandbox.model.verdict import Delivery

_VALUE = Delivery.VALUE.value


def write_value(fd: int, value: object, returns: Sequence[type]) -> bool:
    """Write the value that the function returned; whether that went well.

    Where it is not plain, an exception that says so is written instead.

    Args:
        fd: The result descriptor.
        value: To be written.
        returns: The types that the caller declared.

    Raises:
        record.ResultLostError: The descriptor is not that of the record any more.
    """
    if value is None or type(value) is bytes:
        return record.write_value(fd, value)  # is read without unpickling
    try:
        pieces = encode(value, returns)
    except TransferError as refusal:
        body = exception.pack(refusal, with_traceback=False, dump=_dump)
        record.write_pieces(fd, Delivery.NOT_TRANSFERABLE.value, [body])
        return False
    record.write_pieces(fd, _VALUE, pieces)
    return True


def write_exception(fd: int, error: BaseException, delivery: Delivery, returns: Sequence[type] = ()) -> None:
    """Write an exception, with its texts; where it is not plain, these alone.

    Raises:
        record.ResultLostError: The descriptor is not that of the record any more.
    """
    body = exception.pack(error, dump=lambda raised: _dump(raised, returns))
    record.write_pieces(fd, delivery.value, [body])


def _dump(error: BaseException, returns: Sequence[type] = ()) -> bytes:
    return b"".join(encode(error, returns))
