"""What arrives of an exception."""

from __future__ import annotations

import os

from gwsandbox.ipc import exception, record
from gwsandbox.model.verdict import Delivery


def raised(error: BaseException) -> exception.Raised:
    """What arrives of an exception."""
    fd = record.create()
    try:
        record.write_exception(fd, error, Delivery.RAISED)
        _, inline, is_whole = record.inspect(fd)
        found = record.read_inline(inline) if is_whole else record.read_descriptor(fd)
    finally:
        os.close(fd)
    assert isinstance(found, exception.Raised)
    return found
