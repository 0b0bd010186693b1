"""The guest's life between fork and the task's first instruction, and after its last: a flat list of steps.

Every function here runs in the guest. None returns to the supervisor's code; a step that fails is reported
through the result descriptor with its name and errno.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from gwsandbox import kernel, transport
from gwsandbox.backend import Cell
from gwsandbox.errors import GuestSetupError
from gwsandbox.judge import Delivery
from gwsandbox.task import Command, Task

NOT_EXECUTABLE, NOT_FOUND = 126, 127  # exit codes of a program that could not be executed, as a shell's
_SETUP_FAILED = 125
_UNSTOPPABLE = {signal.SIGKILL, signal.SIGSTOP}
# What the interpreter starts with: Python code expects exceptions in the place of these signals.
_INTERPRETERS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGPIPE: signal.SIG_IGN,
    signal.SIGXFSZ: signal.SIG_IGN,
}
_OOM_SCORE_RAISE = 500  # of 1000: before the user's own service, after whatever asked to be first


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What does not change from one guest to the next, found out once: see ``look_around``.

    Args:
        supervisor: Pid of the supervisor.
        callers_descriptors: Descriptors that were the caller's before we opened any.
        collect_garbage: Whether the caller had the garbage collector on.
        handlers: Signals to handle otherwise than the caller does, in a Python call.
        ignored: Signals that the caller ignores, which a program would inherit.
        oom_score: What to write into oom_score_adj.
    """

    supervisor: int
    callers_descriptors: frozenset[int]
    collect_garbage: bool
    handlers: tuple[tuple[int, Any], ...]
    ignored: tuple[int, ...]
    oom_score: bytes


def look_around(not_callers: int) -> Common:
    """In the supervisor, before it opens anything of its own.

    Args:
        not_callers: The one descriptor that is ours already.
    """
    with open("/proc/self/oom_score_adj", "rb") as file:
        oom_score = min(int(file.read()) + _OOM_SCORE_RAISE, 1000)
    now = {number: signal.getsignal(number) for number in signal.valid_signals() - _UNSTOPPABLE}
    return Common(
        supervisor=os.getpid(),
        callers_descriptors=frozenset(filter(_is_open, map(int, os.listdir("/proc/self/fd")))) - {not_callers},
        collect_garbage=gc.isenabled(),
        handlers=tuple((n, wanted) for n in now if now[n] != (wanted := _INTERPRETERS.get(n, signal.SIG_DFL))),
        ignored=tuple(n for n in now if now[n] == signal.SIG_IGN),
        oom_score=str(oom_score).encode(),
    )


def _is_open(fd: int) -> bool:
    """False for the descriptor that read the list which it is in."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What one guest is started with; made by the supervisor before the fork.

    Args:
        task: What to run; a Python call that was queued late as its bytes.
        cell: The walls around it.
        born_inside: Whether the fork put it into its cgroup already.
        result: The result descriptor.
        stdin: Descriptor to read from, or ``None`` for the supervisor's (/dev/null, or the caller's own).
        stdout: Descriptor to write to, or ``None`` for the caller's own.
        stderr: Likewise.
        keep_terminal: A program that keeps the caller's session, process group and standard descriptors.
        rlimits: (resource, soft, hard) to set.
        common: What is the same for every guest of this supervisor.
        go: Descriptor that can be read when the task's time begins; ``None``: at once.
    """

    task: Task | Command | bytes
    cell: Cell
    born_inside: bool
    result: int
    stdin: int | None
    stdout: int | None
    stderr: int | None
    keep_terminal: bool
    rlimits: list[tuple[int, int, int]]
    common: Common
    go: int | None


def live(setup: Setup) -> NoReturn:
    """Be a guest: take all steps, run the task, leave a record, exit."""
    code = _SETUP_FAILED
    try:
        failure = _take_steps(setup)
        if failure is None:
            task = _unpack(setup)
            code = _execute(setup, task) if isinstance(task, Command) else _call(setup, task)
        else:
            transport.write_exception(setup.result, failure, Delivery.STEP_FAILED)
    except BaseException as error:  # noqa: BLE001 - whatever comes here must not unwind into the supervisor
        with contextlib.suppress(BaseException):
            transport.write_exception(setup.result, error, Delivery.RAISED)
            code = 1
    finally:
        os._exit(code)


def _take_steps(setup: Setup) -> GuestSetupError | None:
    for name, step in _STEPS:
        try:
            step(setup)
        except Exception as error:  # noqa: BLE001 - reported with its name, whatever it is
            number = getattr(error, "errno", None) or 0
            return GuestSetupError(f"guest step '{name}' failed", value=str(error), errno=number)
    return None


def _die_with_supervisor(setup: Setup) -> None:
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have died before that call. Compared with its pid and not with 1: in a container it may be 1.
    if os.getppid() != setup.common.supervisor:
        os._exit(_SETUP_FAILED)


def _join_cell(setup: Setup) -> None:
    if not setup.born_inside:
        setup.cell.attach()


def _leave_session(setup: Setup) -> None:
    if not setup.keep_terminal:
        os.setsid()


def _be_first_for_the_oom_killer(setup: Setup) -> None:
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, setup.common.oom_score)
    finally:
        os.close(fd)


def _connect_standard_descriptors(setup: Setup) -> None:
    for source, standard in ((setup.stdin, 0), (setup.stdout, 1), (setup.stderr, 2)):
        if source is not None:
            os.dup2(source, standard)


def _close_descriptors(setup: Setup) -> None:
    """Close all that is not the caller's own; for a program without a terminal all but the standard three."""
    kept = {0, 1, 2, setup.result}
    if setup.go is not None:
        kept.add(setup.go)
    if setup.keep_terminal or not isinstance(setup.task, Command):
        kept |= setup.common.callers_descriptors
    first = 0
    for fd in sorted(kept):
        if fd > first:
            _close_range(first, fd - 1)
        first = fd + 1
    _close_range(first, 2**31 - 1)


def _close_range(first: int, last: int) -> None:
    try:
        kernel.close_range(first, last)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM}:
            raise
        for fd in map(int, os.listdir("/proc/self/fd")):
            if first <= fd <= last:
                with contextlib.suppress(OSError):
                    os.close(fd)


def _limit_resources(setup: Setup) -> None:
    for number, soft, hard in setup.rlimits:
        _, ceiling = resource.getrlimit(number)
        if ceiling != resource.RLIM_INFINITY:  # the host's own limit is the stricter one, and cannot be raised
            soft, hard = min(soft, ceiling), min(hard, ceiling)  # noqa: PLW2901
        resource.setrlimit(number, (soft, hard))


def _reset_signals(setup: Setup) -> None:
    """Handlers and mask back to what a fresh process has; ours were the caller's, all blocked."""
    if isinstance(setup.task, Command):  # handlers end with exec, but what is ignored stays so
        for number in setup.common.ignored:
            signal.signal(number, signal.SIG_DFL)
    else:
        for number, handler in setup.common.handlers:
            signal.signal(number, handler)
    kernel.unblock_signals()


def _refresh_interpreter(setup: Setup) -> None:
    """What a fork does not: forget the caller's own children and their queues, in multiprocessing."""
    if setup.common.collect_garbage:
        gc.freeze()  # or the first collection would write to every page that we share with the supervisor
        gc.enable()
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None:
        # As multiprocessing's own bootstrap does. Without it the guest's exit would terminate the caller's
        # daemonic children, and a queue that the caller has used would lose what the guest puts into it.
        process.__dict__["_children"] = set()
        util._finalizer_registry.clear()
        util._run_after_forkers()


def _wait_for_its_time(setup: Setup) -> None:
    if setup.go is not None:
        os.read(setup.go, 8)
        os.close(setup.go)


_STEPS: tuple[tuple[str, Callable[[Setup], None]], ...] = (
    ("die with supervisor", _die_with_supervisor),
    ("join cell", _join_cell),
    ("leave session", _leave_session),
    ("raise oom score", _be_first_for_the_oom_killer),
    ("connect standard descriptors", _connect_standard_descriptors),
    ("close descriptors", _close_descriptors),
    ("limit resources", _limit_resources),
    ("reset signals", _reset_signals),
    ("refresh interpreter", _refresh_interpreter),
    ("wait for its time", _wait_for_its_time),
)


def _unpack(setup: Setup) -> Task | Command:
    return transport.unpack_task(setup.task) if isinstance(setup.task, bytes) else setup.task


def _call(setup: Setup, task: Task) -> int:
    """Run a Python call; its exit code."""
    try:
        value = task.func(*task.args, **task.kwargs)
        delivery = transport.write_value(setup.result, value)
        code = 0 if delivery is Delivery.VALUE else 1
    except BaseException as error:  # noqa: BLE001 - all that a task raises is its result
        code = _exit_code(error)
        delivery = Delivery.RAISED
        if isinstance(error, MemoryError):
            delivery = Delivery.NO_MEMORY
            _use_report_reserve()
        if error.__traceback__ is not None:
            error.__traceback__ = error.__traceback__.tb_next  # from the task's function on; ours help nobody
        transport.write_exception(setup.result, error, delivery)
    _finish_interpreter()
    return code


def _use_report_reserve() -> None:
    """The rlimit backend leaves room under the hard limit of RLIMIT_DATA for what follows a MemoryError."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _exit_code(error: BaseException) -> int:
    """The exit code that the interpreter gives for an exception that nobody catches."""
    if not isinstance(error, SystemExit):
        return 1
    if error.code is None:
        return 0
    return error.code & 0xFF if isinstance(error.code, int) else 1


def _finish_interpreter() -> None:
    """As multiprocessing.Process ends: wait for the task's threads and queues, then flush."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, closed, or its reader is gone
            stream.flush()


def _execute(setup: Setup, command: Command) -> int:
    """Become the program. Comes back only if it cannot be executed; the exit code says why."""
    culprit = command.cwd
    try:
        if command.cwd is not None:
            os.chdir(command.cwd)
        culprit = command.argv[0]
        env = os.environ if command.env is None else command.env
        os.execvpe(command.argv[0], command.argv, env)
    except OSError as error:
        # Named as it was given: execvpe names the last folder of PATH that it looked into.
        named = OSError(error.errno, error.strerror, culprit)
        transport.write_exception(setup.result, named, Delivery.NOT_EXECUTED)
        missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
        return NOT_FOUND if missing else NOT_EXECUTABLE
