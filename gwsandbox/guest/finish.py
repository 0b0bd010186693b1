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
import functools
import signal
import sys
import traceback
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from gwsandbox.guest import trackers
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
# Where loky keeps the executor that it uses again: the caller's would let a guest wait for a thread that it has not.
_REUSABLE = ("loky.reusable_executor", "joblib.externals.loky.reusable_executor")
_kept: list[object] = []  # whose end would be the end of something of the caller's

_inherited_exit_functions = 0
_inherited_callbacks = 0
_ending: tuple[int, int] | None = None  # the result descriptor and the exit code


# --- in the zygote ---------------------------------------------------------------------------------------


def forget_callers() -> None:
    """In the zygote, once: what the caller has registered for its own exit is not for its guests to do."""
    global _inherited_exit_functions, _inherited_callbacks  # noqa: PLW0603 - read in every guest
    for finalizer in weakref.finalize._registry:  # type: ignore[attr-defined]
        finalizer.atexit = False
    weakref.finalize._registered_with_atexit = False  # type: ignore[attr-defined]
    for name, attribute in _EXECUTORS.items():
        if name in sys.modules:
            getattr(sys.modules[name], attribute).clear()
    for name in _REUSABLE:
        if name in sys.modules:
            _kept.append(sys.modules[name].__dict__["_executor"])
            sys.modules[name].__dict__["_executor"] = None
    trackers.forget_callers()
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


def leave_fork(code: int) -> NoReturn:
    """Let a fork end that the task made, and that came back from its function: all but its output is its parent's.

    Args:
        code: Exit code.
    """
    try:
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
    for tracker in trackers.running():
        _wait_for("its resource tracker", result, functools.partial(trackers.stop, tracker))
