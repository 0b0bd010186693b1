"""How the reaper and the supervisor begin: in a fork of the caller, or in a clean interpreter."""

from __future__ import annotations

import _socket
import contextlib
import functools
import gc
import importlib
import os
import pickle
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

from gwsandbox.backends.base import Backend
from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.backends.rlimit import RlimitBackend
from gwsandbox.ipc import call
from gwsandbox.ipc.channel import ANCILLARY, PACKET, STORED, Ended, Message, Sent, descriptors_of, pack, send
from gwsandbox.ipc.channel_end import Channel
from gwsandbox.linux import confine, descriptors, syscalls, unpatched
from gwsandbox.linux.errnos import errno_of
from gwsandbox.model.errors import SandboxError
from gwsandbox.model.options import RunOptions
from gwsandbox.model.task import Command, Task
from gwsandbox.supervisor.reaper import watch_over
from gwsandbox.supervisor.supervisor import Supervisor

BACKENDS: dict[str, Callable[[], Backend]] = {"cgroup": CgroupBackend, "rlimit": RlimitBackend}

PRELOAD_REMEDY = "see that the caller could import it, or leave it out of preload"


class Inheritance(NamedTuple):
    """What a fork of the caller brings along.

    Args:
        backend: How limits are held.
        options: Of the run.
        tasks: Those that were queued before the fork, by number.
        callers: Lists the descriptors that the caller has for its runs, this one among them.
    """

    backend: Backend
    options: RunOptions
    tasks: Mapping[int, Task | Command]
    callers: Callable[[], set[int]]


def run_reaper(end: _socket.socket, inheritance: Inheritance) -> NoReturn:
    """In a child of the caller: get the backend ready, then watch over a supervisor.

    Args:
        end: The supervisor's end of the socket.
        inheritance: What came along with the fork.
    """
    # In all processes that come from here the caller's heap shall stay shared with it: a collection would write to
    # every page. Only guests collect again.
    gc.disable()
    gc.freeze()
    try:
        unpatched.restore()
        _begin(end, inheritance)
    except SandboxError as error:
        _say(end, Ended(error))
    except BaseException as error:  # noqa: BLE001 - must not unwind into the caller's code
        traceback.print_exc()
        _say(end, Ended(SandboxError("start supervisor", value=str(error), errno=errno_of(error))))
    finally:
        os._exit(1)


def _begin(end: _socket.socket, inheritance: Inheritance) -> NoReturn:
    backend, options, tasks, callers = inheritance
    for fd in callers() - {end.fileno(), -1}:
        with contextlib.suppress(OSError):  # another thread of the caller has closed it just now
            os.close(fd)
    if not options.pass_through:
        os.setsid()  # the terminal's signals are the caller's business
        descriptors.close_lifelines({end.fileno()})
    if options.hardening.privileges == "bound":
        confine.apply(confine.prepare_dumpable(dumpable=False), "prctl")
    group = backend.prepare(options.total_memory)
    watch_over(backend, functools.partial(_supervise, end, backend, options, tasks), end, group)


def _say(end: _socket.socket, message: Message) -> None:
    """The last message: sent if it can be, and not waited for."""
    try:
        send(end, pack(message, deque()))
    except OSError:
        return  # nobody is there to hear it


def _supervise(end: _socket.socket, backend: Backend, options: RunOptions, tasks: Mapping[int, Task | Command]) -> None:
    channel = Channel(end)
    try:
        syscalls.be_subreaper()
        if not options.pass_through:
            _read_nothing()
        Supervisor(channel, backend, options, tasks).run()
    except Exception as error:
        traceback.print_exc()
        step = f"supervise: {type(error).__name__}"
        channel.post(Ended(SandboxError(step, value=str(error), errno=errno_of(error))))
        while channel.flush() is Sent.LATER:
            pass
        raise


def _read_nothing() -> None:
    """Let stdin be /dev/null, here and so in every guest."""
    fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(fd, 0)
    os.close(fd)
    # The caller's own object may hold bytes that it has read ahead.
    sys.stdin = open(0, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115


def serve(number: int) -> NoReturn:
    """In a clean interpreter ("forkserver"): become the reaper.

    Args:
        number: Of the descriptor that is the supervisor's end of the socket.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    descriptors.close_all_but({0, 1, 2, number})
    end = _socket.socket(fileno=number)
    os.set_inheritable(number, False)
    data, ancillary, _, _ = end.recvmsg(PACKET, ANCILLARY)
    if not data:
        os._exit(0)  # the caller is gone
    if data == STORED:
        (stored,) = descriptors_of(ancillary)
        data = call.read_stored(stored)
        os.close(stored)
    caller, sys.path[:], sys.argv[:], name, options = pickle.loads(data)
    try:
        _preload(options.preload, caller)
    except SandboxError as error:
        _say(end, Ended(error, "\n".join(error.__notes__)))
        os._exit(1)
    except OSError as error:
        _say(end, Ended(SandboxError("start supervisor", value=str(error), errno=errno_of(error))))
        os._exit(1)
    run_reaper(end, Inheritance(BACKENDS[name](), options, {}, set))


def _preload(names: tuple[str, ...], caller: int) -> None:
    """Import what the guests shall find imported.

    Raises:
        SandboxError: One of them cannot be imported.
    """
    syscalls.die_with_parent()  # else an import that never ends would outlive a caller that is killed
    if os.getppid() != caller:
        os._exit(1)
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - a module may raise what it likes, SystemExit too
            reason = traceback.format_exception_only(error)[-1].strip()
            failure = SandboxError(f"preload modules: {reason}", value=name, remedy=PRELOAD_REMEDY)
            failure.add_note(traceback.format_exc())
            raise failure from None
    syscalls.outlive_parent()
