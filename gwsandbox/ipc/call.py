"""How a call travels to its guest."""

from __future__ import annotations

import os
import pickle
import resource
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from gwsandbox.ipc.pickling import Buffer
from gwsandbox.ipc.record import write_all
from gwsandbox.model.errors import TransferError
from gwsandbox.model.task import Task
from gwsandbox.model.text import describe

Call = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any], tuple[type, ...]]
"""Function, arguments, keyword arguments, and the types of the caller's own that a plain result may hold."""


def call_of(task: Task) -> Call:
    """The call that a guest makes for ``task``."""
    return task.func, task.args, task.kwargs, task.returns


def pack_task(task: Task, *, by_value: bool) -> bytes:
    """The call that a task is as bytes, for a supervisor that was forked before it was queued.

    Args:
        task: What to run.
        by_value: Whether callables of ``__main__`` must go by value, as the other side has another one.

    Raises:
        TransferError: Some part cannot be pickled; names its type.
    """
    call = call_of(task)  # not the task itself: a guest needs no more of it
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


def store(data: Buffer, name: str, memfds: deque[int]) -> int:
    """Put ``data`` into a memfd, which is read from its start: whole, and no pipe that could block anybody.

    Args:
        data: What to store.
        name: Of the memfd, as /proc shows it.
        memfds: Gets the descriptor, which is then its owner's to close, whatever fails.

    Returns:
        The descriptor.

    Raises:
        OSError: There is no descriptor or memory, or the hard RLIMIT_FSIZE of this process is lower than the size.
    """
    # In one call of C: where a signal handler raises, the descriptor is known.
    memfds.extend(map(os.memfd_create, (name,), (os.MFD_CLOEXEC,)))
    fd = memfds[-1]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if soft == resource.RLIM_INFINITY or len(data) <= soft:
        write_all(fd, data, 0)
        return fd
    try:  # a limit for the files that the caller writes, and this is none
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        write_all(fd, data, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    return fd


def read_stored(fd: int) -> bytes:
    """What ``store`` wrote; it can be read again."""
    with open(fd, "rb", buffering=0, closefd=False) as file:
        file.seek(0)
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
