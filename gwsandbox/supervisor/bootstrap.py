"""How the reaper and the supervisor begin: in a fork of the caller, or in a clean interpreter."""

from __future__ import annotations

import functools
import gc
import importlib
import os
import pickle
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import BinaryIO, NoReturn

from gwsandbox.backends.base import Backend
from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.backends.rlimit import RlimitBackend
from gwsandbox.ipc.channel import Channel
from gwsandbox.linux import syscalls
from gwsandbox.model.options import RunOptions
from gwsandbox.model.task import Command, Task
from gwsandbox.supervisor.reaper import keep
from gwsandbox.supervisor.supervisor import Supervisor

# How a clean interpreter answers that is to preload modules; what could not be imported, and why, follows the second.
PRELOADED, NOT_PRELOADED = b"+", b"-"

BACKENDS: dict[str, Callable[[], Backend]] = {"cgroup": CgroupBackend, "rlimit": RlimitBackend}


def run_reaper(
    supervisor_end: socket.socket,
    gate: int,
    not_its_own: set[int],
    backend: Backend | None,
    inherited_tasks: dict[int, Task | Command],
) -> NoReturn:
    """In a child of the caller: wait at the gate, then keep a supervisor.

    Args:
        supervisor_end: The supervisor's end of the link.
        gate: Where the caller writes what the run needs, once the backend is prepared.
        not_its_own: Descriptors of the caller's ends, which must end with the caller.
        backend: The caller's, or ``None`` in a clean interpreter.
        inherited_tasks: Tasks that came along with the fork.
    """
    # In all processes that come from here the caller's heap shall stay shared with it: a collection would write to
    # every page. Only guests collect again.
    gc.disable()
    gc.freeze()
    try:
        for fd in not_its_own:
            os.close(fd)
        with open(gate, "rb") as pipe:
            backend = backend or _get_ready(pipe, supervisor_end)
            handover, options = pickle.load(pipe)
        if not options.pass_through:
            os.setsid()  # the terminal's signals are the caller's business
        backend.accept(handover)
        supervisor_end.setblocking(False)
        run = functools.partial(_supervise, supervisor_end, backend, options, inherited_tasks)
        keep(backend, run, supervisor_end.fileno())
    except EOFError:
        os._exit(0)  # the caller is gone
    except BaseException:  # noqa: BLE001 - must not unwind into the caller's code
        traceback.print_exc()
    finally:
        os._exit(1)


def _get_ready(gate: BinaryIO, supervisor_end: socket.socket) -> Backend:
    """In a clean interpreter: what a fork would have brought along."""
    caller, sys.path[:], python_path, name, preload = pickle.load(gate)
    _restore_environment(python_path)
    if preload:
        _preload(preload, supervisor_end, caller)
    return BACKENDS[name]()


def _restore_environment(python_path: str | None) -> None:
    """A clean interpreter was started with a PYTHONPATH that is not the caller's; programs shall not see it."""
    if python_path is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = python_path


def _preload(names: tuple[str, ...], supervisor_end: socket.socket, caller: int) -> None:
    """Import what the guests shall find imported, and tell the caller, who waits."""
    syscalls.die_with_parent()  # else an import that never ends would outlive a caller that is killed
    if os.getppid() != caller:
        os._exit(1)
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - a module may raise what it likes, SystemExit too
            told = name, traceback.format_exception_only(error)[-1].strip(), traceback.format_exc()
            supervisor_end.sendall(NOT_PRELOADED + pickle.dumps(told, protocol=5))
            os._exit(1)
    syscalls.outlive_parent()
    supervisor_end.sendall(PRELOADED)


def _supervise(
    supervisor_end: socket.socket, backend: Backend, options: RunOptions, inherited_tasks: dict[int, Task | Command]
) -> None:
    Supervisor(Channel(supervisor_end), backend, options, inherited_tasks).run()


def serve(link: int, gate: int) -> NoReturn:
    """In a clean interpreter ("forkserver"): become the reaper."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    supervisor_end = socket.socket(fileno=link)
    os.set_inheritable(link, False)
    run_reaper(supervisor_end, gate, set(), None, {})
