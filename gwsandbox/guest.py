"""The guest's life between its birth and the task's first instruction, and after its last: a flat list of steps.

Every function here but ``look_around`` runs in the guest. None returns to the zygote's code; a step that fails
is reported through the result descriptor with its name and errno. What is the same for every guest the zygote
has done once, and what can be done from outside the supervisor does (resource limits, the OOM score): each page
that a fresh fork writes to costs it a page fault.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from gwsandbox import kernel, transport
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


class Manner(NamedTuple):
    """How all guests of a run live.

    Args:
        keep_terminal: Programs keep the caller's session, process group and descriptors.
        keep_descriptors: Python calls keep the caller's descriptors.
        be_subreaper: Whether a guest's orphans are to stay below it.
        collect_garbage: Whether the caller had the garbage collector on.
        open_files: The caller's RLIMIT_NOFILE.
    """

    keep_terminal: bool
    keep_descriptors: bool
    be_subreaper: bool
    collect_garbage: bool
    open_files: tuple[int, int]


class Common(NamedTuple):
    """What does not change from one guest to the next; see ``look_around``.

    Args:
        supervisor: Pid of the supervisor, whose child every guest is.
        control: The zygote's end of its socket.
        ignored_signals: Signals that a program would inherit as ignored.
        manner: How guests are to live.
    """

    supervisor: int
    control: int
    ignored_signals: tuple[int, ...]
    manner: Manner


class Setup:
    """What one guest is started with. The zygote has one, and fills it anew for each: to make one is pages written.

    Attributes:
        task: What to run; a task that was queued late as its bytes, or as a descriptor that holds them.
        is_command: Whether it is a program.
        data_limit: RLIMIT_DATA of a program, to be set when nothing but exec is left to do; 0 is none.
        born_inside: Whether it was born in its cgroup already.
        result: The result descriptor.
        go: Descriptor that can be read when the task's time begins.
        cgroup: Descriptor of its cgroup, or ``None``.
        stdin: Descriptor to read from, or ``None`` for the zygote's (/dev/null, or the caller's own).
        stdout: Descriptor to write to, or ``None`` for the caller's own.
        stderr: Likewise.
        common: What is the same for every guest.
    """

    task: Task | Command | bytes | int
    is_command: bool
    data_limit: int
    born_inside: bool
    result: int
    go: int
    cgroup: int | None
    stdin: int | None
    stdout: int | None
    stderr: int | None

    def __init__(self, common: Common) -> None:
        self.common = common


def look_around(control: int, manner: Manner) -> Common:
    """In the zygote, once: what every guest will need to know.

    Args:
        control: The zygote's end of its socket.
        manner: How guests are to live.
    """
    # One that keeps its terminal keeps what nohup and a shell's background jobs ignore.
    numbers = _INTERPRETERS.keys() if manner.keep_terminal else signal.valid_signals() - _UNSTOPPABLE
    handlers = {number: signal.getsignal(number) for number in numbers}
    return Common(
        supervisor=os.getppid(),
        control=control,
        # In a program handlers end with exec, but what is ignored stays so.
        ignored_signals=tuple(n for n in handlers if _INTERPRETERS.get(n, handlers[n]) == signal.SIG_IGN),
        manner=manner,
    )


def forget_the_caller(*, keep_ignored: bool) -> None:
    """In the zygote, once: what a fork does not do.

    Signal handlers become the interpreter's own, and multiprocessing forgets the caller's children and queues
    as its own bootstrap does: otherwise a guest's exit would terminate the caller's daemonic children, and a
    queue that the caller has used would lose what the guest puts into it.
    """
    signal.set_wakeup_fd(-1)  # the caller's event loop must not be told of a guest's signals
    for number in signal.valid_signals() - _UNSTOPPABLE:
        wanted = _INTERPRETERS.get(number, signal.SIG_DFL)
        handler = signal.getsignal(number)
        if handler not in {wanted, None} and not (keep_ignored and handler is signal.SIG_IGN):
            signal.signal(number, wanted)
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None:
        process.__dict__["_children"] = set()
        util._finalizer_registry.clear()
        util._run_after_forkers()


def live(setup: Setup) -> NoReturn:
    """Be a guest: take all steps, run the task, leave a record, exit."""
    code = _SETUP_FAILED
    try:
        failure = _take_steps(setup)
        if failure is None:
            code = 1
            task = _unpack(setup.task)
            code = _execute(setup, task) if isinstance(task, Command) else _call(setup, task)
        else:
            transport.write_exception(setup.result, failure, Delivery.STEP_FAILED)
    except BaseException as error:  # noqa: BLE001 - whatever comes here must not unwind into the zygote
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
    if setup.cgroup is not None and not setup.born_inside:
        fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=setup.cgroup)
        os.write(fd, b"0")
        os.close(fd)
    if setup.common.manner.be_subreaper:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)


def _leave_session(setup: Setup) -> None:
    if not setup.common.manner.keep_terminal:
        os.setsid()


def _connect_standard_descriptors(setup: Setup) -> None:
    for source, standard in ((setup.stdin, 0), (setup.stdout, 1), (setup.stderr, 2)):
        if source is not None:
            os.dup2(source, standard)
            os.close(source)


def _close_descriptors(setup: Setup) -> None:
    """Close all that is not the caller's own; and of that, where it is not to be kept, all but the first three."""
    os.close(setup.common.control)
    if setup.cgroup is not None:
        os.close(setup.cgroup)
    manner = setup.common.manner
    if not (manner.keep_terminal if setup.is_command else manner.keep_descriptors):
        first = 3
        for fd in sorted(fd for fd in (setup.result, setup.go, setup.task) if isinstance(fd, int)):
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


def _reset_signals(setup: Setup) -> None:
    if setup.is_command:
        for number in setup.common.ignored_signals:
            signal.signal(number, signal.SIG_DFL)
    if setup.common.manner.keep_terminal:
        kernel.unblock_signals()


def _wait_for_its_time(setup: Setup) -> None:
    os.read(setup.go, 8)
    os.close(setup.go)
    if setup.common.manner.collect_garbage:
        gc.enable()


_STEPS: tuple[tuple[str, Callable[[Setup], None]], ...] = (
    ("die with supervisor", _die_with_supervisor),
    ("join cell", _join_cell),
    ("leave session", _leave_session),
    ("connect standard descriptors", _connect_standard_descriptors),
    ("close descriptors", _close_descriptors),
    ("reset signals", _reset_signals),
    ("wait for its time", _wait_for_its_time),
)


def _unpack(task: Task | Command | bytes | int) -> Task | Command:
    if isinstance(task, int):
        with open(task, "rb", buffering=0) as file:
            task = file.readall()
    return transport.unpack_task(task) if isinstance(task, bytes) else task


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
    threading = sys.modules.get("threading")
    if threading is not None and _thread._count():
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._exit_function()
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 - suppress is Python code, and pages written
            stream.flush()
        except (AttributeError, OSError, ValueError):  # None, closed, or its reader is gone
            pass


def _execute(setup: Setup, command: Command) -> int:
    """Become the program. Comes back only if it cannot be executed; the exit code says why."""
    culprit = command.cwd
    try:
        if command.cwd is not None:
            os.chdir(command.cwd)
        culprit = command.argv[0]
        if setup.data_limit:
            resource.setrlimit(resource.RLIMIT_DATA, (setup.data_limit, setup.data_limit))
        if command.env is None:
            os.execvp(command.argv[0], command.argv)
        else:
            os.execvpe(command.argv[0], command.argv, command.env)
    except OSError as error:
        # Named as it was given: execvpe names the last folder of PATH that it looked into.
        named = OSError(error.errno, error.strerror, culprit, None, _interpreter(culprit))
        transport.write_exception(setup.result, named, Delivery.NOT_EXECUTED)
        missing = error.errno in {errno.ENOENT, errno.ENOTDIR}
        return NOT_FOUND if missing else NOT_EXECUTABLE


def _interpreter(program: str | None) -> str | None:
    """What a script asks for in its first line: where that is missing, the script is "not found" though it is there."""
    try:
        with open(program or "", "rb") as file:
            line = file.readline(256)
    except OSError:
        return None
    words = line[2:].split()
    return os.fsdecode(words[0]) if line.startswith(b"#!") and words else None
