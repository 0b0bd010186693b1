"""How a call travels to its guest."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from typing import Any

from gwsandbox.ipc.record import write_all
from gwsandbox.model.errors import TransferError
from gwsandbox.model.task import Task
from gwsandbox.model.text import describe

Call = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]  # function, arguments, keyword arguments


def pack_task(task: Task, *, by_value: bool) -> bytes:
    """The call that a task is as bytes, for a supervisor that was forked before it was queued.

    Args:
        task: What to run.
        by_value: Whether callables of ``__main__`` must go by value, as the other side has another one.

    Raises:
        TransferError: Some part cannot be pickled; names its type.
    """
    call = task.func, task.args, task.kwargs  # not the task itself, of which a guest needs no more
    if not by_value:
        try:
            return pickle.dumps(call, protocol=5)
        except Exception:  # noqa: BLE001, S110 - lambdas and closures, and whatever a __reduce__ may raise
            pass
    import cloudpickle  # noqa: PLC0415 - 20 ms, and most runs pickle nothing by value

    try:
        packed: bytes = cloudpickle.dumps(call, protocol=5)
    except Exception as error:
        raise TransferError(
            f"task cannot be sent to its process: {describe(error)}; queue it before processing begins "
            "(start_method='fork'), or give it arguments that can be pickled"
        ) from error
    return packed


def store(data: bytes, name: str) -> int:
    """``data`` as a memfd that is read from its start: whole, and no pipe that could block anybody."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    write_all(fd, data, 0)
    return fd


def read_stored(fd: int) -> bytes:
    """What ``store`` wrote."""
    with open(fd, "rb", buffering=0, closefd=False) as file:
        return file.readall()


def unpack_call(packed: bytes) -> Call:
    """What ``pack_task`` packed.

    Raises:
        TransferError: Some part cannot be unpickled here; names it.
    """
    try:
        call: Call = pickle.loads(packed)
    except Exception as error:
        raise TransferError(
            f"task cannot be unpickled in its process: {describe(error)}; "
            "queue it before processing begins, or import what it needs in a module"
        ) from error
    return call
