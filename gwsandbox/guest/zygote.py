"""The zygote: a child of the supervisor that does nothing but fork guests.

A process that has just forked pays a page fault for each page that it writes to. The supervisor writes to
hundreds per task, the zygote's loop to a few dozen; so who keeps the books does not fork. The guests are not the
zygote's children but the supervisor's (CLONE_PARENT), which waits for them. And a fork of a caller that holds
gigabytes takes long: here no deadline waits for it.

A guest is born in its cgroup (CLONE_INTO_CGROUP), so it is never outside its limits, and the lock that moving a
process takes is not taken.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import pickle
import resource
import select
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from gwsandbox.guest import at_fork, child, random_numbers
from gwsandbox.guest.confinement import confine_zygote
from gwsandbox.ipc import call
from gwsandbox.ipc.birth import (
    ANSWER,
    CGROUP,
    CREDENTIALS,
    LARGEST_WORK,
    NOT_READY,
    REQUEST,
    RIGHTS,
    ROLES,
    STDERR,
    STDIN,
    STDOUT,
    TRUNCATED,
    WORK,
    pack_held,
)
from gwsandbox.linux import syscalls, unpatched
from gwsandbox.linux.errnos import Patience, errno_of, is_not_now
from gwsandbox.model.options import RunOptions
from gwsandbox.model.task import Command, Task

_LATER_SECONDS = 0.02
_OOM_SCORE_RAISE = 500  # of 1000: guests go before the user's own service, after whatever asked to be first
_CLONE3_REFUSED = frozenset({errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.E2BIG})


def run_zygote(
    control: socket.socket,
    inherited_tasks: Mapping[int, Task | Command],
    options: RunOptions,
    *,
    limits: Mapping[int, tuple[int, int]],
    why_no_pid_namespace: str = "",
) -> NoReturn:
    """Become the zygote; its exit code is the errno that ended it. Comes back in the guests only, which never return.

    Args:
        control: The zygote's end of the socket.
        inherited_tasks: Tasks that came along with the fork, by number.
        options: Of the run.
        limits: Resource limits of the caller, by number, which guests get back.
        why_no_pid_namespace: Why this process is in no PID namespace of the run's own, where it is to be.
    """
    code = 0
    try:
        setup = _get_ready(control, options, limits, why_no_pid_namespace)
        _serve(control, inherited_tasks, setup)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is to be said
        code = errno_of(error) or errno.EIO
        if not is_not_now(error):
            traceback.print_exc()
        if options.hardening.require:
            _say_held(control, dict.fromkeys(options.hardening.mechanisms(), f"not: {error}"))
        _refuse_one(control, NOT_READY + code)
    finally:
        os._exit(code)


def _get_ready(
    control: socket.socket, options: RunOptions, limits: Mapping[int, tuple[int, int]], why_no_pid_namespace: str
) -> child.Setup:
    """Do once what every guest would have to do."""
    syscalls.die_with_parent()
    setup = child.Setup(control.fileno(), options)
    child.reset_inherited_state(keep_ignored=options.pass_through)
    if not options.pass_through:  # else the terminal's signals come here too, and shall not end us
        syscalls.unblock_signals()
    _raise_oom_score()
    confinement = confine_zygote(options, why_no_pid_namespace)
    setup.confine(confinement)
    _say_held(control, confinement.held)
    for number, limit in limits.items():  # now, as few descriptors may be too few for what comes before
        resource.setrlimit(number, limit)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash shall not fill the disk with a guest's memory
    child.warm_up()
    unpatched.patch_again()
    at_fork.spare_guests()
    gc.freeze()  # or a guest's first collection would write to every page that it shares with us
    if options.collect_garbage:
        gc.enable()
    return setup


def _say_held(control: socket.socket, held: Mapping[str, str]) -> None:
    """Say what of the run's hardening holds, where there is any: somebody may wait for that before any task."""
    if held:
        control.send(pack_held(held))


def _refuse_one(control: socket.socket, number: int) -> None:
    """Answer one request with an errno; another zygote takes the next, as what failed here may pass."""
    if control.recv(1):
        control.send(ANSWER.pack(-number))


def _raise_oom_score() -> None:
    """Let guests go first where the host runs out of memory. Optional: /proc may be read-only, or not ours."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+", encoding="utf-8") as file:
        score = int(file.read())
        file.seek(0)
        file.write(str(min(score + _OOM_SCORE_RAISE, 1000)))


def _serve(control: socket.socket, inherited_tasks: Mapping[int, Task | Command], setup: child.Setup) -> None:
    space = socket.CMSG_SPACE(4 * len(ROLES))
    message = bytearray(REQUEST.size + LARGEST_WORK)
    serves_programs = False
    reseed = random_numbers.reseeder()
    while True:
        size, ancillary, flags, _ = _patiently(control.recvmsg_into, [message], space, socket.MSG_CMSG_CLOEXEC)
        if not size:
            return
        rights = ancillary[0][2] if ancillary else b""
        descriptors = RIGHTS[len(rights) // 4].unpack(rights)
        # Whatever fails is the answer to this one request: the next may well succeed.
        try:
            if flags & TRUNCATED:  # not all of them fit below RLIMIT_NOFILE
                raise OSError(errno.EMFILE, "receive descriptors")  # noqa: TRY301 - as the others
            # Here and not in the guest, which pays a page fault for each page that it is the first to write to.
            _fill(setup, message, size, descriptors, inherited_tasks)
            if setup.is_command is not serves_programs:
                serves_programs = setup.is_command
                child.set_default_signals(programs=serves_programs)
            if reseed is not None and not setup.is_command:
                reseed()
            pid = _fork(setup)
        except Exception as error:  # noqa: BLE001 - as said
            pid = -(errno_of(error) or errno.EIO)
        if pid == 0:
            child.run_guest(setup)
        _answer(control, pid, own_pids=setup.own_pids)
        for fd in descriptors:
            os.close(fd)
        if size > REQUEST.size:  # no later guest shall find there what this one was given
            message[REQUEST.size : size] = bytes(size - REQUEST.size)


def _answer(control: socket.socket, pid: int, *, own_pids: bool) -> None:
    if pid > 0 and own_pids:  # as credentials, whose pid the kernel translates
        credentials = CREDENTIALS.pack(pid, os.getuid(), os.getgid())
        ancillary = [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, credentials)]
        _patiently(control.sendmsg, [ANSWER.pack(pid)], ancillary)
    else:
        _patiently(control.send, ANSWER.pack(pid))


def _patiently(function: Callable[..., Any], *args: Any) -> Any:
    """Call ``function``, and again as long as the kernel says "not now", up to some seconds: nobody waits for us."""
    patience = None
    while True:
        try:
            return function(*args)
        except OSError as error:
            patience = patience or Patience()
            patience.bear(error)
            time.sleep(_LATER_SECONDS)


def _fork(setup: child.Setup) -> int:
    """As fork: the pid, or minus an errno. Where clone3 is refused, guests are no longer born inside."""
    if setup.born_inside:
        try:
            return syscalls.clone3(setup.cgroup, setup.tid_address, for_exec=setup.is_command)
        except OSError as error:
            if error.errno not in _CLONE3_REFUSED:
                return -(error.errno or errno.EAGAIN)
            setup.born_inside = False
    try:
        return syscalls.clone(for_exec=setup.is_command)
    except OSError as error:
        if error.errno != errno.EPERM:
            return -(error.errno or errno.EAGAIN)
    # In a PID namespace of its own it would not come to the supervisor.
    return -errno.EPERM if setup.own_pids else _fork_orphan()


def _fork_orphan() -> int:
    """Fork a child of the supervisor where nothing may make siblings, as in a guest of another run.

    The child of a child becomes the nearest subreaper's, the supervisor's, when that child is dead.
    """
    told, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        parent = os.getpid()
        pid = os.fork()
        if pid:
            os.write(tell, ANSWER.pack(pid))
            os._exit(0)
        os.close(told)
        os.close(tell)
        _await_death(parent)
        return 0
    os.close(tell)
    with open(told, "rb") as pipe:
        answer = pipe.read(ANSWER.size)
    os.waitpid(middle, 0)
    return int(ANSWER.unpack(answer)[0]) if len(answer) == ANSWER.size else -errno.EAGAIN


def _await_death(parent: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(parent)
        if os.getppid() == parent:
            poll = unpatched.module("select").poll()
            poll.register(pidfd, select.POLLIN)
            poll.poll()
        os.close(pidfd)


def _fill(
    setup: child.Setup,
    message: bytearray,
    size: int,
    descriptors: Sequence[int],
    inherited_tasks: Mapping[int, Task | Command],
) -> None:
    number, setup.data_limit, is_command, mask, slot = REQUEST.unpack_from(message)
    setup.is_command = bool(is_command)
    if setup.slots is not None:
        setup.slots.enter(slot)
    if setup.users:
        setup.calls, setup.program_calls = setup.users[slot]
    present = iter(descriptors)
    setup.result, setup.start_event = next(present), next(present)
    setup.cgroup = next(present) if mask & CGROUP else None
    work = next(present) if mask & WORK else None
    setup.stdin = next(present) if mask & STDIN else None
    setup.stdout = next(present) if mask & STDOUT else None
    setup.stderr = next(present) if mask & STDERR else None
    task = inherited_tasks.get(number)
    if isinstance(task, Command):
        setup.program = task.argv, task.cwd, task.env
    elif task is not None:
        setup.call = call.call_of(task)
    elif is_command:
        setup.program = pickle.loads(message[REQUEST.size : size] if work is None else call.read_stored(work))
    else:
        setup.call = work or bytes(message[REQUEST.size : size])
