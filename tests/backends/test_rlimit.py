"""What the rlimit backend holds, sees and says where it cannot: by real processes on the real kernel."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import features
import pytest
from support import (
    MIB,
    PACE,
    SLOW,
    BackendName,
    fork_until_refused,
    is_running,
    run_all,
    run_one,
    run_open,
    run_task,
    sleep_for_ever,
    write_program,
)

from gwsandbox import Command, Limits, Outcome, Task, TaskResult
from gwsandbox.backends import rlimit
from gwsandbox.linux import procfs

SOURCES = str(Path(procfs.__file__).parents[2])
CLONE_PARENT = 0x8000  # include/uapi/linux/sched.h
SYS_CLONE3 = 435


def program(source: str, *args: str, before: tuple[str, ...] = ()) -> str:
    """What a Python program of its own says, which is started by ``before``."""
    done = subprocess.run(
        [*before, sys.executable, "-c", f"import sys; sys.path.insert(0, {SOURCES!r})\n{source}", *args],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def pause() -> None:
    """Let others go on for a moment; nobody waits for that moment to pass."""
    signal.sigtimedwait([], 0.02)


# --- processes -------------------------------------------------------------------------------------------


# In a process of its own, which is small: what a large one forks takes seconds of CPU time to die.
BOMBS = """
import contextlib, os, signal, sys, threading, time
from gwsandbox import Hardening, Limits, run

def explode(tell):
    os.write(tell, str(time.time()).encode())
    end = time.monotonic() + 3  # should nobody end it
    while time.monotonic() < end:
        with contextlib.suppress(BlockingIOError):
            if os.fork() == 0 and sys.argv[1] == "sessions":
                os.setsid()

def explode_late(tell):
    time.sleep(2.05)  # looked at most seldom
    explode(tell)

def explode_in_threads(tell):
    os.write(tell, str(time.time()).encode())
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(3,), daemon=True).start()
    signal.pause()

told, tell = os.pipe()
bomb = {"late": explode_late, "threads": explode_in_threads}.get(sys.argv[1], explode)
result = run(bomb, (tell,), limits=Limits(pids=64, wall_seconds=60), backend="rlimit", hardening=Hardening.off())
print(result.end_time - float(os.read(told, 100)))
print(result.outcome.name, result.enforcement["pids"], result.detail, result.enforcement.degraded["pids"], sep=";")
"""


@pytest.mark.root
@pytest.mark.parametrize("kind", ["forks", "sessions", "late", "threads"])
def test_a_fork_bomb_of_root_is_ended_within_half_a_second(kind: str) -> None:
    taken: list[float] = []
    while not taken or (min(taken) >= 0.5 * SLOW and len(taken) < 5):  # again where others have kept us waiting
        seconds, rest = program(BOMBS, kind).splitlines()
        taken.append(float(seconds))
        assert rest.startswith("KILLED;sampling;more than 64 processes and threads at a time; raise --pids (pids)")
        assert "RLIMIT_NPROC does not bind root" in rest
    assert min(taken) < 0.5 * SLOW


@pytest.mark.ordinary_user
def test_a_fork_bomb_of_a_user_is_refused_processes_or_ended() -> None:
    result = run_one("rlimit", fork_until_refused, time.monotonic() + 3 * PACE, pids=20, wall_seconds=30 * PACE)
    assert result.result == "refused" or result.outcome is Outcome.KILLED, result
    assert result.enforcement["pids"] == "RLIMIT_NPROC + sampling"


def few_processes() -> int:
    for _ in range(4):
        if os.fork() == 0:
            sleep_for_ever()
    end = time.monotonic() + 0.3 * PACE
    while time.monotonic() < end:
        pause()
    return 5


@pytest.mark.root
def test_as_many_processes_as_allowed_are_left_alone() -> None:
    result = run_one("rlimit", few_processes, pids=5, wall_seconds=30 * PACE)
    assert result.success, result


def orphan(seconds_of_cpu: float = 0.0) -> int:
    """A process whose parent is gone; its pid."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0:
            os.setsid()
            os.write(writer, str(os.getpid()).encode())
            while time.process_time() < seconds_of_cpu:
                pass
            if not seconds_of_cpu:
                sleep_for_ever()
        os._exit(0)
    os.wait()
    return int(os.read(reader, 20))


def sibling() -> int:
    """A child of whoever is our parent; its pid."""
    words = (ctypes.c_uint64 * 8)(CLONE_PARENT, 0, 0, 0, 0, 0, 0, 0)
    pid: int = ctypes.CDLL(None).syscall(SYS_CLONE3, words, ctypes.sizeof(words))
    if pid == 0:
        os._exit(0)
    assert pid > 0, "the system call is refused"  # and -1 would stand for every process, once somebody kills it
    return pid


def many_dead(make: Callable[[], int]) -> int:
    """How many zombies there are of many processes that nobody here waits for, once all are dead."""
    pids = [make() for _ in range(20)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 5 * SLOW
    while (left := sum(os.path.exists(f"/proc/{pid}") for pid in pids)) and time.monotonic() < end:
        pause()
    return left


@pytest.mark.parametrize("make", [orphan, sibling])
def test_what_nobody_waits_for_is_reaped_while_the_task_runs(backend: BackendName, make: Callable[[], int]) -> None:
    result = run_open(backend, many_dead, make, wall_seconds=60 * PACE)
    assert result.success, result
    assert result.result == 0


def leave_orphan_alone(path: str, gone: str) -> bool:
    """Whether an orphan lives until its task ends, though another task has ended meanwhile."""
    pid = orphan()
    Path(path).touch()
    end = time.monotonic() + 20 * SLOW
    while not os.path.exists(gone) and time.monotonic() < end:
        pause()
    return is_running(pid)


def end_beside(path: str) -> None:
    while not os.path.exists(path):
        pause()


def test_an_orphan_lives_as_long_as_its_task(backend: BackendName, tmp_path: Path) -> None:
    made, gone = str(tmp_path / "made"), str(tmp_path / "gone")
    tasks = [Task(leave_orphan_alone, (made, gone)), Task(end_beside, (made,)), Task(Path.touch, (Path(gone),))]
    results = run_all(backend, tasks)
    assert all(result.success for result in results), results
    assert [result.result for result in results if result.task is tasks[0]] == [True]


# --- CPU time --------------------------------------------------------------------------------------------


def burn_in_children_whom_nobody_waits_for() -> None:
    """Each far from the limit; the kernel forgets what they used, as their end is ignored."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    end = time.monotonic() + 20 * PACE
    while time.monotonic() < end:
        if (pid := os.fork()) == 0:
            while time.process_time() < 0.3:
                pass
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def test_cpu_time_that_no_parent_was_told_of() -> None:
    result = run_one("rlimit", burn_in_children_whom_nobody_waits_for, cpu_seconds=1, wall_seconds=60 * PACE)
    assert result.outcome is Outcome.CPU_TIME_EXCEEDED, result
    assert "up to the last look" in result.enforcement.degraded["cpu_seconds"]


def burn_in_orphans() -> None:
    end = time.monotonic() + 20 * PACE
    while time.monotonic() < end:
        pid = orphan(0.3)
        while os.path.exists(f"/proc/{pid}"):
            pause()


def test_cpu_time_of_orphans_counts() -> None:
    result = run_one("rlimit", burn_in_orphans, cpu_seconds=1, wall_seconds=60 * PACE)
    assert result.outcome is Outcome.CPU_TIME_EXCEEDED, result
    assert result.usage.cpu_user_seconds is not None
    assert result.usage.cpu_system_seconds is not None
    assert result.usage.cpu_user_seconds + result.usage.cpu_system_seconds > 0.9


# --- memory ----------------------------------------------------------------------------------------------


def into_memfd() -> None:
    fd = os.memfd_create("hog")
    for _ in range(400):
        os.write(fd, b"x" * MIB)
    sleep_for_ever()


def into_nameless_file() -> None:
    fd = os.open("/dev/shm", os.O_TMPFILE | os.O_RDWR)
    for _ in range(400):
        os.write(fd, b"x" * MIB)
    sleep_for_ever()


@pytest.mark.parametrize("hide", [into_memfd, into_nameless_file])
def test_memory_that_nobody_has_mapped_is_counted(hide: Callable[[], None]) -> None:
    result = run_one("rlimit", hide, memory=64 * MIB, wall_seconds=60 * PACE)
    assert result.outcome is Outcome.OUT_OF_MEMORY, result
    assert result.usage.memory_peak_bytes is not None
    assert result.usage.memory_peak_bytes > 64 * MIB


def hold_what_is_mapped_and_open() -> None:
    fd = os.memfd_create("both")
    os.ftruncate(fd, 40 * MIB)
    mapped = ctypes.CDLL(None, use_errno=True)
    mapped.mmap.restype = ctypes.c_void_p
    address = mapped.mmap(None, ctypes.c_size_t(40 * MIB), 3, 1, fd, ctypes.c_long(0))
    ctypes.memset(address, 1, 40 * MIB)
    end = time.monotonic() + 0.5 * PACE
    while time.monotonic() < end:
        pause()


def test_a_file_in_memory_that_is_mapped_too_is_counted_once() -> None:
    result = run_one("rlimit", hold_what_is_mapped_and_open, memory=64 * MIB, wall_seconds=60 * PACE)
    assert result.success, result


def wait_a_little() -> None:
    end = time.monotonic() + 0.3 * PACE
    while time.monotonic() < end:
        pause()


def test_files_in_memory_that_the_caller_has_are_the_callers() -> None:
    fd = os.memfd_create("caller's")
    try:
        os.write(fd, b"x" * 80 * MIB)
        result = run_one("rlimit", wait_a_little, memory=32 * MIB, wall_seconds=60 * PACE)
    finally:
        os.close(fd)
    assert result.success, result
    assert result.usage.memory_peak_bytes is None or result.usage.memory_peak_bytes < 16 * MIB


def fork_and_wait() -> None:
    for _ in range(4):
        if os.fork() == 0:
            wait_a_little()
            os._exit(0)
    wait_a_little()


def test_what_children_share_with_the_caller_is_the_callers() -> None:
    ballast = bytearray(b"x") * (160 * MIB)
    result = run_one("rlimit", fork_and_wait, memory=32 * MIB, wall_seconds=60 * PACE)
    assert result.success, result
    assert len(ballast) == 160 * MIB


def test_what_will_be_a_program_is_not_charged_for_the_callers_memory() -> None:
    ballast = bytearray(b"x") * (160 * MIB)
    tasks = [Command(["true"], limits=Limits(memory=16 * MIB)) for _ in range(20)]
    for result in run_all("rlimit", tasks):
        assert result.success, result
        assert result.usage.memory_peak_bytes is None or result.usage.memory_peak_bytes < 16 * MIB
    assert len(ballast) == 160 * MIB


def test_the_peak_of_a_short_program_is_not_known_and_that_is_said() -> None:
    result = run_task("rlimit", Command(["true"]))
    assert result.success, result
    assert result.usage.memory_peak_bytes is None
    assert result.usage.sources["memory_peak_bytes"].startswith("not measured: ru_maxrss of a program")


def test_the_peak_of_a_large_program_is_its_own() -> None:
    result = run_task("rlimit", Command([sys.executable, "-c", f"len(bytearray({300 * MIB}))"]))
    assert result.success, result
    assert result.usage.memory_peak_bytes is not None
    assert 300 * MIB < result.usage.memory_peak_bytes < 340 * MIB


def hold_threads(number: int) -> int:
    done = threading.Event()
    try:
        for _ in range(number):
            threading.Thread(target=done.wait, daemon=True).start()
    finally:
        done.set()
    return number


def test_stacks_of_threads_are_reserved_and_not_used() -> None:
    result = run_one("rlimit", hold_threads, 40, memory=64 * MIB, wall_seconds=60 * PACE)
    assert result.success, result


def start_threads_and_wait() -> int:
    for _ in range(40):
        threading.Thread(target=wait_a_little, daemon=True).start()
    return 40


def test_what_was_refused_because_it_was_reserved_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlimit, "_room_to_reserve", lambda: 64 * MIB)
    monkeypatch.setattr(rlimit, "_FASTEST", 0.001)
    result = run_one("rlimit", refused_and_held, memory=64 * MIB, wall_seconds=60 * PACE)
    assert result.outcome is Outcome.FAILED, result
    assert "that RLIMIT_DATA allows, so it may have been refused more" in result.detail
    assert "reserved" in result.detail


def refused_and_held() -> None:
    try:
        start_threads_and_wait()
    except RuntimeError:
        wait_a_little()  # until it is looked at
        raise


def test_a_program_that_is_refused_memory_and_fails_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rlimit, "_room_to_reserve", lambda: 64 * MIB)
    source = "import time, mmap\nheld = mmap.mmap(-1, 120 << 20, flags=34)\ntime.sleep(1.5)\nx = bytearray(1 << 28)"
    limits = Limits(memory=64 * MIB, wall_seconds=60 * PACE)
    result = run_task("rlimit", Command([sys.executable, "-S", "-c", source], limits=limits))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 1), result
    assert result.detail.startswith("exit code 1; a process had reserved 12")
    assert "cannot be known" in result.enforcement.degraded["memory"]


# --- limits that were inherited --------------------------------------------------------------------------

UNDER = """
import resource
number = resource.{name}
resource.setrlimit(number, ({value}, {value}))
from gwsandbox import Command, Limits, run
result = run({task}, limits=Limits({limits}), backend="rlimit")
print(result.outcome.name, dict(result.enforcement.limits), result.detail)
"""


@pytest.mark.parametrize(
    ("name", "value", "limits", "said"),
    [
        ("RLIMIT_DATA", 100 << 20, "memory='10GiB'", "'memory': 'RLIMIT_DATA + sampling (RLIMIT_DATA of 104857600, "),
        ("RLIMIT_NOFILE", 200, "open_files=1000", "'open_files': 'RLIMIT_NOFILE (RLIMIT_NOFILE of 200, "),
        ("RLIMIT_FSIZE", 1 << 20, "file_size='1GiB'", "'file_size': 'RLIMIT_FSIZE (RLIMIT_FSIZE of 1048576, "),
        ("RLIMIT_CPU", 100, "cpu_seconds=1000", "'cpu_seconds': 'RLIMIT_CPU + sampling (RLIMIT_CPU of 100, "),
    ],
)
@pytest.mark.parametrize("task", ["Command(['true'])", "abs, (-1,)"])
def test_a_lower_hard_limit_of_the_callers_holds_and_is_said(
    name: str, value: int, limits: str, said: str, task: str
) -> None:
    text = program(UNDER.format(name=name, value=value, limits=limits, task=task))
    assert text.startswith("SUCCEEDED "), text
    assert said + "the caller's own hard limit, is lower)" in text.replace('"', "'")


VALUES_UNDER = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, {limit})
from gwsandbox import Command, ProcessManager, Task, run
results = [run(bytes, (1_000_000,), backend="rlimit"), run(Command(["wc", "-c"], stdin=bytes(1_000_000)), backend="rlimit")]
with ProcessManager(1, backend="rlimit") as manager:
    manager.queue_tasks(Task(len, (bytes(1_000_000),)) for _ in range(2))
for result in [*results, *manager.task_results]:
    print(result.outcome.name, result.detail)
print(resource.getrlimit(resource.RLIMIT_FSIZE))
"""


def test_under_a_soft_limit_of_the_callers_on_files_values_travel() -> None:
    lines = program(VALUES_UNDER.format(limit="(100_000, resource.RLIM_INFINITY)")).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["SUCCEEDED"] * 4
    assert lines[4] == "(100000, -1)"


def test_under_a_hard_limit_of_the_callers_on_files_the_failure_is_ours_and_named() -> None:
    lines = program(VALUES_UNDER.format(limit="(100_000, 100_000)")).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["SANDBOX_ERROR"] * 4
    assert all("ulimit -f" in line for line in lines[:4])


def test_a_value_up_to_the_hard_limit_of_the_callers_on_files_travels() -> None:
    lines = program(VALUES_UNDER.format(limit="(100_000, 2_000_000)")).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["SUCCEEDED"] * 4


# --- where there is nothing to look at -------------------------------------------------------------------

ASKS = """
from gwsandbox import SandboxError, run
try:
    result = run(abs, (-1,), backend="rlimit")
    print(result.outcome.name, result.detail)
except SandboxError as error:
    print(error)
"""


@pytest.mark.root
@pytest.mark.mount_namespace
def test_a_proc_of_another_namespace_is_refused() -> None:
    text = program(ASKS, before=("unshare", "--pid", "--fork"))
    assert "read processes: what is mounted there is of another PID namespace than this process: /proc (" in text
    assert text.rstrip().endswith("mount -t proc proc /proc, inside of the namespace")
    assert program(ASKS, before=("unshare", "--pid", "--fork", "--mount-proc")).startswith("SUCCEEDED")


# --- users -----------------------------------------------------------------------------------------------


def become_root() -> tuple[str, bool]:
    with open("/proc/self/status", encoding="ascii") as file:
        (line,) = [line for line in file if line.startswith("NoNewPrivs")]
    return line.split()[1], os.access("/proc/1/root", os.R_OK)


@pytest.mark.ordinary_user
def test_no_program_of_an_ordinary_user_gains_privileges() -> None:
    result = run_one("rlimit", become_root)
    assert result.result == ("1", False), result


SETRESUID_AND_PAUSE = (
    b"\xb8\x75\x00\x00\x00\x31\xff\x31\xf6\x31\xd2\x0f\x05"  # setresuid(0, 0, 0)
    b"\x85\xc0\x74\x0c\xbf\x09\x00\x00\x00\xb8\x3c\x00\x00\x00\x0f\x05"  # exit(9) where that failed
    b"\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7"  # pause() for ever
)
RUNS_AS_NOBODY = """
import os
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
from gwsandbox import Command, Hardening, Limits, run
result = run(Command([{path!r}]), limits=Limits(wall_seconds={seconds}), backend="rlimit", hardening=Hardening.off())
print(result.outcome.name, result.exit_code)
"""


@pytest.mark.vm
@pytest.mark.skipif(platform.machine() != "x86_64", reason="its machine code is that of x86_64")
def test_a_set_uid_program_does_not_outlive_its_deadline() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="gwsandbox-test-") as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "becomes-root")
        write_program(path, SETRESUID_AND_PAUSE, 4096)
        os.chmod(path, 0o4755)
        said = program(RUNS_AS_NOBODY.format(path=str(path), seconds=2 * PACE))
    assert said.split() in (["FAILED", "9"], ["TIMED_OUT", "-9"])


def test_every_result_is_whole() -> None:
    """What was asked for is held or named."""
    asked = Limits(memory="1GiB", wall_seconds=60, cpu_seconds=60, cpus=1, pids=1000, open_files=64, file_size="1GiB")
    result: TaskResult = run_one("rlimit", abs, -1, **{name: getattr(asked, name) for name in asked.requested()})
    assert result.success, result
    assert asked.requested().keys() <= result.enforcement.limits.keys() | result.enforcement.degraded.keys()
    assert resource.getrlimit(resource.RLIMIT_CORE)
    assert features.missing("root") in {"", "not root"}
