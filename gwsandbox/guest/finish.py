"""After the task's function is done, and its record is whole: what a script's interpreter does before it exits.

In the interpreter's own order: the callbacks of ``threading``, so that an open ThreadPoolExecutor ends; the joins of
threads; ``atexit``, so that a TemporaryDirectory goes; then the children, queues and resource trackers of
multiprocessing; the flush of the streams last. Only what the task itself has registered: what its process inherited is
the caller's.

Nothing of it may take for ever, and nothing of it changes what became of the task. So an alarm ends the guest after
``GRACE_SECONDS``, and what it waited for stands behind the record. For a task that left nothing, the checks cost a
handful of page faults; see ``child`` for why those count.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # below ``signal``, whose Python makes enums: pages written
import atexit
import contextlib
import functools
import os
import signal
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from gwsandbox.ipc import record
from gwsandbox.linux.syscalls import leave
from gwsandbox.model.verdict import GRACE_SECONDS

_ALARM, _DEFAULT = int(signal.SIGALRM), int(signal.SIG_DFL)  # plain numbers: no enum is looked at in a guest
_set_handler, _set_alarm, _unblock = _signal.signal, _signal.alarm, _signal.pthread_sigmask
_count_exit_functions, _run_exit_functions = atexit._ncallbacks, atexit._run_exitfuncs
_modules = sys.modules

# Where executors keep the threads that they wake before they exit: a fork has none of the caller's.
_EXECUTORS = {
    "concurrent.futures.thread": "_threads_queues",
    "concurrent.futures.process": "_threads_wakeups",
    "loky.process_executor": "_threads_wakeups",
    "joblib.externals.loky.process_executor": "_threads_wakeups",
}
_TRACKERS = (
    "multiprocessing.resource_tracker",
    "loky.backend.resource_tracker",
    "joblib.externals.loky.backend.resource_tracker",
)
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where shm_open(3) makes its files

_inherited_exit_functions = 0
_inherited_callbacks = 0
_caller = 0
_ending: tuple[int, int] | None = None  # the result descriptor and the exit code


# --- in the zygote ---------------------------------------------------------------------------------------


def forget_callers(caller: int) -> None:
    """In the zygote, once: what the caller has registered for its own exit is not for its guests to do.

    Args:
        caller: Its pid.
    """
    global _caller, _inherited_exit_functions, _inherited_callbacks  # noqa: PLW0603 - read in every guest
    _caller = caller
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    for name, attribute in _EXECUTORS.items():
        if name in sys.modules:
            getattr(sys.modules[name], attribute).clear()
    for tracker in _trackers():
        tracker.__init__()  # it has the caller's, which would keep until the caller's end what a guest forgets
    # The last one registered is the first to be called. Cleared they must not be: they may be all that keeps a
    # TemporaryDirectory of the caller's, which would go with them.
    atexit.register(_leave_out_callers)
    _inherited_exit_functions = _count_exit_functions()
    if (threading := sys.modules.get("threading")) is not None:
        _inherited_callbacks = len(threading._threading_atexits)


def rehearse() -> None:
    """In the zygote, once: see ``child.warm_up``."""
    _set_handler(_ALARM, _DEFAULT)
    _set_alarm(0)


def _trackers() -> Iterator[Any]:
    """The resource trackers that this process knows of."""
    for name in _TRACKERS:
        if (module := sys.modules.get(name)) is not None:
            yield module.__dict__["_resource_tracker"]


# --- in the guest ----------------------------------------------------------------------------------------


def finish(result: int, code: int) -> NoReturn:
    """Let the guest end, with exit code ``code``.

    Args:
        result: The result descriptor.
        code: Exit code.
    """
    try:
        _set_handler(_ALARM, _DEFAULT)
        _set_alarm(GRACE_SECONDS)
        threading = _modules.get("threading")
        if threading is not None and (
            len(threading._active) > 1 or len(threading._threading_atexits) != _inherited_callbacks
        ):
            _end_threads(threading, result)
        if _count_exit_functions() != _inherited_exit_functions:
            _call_exit_functions(result, code)
        if "multiprocessing.util" in _modules:
            _end_processes(result)
        _flush()
    finally:
        leave(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - suppress is Python code, and pages written
            stream.flush()
        except (AttributeError, OSError, ValueError):  # None, closed, or its reader is gone
            pass


def _wait_for(what: str, result: int, wait: Callable[[], object]) -> None:
    """Do what may take long. What it raises is printed, as the interpreter does, and is of no consequence."""
    try:
        _unblock(signal.SIG_UNBLOCK, {_ALARM})
        record.write_unfinished(result, what)
        wait()
    except BaseException:  # noqa: BLE001 - code of the task's, SystemExit too
        traceback.print_exc()
    record.write_unfinished(result, "its last output")


def _end_threads(threading: Any, result: int) -> None:
    names = [thread.name for thread in threading.enumerate() if not thread.daemon][1:]  # the first is the main thread
    what = f"thread {', '.join(map(repr, names))}" if names else "a callback of the threads' end"
    _wait_for(what, result, threading._shutdown)


def _call_exit_functions(result: int, code: int) -> None:
    global _ending  # noqa: PLW0603 - what is called next has no arguments
    _ending = result, code
    if (util := _modules.get("multiprocessing.util")) is not None:
        atexit.unregister(util._exit_function)  # its turn comes later, whoever has imported it
    _wait_for("an exit function", result, _run_exit_functions)


def _leave_out_callers() -> None:
    """An exit function: those of the task were called, and those of the caller would follow."""
    if _ending is not None:
        result, code = _ending
        try:
            if "multiprocessing.util" in _modules:
                _end_processes(result)
            record.write_unfinished(result, "its last output")
            _flush()
        finally:
            leave(code)


def _end_processes(result: int) -> None:
    util, children = _modules["multiprocessing.util"], _modules["multiprocessing.process"]._children
    if util._finalizer_registry or children:
        names = [process.name for process in children if not process.daemon]
        what = f"process {', '.join(map(repr, names))}" if names else "what multiprocessing is to end"
        _wait_for(what, result, util._exit_function)
    for tracker in _trackers():
        if tracker._fd is not None:
            _wait_for("its resource tracker", result, functools.partial(_stop, tracker, result))


# --- resource trackers -----------------------------------------------------------------------------------


def _stop(tracker: Any, result: int) -> None:
    """Let a tracker see that its process ends, and wait until it has removed what was forgotten."""
    if tracker is _modules[_TRACKERS[0]].__dict__["_resource_tracker"]:
        _spare_attached(tracker, result)
    os.close(tracker._fd)
    tracker._fd = None
    with contextlib.suppress(ChildProcessError):  # the task has reaped it
        os.waitpid(tracker._pid, 0)


def _spare_attached(tracker: Any, result: int) -> None:
    """Let it forget the shared memory that the task has not made.

    Python registers what is only attached as well (before 3.13, or without ``track=False``), and the tracker would
    remove it from under those who use it. What is older than the task is not the task's; nor is what the caller has
    mapped. The kernel keeps both times by the same clock, and nothing has read the result descriptor so far.
    """
    born = os.fstat(result).st_atime_ns
    callers = _mapped_by_caller()
    with os.scandir(_SHARED_MEMORY) as entries:
        for entry in entries:
            if entry.name.isascii() and (entry.stat().st_ctime_ns < born or entry.name in callers):
                # Registered first, for to unregister what is not registered is an error.
                tracker.register(f"/{entry.name}", "shared_memory")
                tracker.unregister(f"/{entry.name}", "shared_memory")


def _mapped_by_caller() -> set[str]:
    found = set()
    with contextlib.suppress(OSError), open(f"/proc/{_caller}/maps", encoding="utf-8", errors="replace") as file:
        for line in file:
            _, place, name = line.rstrip("\n").partition(f"{_SHARED_MEMORY}/")
            if place:
                found.add(name)
    return found
