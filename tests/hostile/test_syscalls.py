"""Tasks that make processes and threads past Python, by system calls that few programs use."""

from __future__ import annotations

import ctypes
import errno
import os
import signal

import pytest
from support import MIB, BackendName, is_running, run_one, run_open, sleep_for_ever

from gwsandbox import Outcome

pytestmark = pytest.mark.stock_kernel  # a guest of User-mode Linux is not kept from its kernel

libc = ctypes.CDLL(None, use_errno=True)

# The same numbers on every architecture (asm-generic/unistd.h), as are the flags (linux/sched.h).
SYS_IO_URING_SETUP = 425
SYS_CLONE3 = 435
CLONE_PARENT = 0x8000
CLONE_UNTRACED = 0x800000
CLONE_CLEAR_SIGHAND = 0x100000000
IORING_SETUP_SQPOLL = 2


def clone3(flags: int, exit_signal: int = 0) -> int:
    """Like fork, with flags; 0 in the child."""
    words = (ctypes.c_uint64 * 8)(flags, 0, 0, 0, exit_signal, 0, 0, 0)
    pid: int = libc.syscall(SYS_CLONE3, words, ctypes.sizeof(words))
    if pid < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return pid


def start(flags: int, exit_signal: int = 0) -> int:
    """A process that sleeps for ever; its pid."""
    pid = clone3(flags, exit_signal)
    if pid == 0:
        sleep_for_ever()
    return pid


# CLONE_PARENT makes a sibling: a child of the guest's parent. With an exit signal of 0 no signal announces its end.
@pytest.mark.parametrize(
    "flags", [0, CLONE_PARENT, CLONE_UNTRACED, CLONE_CLEAR_SIGHAND, CLONE_PARENT | CLONE_UNTRACED], ids=hex
)
def test_what_was_cloned_with_strange_flags_is_gone_too(backend: BackendName, flags: int) -> None:
    result = run_open(backend, start, flags)
    assert result.success, result
    assert not is_running(result.result)


def start_sibling_and_sleep(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(str(start(CLONE_PARENT)))
    sleep_for_ever()


def test_a_sibling_dies_with_a_task_that_timed_out(backend: BackendName, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "pid")
    result = run_open(backend, start_sibling_and_sleep, path, wall_seconds=3)
    assert result.outcome is Outcome.TIMED_OUT, result
    with open(path, encoding="ascii") as file:
        assert not is_running(int(file.read()))


def die_by_the_end_of_a_child() -> None:
    if clone3(0, signal.SIGKILL) == 0:
        os._exit(0)
    sleep_for_ever()


def test_a_child_whose_end_kills_its_parent(backend: BackendName) -> None:
    """It is a kill that no limit caused, and so neither OUT_OF_MEMORY nor TIMED_OUT."""
    result = run_open(backend, die_by_the_end_of_a_child, wall_seconds=60)
    assert (result.outcome, result.exit_code) == (Outcome.KILLED, -signal.SIGKILL), result
    assert not result.out_of_memory
    assert not result.timed_out


def many_siblings_take_memory() -> None:
    for _ in range(8):
        if clone3(CLONE_PARENT) == 0:
            held = bytearray(16 * MIB)
            sleep_for_ever()
            del held
    sleep_for_ever()


@pytest.mark.cgroup2
def test_memory_of_siblings_counts() -> None:
    result = run_open("cgroup", many_siblings_take_memory, memory="64MiB", wall_seconds=60)
    assert result.outcome is Outcome.OUT_OF_MEMORY, result


def spawn() -> int:
    """By vfork, as the C library's posix_spawn does."""
    return os.posix_spawn("/bin/sleep", ["sleep", "1000"], os.environ, setsid=True)


def test_what_was_vforked_is_gone_too(backend: BackendName) -> None:
    result = run_one(backend, spawn)
    assert result.success, result
    assert not is_running(result.result)


def poll_by_a_thread_of_the_kernel() -> str:
    """A ring of io_uring whose submission queue a thread of the kernel polls, within this process."""
    parameters = (ctypes.c_uint32 * 30)()  # struct io_uring_params of 120 bytes: the third word holds flags
    parameters[2] = IORING_SETUP_SQPOLL
    if libc.syscall(SYS_IO_URING_SETUP, 8, parameters) < 0:
        return errno.errorcode[ctypes.get_errno()]
    with open("/proc/self/status", encoding="ascii") as file:
        assert "Threads:\t2\n" in file.read()
    sleep_for_ever()
    return ""


def test_a_thread_of_io_uring_ends_at_the_deadline(backend: BackendName) -> None:
    result = run_open(backend, poll_by_a_thread_of_the_kernel, wall_seconds=3, pids=20)
    if result.success:  # the kernel has it not, or does not allow it: then nothing is left to end
        assert result.result in {"ENOSYS", "EPERM"}
    else:
        assert result.outcome is Outcome.TIMED_OUT, result
