"""The guest's life between its birth and the task's first instruction, and after its last: a flat list of steps.

What comes from ``run_guest`` on runs in the guest, and does not return to the zygote's code; a step that fails is
reported through the result descriptor with its name and errno.

A fresh fork pays a page fault, 2 µs or more, for each page that it is the first to write to, and Python writes to
every object that it looks at. So the straight lines below are meant: each function, global name, constant and
attribute less is a page or two. What is the same for every guest the zygote has done once, and what can be done from
outside the supervisor does (resource limits).
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from types import CoroutineType
from typing import Any, NoReturn

from gwsandbox.guest import finish
from gwsandbox.guest.confinement import Confinement
from gwsandbox.guest.program import Program, become, exit_code
from gwsandbox.ipc import call, record
from gwsandbox.ipc.call import Call
from gwsandbox.linux import confine, descriptors, syscalls
from gwsandbox.model.errors import GuestSetupError
from gwsandbox.model.options import RunOptions
from gwsandbox.model.verdict import RESULT_LOST, Delivery

_SETUP_FAILED = 125

_UNSTOPPABLE = {signal.SIGKILL, signal.SIGSTOP}
# What the interpreter starts with: Python code expects exceptions in the place of these signals.
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_INTERPRETERS: dict[int, Any] = {
    signal.SIGINT: signal.default_int_handler,
    **dict.fromkeys(_IGNORED_BY_PYTHON, signal.SIG_IGN),
}


class Setup:
    """What one guest is started with. The zygote has one, and fills it again for each.

    Attributes:
        supervisor: Pid of the supervisor, whose child every guest is.
        control: The zygote's end of its socket.
        inherited: Descriptors past the first three that a program would inherit, and shall not.
        keep_terminal: Programs keep the caller's session, process group and descriptors.
        keep_descriptors: Python calls keep the caller's descriptors.
        tid_address: See ``syscalls.clone3``.
        born_inside: Whether guests are born in their cgroups.
        records: The module that writes its record: ``record``, or ``plain_record``.
        is_command: Whether to run ``program``, or to make ``call``.
        program: The program.
        call: The Python call; one that was queued late as its bytes, or as a descriptor that holds them.
        own_pids: Whether it is in a PID namespace of the run's own.
        slots: Views of mounts by slot, or ``None`` where all see the same.
        users: By slot, the ``calls`` and ``program_calls`` of the guest that has it; empty where all have the same.
        calls: System calls that confine a guest whose task is a Python call.
        program_calls: Those of one that becomes a program.
        ruleset: Descriptor that the zygote needs for them, and no guest may keep; -1 where there is none.
        data_limit: RLIMIT_DATA of a program, to be set when nothing but exec is left to do; 0 is none.
        result: The result descriptor.
        start_event: Descriptor that can be read when the task's time begins.
        cgroup: Descriptor of its cgroup, or ``None``.
        waits_first: Whether a guest is confined when its time begins, and not before: once it is another user's, a
            supervisor without CAP_SYS_RESOURCE can set no limits for it.
        stdin: Descriptor to read from, or ``None`` for the zygote's (/dev/null, or the caller's own).
        stdout: Descriptor to write to, or ``None`` for the caller's own.
        stderr: Likewise.
    """

    __slots__ = (
        *("born_inside", "call", "calls", "cgroup", "control", "data_limit", "inherited"),
        *("is_command", "keep_descriptors", "keep_terminal", "own_pids", "program", "program_calls", "records"),
        *("result", "ruleset", "slots", "start_event", "stderr", "stdin", "stdout", "supervisor", "tid_address"),
        *("users", "waits_first"),
    )

    is_command: bool
    program: Program
    call: Call | bytes | int
    data_limit: int
    result: int
    start_event: int
    cgroup: int | None
    stdin: int | None
    stdout: int | None
    stderr: int | None

    def __init__(self, control: int, options: RunOptions) -> None:
        """In the zygote, once: what every guest will need to know.

        Args:
            control: The zygote's end of its socket.
            options: Of the run.
        """
        self.supervisor = os.getppid()
        self.control = control
        self.inherited = () if options.pass_through else tuple(_inherited())
        self.keep_terminal = options.pass_through
        self.keep_descriptors = options.trusted
        self.tid_address = syscalls.tid_address()
        self.born_inside = True
        self.records: Any = record
        if options.hardening.results == "plain":
            from gwsandbox.ipc import plain_record  # noqa: PLC0415 - 10 ms, and most runs have pickles

            self.records = plain_record
        self.confine(Confinement())

    def confine(self, confinement: Confinement) -> None:
        """In the zygote, once: what every guest does to give up what it is not to have."""
        self.calls, self.program_calls = confinement.calls, confinement.program_calls
        self.ruleset = confinement.ruleset
        self.waits_first = confinement.changes_user
        self.own_pids, self.slots, self.users = confinement.own_pids, confinement.slots, confinement.by_slot()
        if self.slots is not None:  # whose descriptors are of no guest's
            self.keep_descriptors = False


def reset_inherited_state(*, keep_ignored: bool) -> None:
    """In the zygote, once: what a fork does not do.

    Signal handlers become the interpreter's own, and multiprocessing forgets the caller's children and queues
    as its own bootstrap does: otherwise a guest's exit would terminate the caller's daemonic children, and a
    queue that the caller has used would lose what the guest puts into it.

    Args:
        keep_ignored: Whether signals that the caller ignores stay ignored.
    """
    finish.forget_callers()
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


def warm_up() -> None:
    """In the zygote, once: let the C library do what it would do in every guest, at the price of a dozen pages.

    The dynamic linker looks up a function when it is first called. And a large allocation lets malloc sort the
    chunks that the caller has freed, through which the first small one would go in a guest.
    """
    with contextlib.suppress(OSError):
        os.read(-1, 1)
    with contextlib.suppress(OSError):
        os.pwrite(-1, b"", 0)
    with contextlib.suppress(OSError):
        os.lseek(-1, 0, os.SEEK_CUR)
    finish.rehearse()
    bytearray(1 << 14)


def set_default_signals(*, programs: bool) -> None:
    """In the zygote, when the next guest is a program and the last was none, or the other way about.

    What is ignored stays so in a program, and Python ignores some signals.
    """
    for number in _IGNORED_BY_PYTHON:
        signal.signal(number, signal.SIG_DFL if programs else signal.SIG_IGN)
    if programs:  # to be rehearsed too, but not by who runs no programs: a seccomp filter may kill for it
        for execute, rest in ((os.execv, ()), (os.execve, ({},))):
            with contextlib.suppress(Exception):
                execute("/", ("/",), *rest)


def _inherited() -> Iterator[int]:
    """Descriptors of this process past the first three that a program would get."""
    for fd in descriptors.open_descriptors():
        with contextlib.suppress(OSError):  # the one that lists them is closed again
            if fd > 2 and os.get_inheritable(fd):
                yield fd


# --- in the guest ---------------------------------------------------------------------------------------


def run_guest(setup: Setup) -> NoReturn:
    """Be a guest: take all steps, run the task, leave a record, exit."""
    code = _SETUP_FAILED
    try:
        _take_steps(setup)
        code = 1
        if not setup.is_command:
            _call(setup, *_open_call(setup.call))
        try:
            become(*setup.program, data_limit=setup.data_limit)
        except OSError as error:
            code = exit_code(error)
            setup.records.write_exception(setup.result, error, Delivery.NOT_EXECUTED)
    except GuestSetupError as error:
        setup.records.write_exception(setup.result, error, Delivery.STEP_FAILED)
    except BaseException as error:  # noqa: BLE001 - whatever comes here must not unwind into the zygote
        setup.records.write_exception(setup.result, error, Delivery.RAISED)
    finally:
        syscalls.leave(code)


def _take_steps(setup: Setup) -> None:
    step = "die with supervisor"
    try:
        syscalls.die_with_parent()
        # It may have died before that call. Compared with its pid and not with 1: in a container it may be 1.
        if os.getppid() != setup.supervisor:
            os._exit(_SETUP_FAILED)
        step = "join sandbox"
        if setup.cgroup is not None and not setup.born_inside:
            _join(setup.cgroup)
        step = "leave session"
        if not setup.keep_terminal:
            os.setsid()
        step = "connect standard descriptors"
        if setup.stdin is not None or setup.stdout is not None:
            _connect(setup)
        if setup.waits_first:
            step = "wait for its time"
            os.read(setup.start_event, 8)
        step = "confine"
        for call in setup.program_calls if setup.is_command else setup.calls:
            confine.apply(call, step)
        step = "close descriptors"
        _close_descriptors(setup)
        step = "unblock signals"
        if setup.keep_terminal:
            syscalls.unblock_signals()
        if not setup.waits_first:
            step = "wait for its time"
            os.read(setup.start_event, 8)
        os.close(setup.start_event)
    except Exception as error:  # noqa: BLE001 - reported with its name, whatever it is
        number = getattr(error, "errno", None) or 0
        raise GuestSetupError(f"guest step '{step}' failed", value=str(error), errno=number) from None


def _join(cgroup: int) -> None:
    """Where it was not born there."""
    fd = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=cgroup)
    os.write(fd, b"0")
    os.close(fd)


def _connect(setup: Setup) -> None:
    if setup.stdin is not None:
        os.dup2(setup.stdin, 0)
    if setup.stdout is not None and setup.stderr is not None:
        os.dup2(setup.stdout, 1)
        os.dup2(setup.stderr, 2)


def _close_descriptors(setup: Setup) -> None:
    """Close all that is not the caller's own; and of that, where it is not to be kept, all but the first three."""
    if setup.is_command:  # ours are closed by exec
        for fd in setup.inherited:
            os.close(fd)
        return
    os.close(setup.control)
    for own in (setup.cgroup, setup.stdout, setup.stderr):
        if own is not None:
            os.close(own)
    if setup.ruleset >= 0:
        os.close(setup.ruleset)
    if not setup.keep_descriptors:
        first = 3
        for fd in sorted(fd for fd in (setup.result, setup.start_event, setup.call) if isinstance(fd, int)):
            if fd > first:
                _close_range(first, fd - 1)
            first = fd + 1
        _close_range(first, 2**31 - 1)


def _close_range(first: int, last: int) -> None:
    try:
        syscalls.close_range(first, last)
    except OSError as error:
        if error.errno not in {errno.ENOSYS, errno.EPERM}:
            raise
        for fd in map(int, os.listdir("/proc/self/fd")):
            if first <= fd <= last:
                with contextlib.suppress(OSError):
                    os.close(fd)


def _open_call(sent: Call | bytes | int) -> Call:
    if isinstance(sent, int):
        stored, sent = sent, call.read_stored(sent)
        os.close(stored)
    return call.unpack_call(sent) if isinstance(sent, bytes) else sent


def _call(
    setup: Setup,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    returns: tuple[type, ...],
) -> NoReturn:
    """Run a Python call, leave its record, and end."""
    try:
        value = func(*args, **kwargs)
        if value is not None and type(value) is CoroutineType:
            value = _run_coroutine(value)
        if os.getppid() != setup.supervisor:
            finish.leave_fork(0)
        code = 0 if setup.records.write_value(setup.result, value, returns) else 1
    except BaseException as error:  # noqa: BLE001 - all that a task raises is its result
        if os.getppid() != setup.supervisor:
            finish.leave_fork(_exit_code(error))
        code = _tell(setup, error, returns)
    finish.finish(setup.result, code)


def _run_coroutine(coroutine: Coroutine[Any, Any, Any]) -> Any:
    import asyncio  # noqa: PLC0415 - no other guest pays for it

    return asyncio.run(coroutine)


def _tell(setup: Setup, error: BaseException, returns: tuple[type, ...]) -> int:
    """Leave the record of what the task raised; the exit code."""
    if isinstance(error, record.ResultLostError):
        return RESULT_LOST
    delivery = Delivery.RAISED
    if isinstance(error, MemoryError):
        delivery = Delivery.NO_MEMORY
        _use_report_reserve()
    _leave_out_ours(error)
    try:
        setup.records.write_exception(setup.result, error, delivery, returns)
    except record.ResultLostError:
        return RESULT_LOST
    return _exit_code(error)


def _leave_out_ours(error: BaseException) -> None:
    """Let its traceback begin with the task's function: our frames, and those of ``asyncio.run``, help nobody."""
    trace = error.__traceback__
    while trace is not None and str(trace.tb_frame.f_globals.get("__name__")).startswith((__name__, "asyncio.")):
        trace = trace.tb_next
    error.__traceback__ = trace


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
