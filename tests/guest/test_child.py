"""What a guest finds around it: signals, session, limits; and a step of ours that fails."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import PACE, BackendName, Program, run_all, run_one, run_task, times

from gwsandbox import Command, Limits, Outcome, ProcessManager, SandboxError, Task, run

PR_GET_PDEATHSIG = 2


def status() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def death_signal() -> int:
    number = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(number)) == 0
    return number.value


# --- signals, session, kin -------------------------------------------------------------------------------


def signal_state() -> tuple[set[int], list[Any], dict[str, str]]:
    return (
        set(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM, signal.SIGUSR1)],
        status(),
    )


def test_signals_are_as_a_fresh_interpreter_has_them(backend: BackendName) -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        blocked, handlers, fields = run_one(backend, signal_state).result
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert blocked == set()
    assert handlers[1:] == [signal.SIG_IGN, signal.SIG_DFL, signal.SIG_DFL]
    assert handlers[0] is signal.default_int_handler
    assert int(fields["SigBlk"], 16) == 0
    assert int(fields["SigIgn"], 16) == 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1


def test_a_programs_signals_are_all_default(backend: BackendName) -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        result = run_task(backend, Command(["cat", "/proc/self/status"]))
    finally:
        signal.signal(signal.SIGUSR1, before)
    fields = dict(line.split(":", 1) for line in result.result.stdout.decode().splitlines())
    assert [int(fields[f"Sig{name}"], 16) for name in ("Blk", "Ign", "Cgt")] == [0, 0, 0]


def test_programs_and_calls_by_turns_have_each_their_own_signals(backend: BackendName) -> None:
    """The zygote ignores for its guests what Python ignores, and stops doing so for a program."""
    call, program = Task(status), Command(["cat", "/proc/self/status"])
    results = run_all(backend, [program, call, program, program, call, call, program], workers=1)
    ignored = []
    for result in results:
        lines = result.result.stdout.decode().splitlines() if isinstance(result.task, Command) else None
        fields = result.result if lines is None else dict(line.split(":", 1) for line in lines)
        ignored.append(int(fields["SigIgn"], 16))
    pythons = 1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1
    assert ignored == [0, pythons, 0, 0, pythons, pythons, 0]


def test_what_a_shell_lets_ignore_stays_so_in_a_program_but_for_its_children(backend: BackendName) -> None:
    """With SIGCHLD ignored nobody accounts for their exit status and CPU time, and a limit of that is not held."""
    run_cli = [sys.executable, "-W", "ignore", "-m", "gwsandbox", "run", "--backend", backend, "--"]
    words = ["bash", "-c", 'trap "" CHLD HUP; exec "$@"', "-", *run_cli, "cat", "/proc/self/status"]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    fields = dict(line.split(":", 1) for line in done.stdout.splitlines())
    assert int(fields["SigIgn"], 16) == 1 << signal.SIGHUP - 1


def kin() -> dict[str, int]:
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        score = int(file.read())
    return {"pid": os.getpid(), "session": os.getsid(0), "group": os.getpgid(0), "oom": score, "death": death_signal()}


def test_session_death_signal_and_oom_score(backend: BackendName) -> None:
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        ours = int(file.read())
    found = run_one(backend, kin).result
    assert found["session"] == found["group"] == found["pid"]
    assert found["death"] == signal.SIGKILL
    assert found["oom"] == min(ours + 500, 1000)


def test_a_program_has_a_session_of_its_own_too(backend: BackendName) -> None:
    result = run_task(backend, Command(["sh", "-c", "cut -d' ' -f1,5,6 /proc/$$/stat; cat /proc/self/oom_score_adj"]))
    (pid, group, session), (score,) = (line.split() for line in result.result.stdout.decode().splitlines())
    assert pid == group == session
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        assert int(score) == min(int(file.read()) + 500, 1000)


def test_it_has_no_controlling_terminal(backend: BackendName) -> None:
    result = run_one(backend, os.open, "/dev/tty", os.O_RDWR)
    assert isinstance(result.exception, OSError)


# --- limits that both backends hold by setrlimit ---------------------------------------------------------


def test_the_limits_of_the_process(backend: BackendName) -> None:
    def limits() -> dict[str, tuple[int, int]]:
        names = ("NOFILE", "FSIZE", "CPU", "CORE")
        return {name: resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names}

    found = run_one(backend, limits, open_files=77, file_size=5000, cpu_seconds=2.5).result
    assert found == {"NOFILE": (77, 77), "FSIZE": (5000, 5000), "CPU": (3, 4), "CORE": (0, 0)}


def test_open_files_are_limited(backend: BackendName) -> None:
    def open_many() -> int:
        found = []
        try:
            while True:
                found.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            assert error.errno == 24
            return max(found)

    assert run_one(backend, open_many, open_files=50).result == 49


def test_a_file_that_grows_past_its_limit(backend: BackendName, tmp_path: Path) -> None:
    path = tmp_path / "grown"
    result = run_one(backend, path.write_bytes, bytes(5000), file_size=4096)
    assert result.outcome is Outcome.FAILED
    assert isinstance(result.exception, OSError)
    assert path.stat().st_size == 4096


def test_a_programs_file_that_grows_past_its_limit(backend: BackendName, tmp_path: Path) -> None:
    path = tmp_path / "grown"
    result = run_task(backend, Command(["head", "-c", "5000", "/dev/zero"], limits=Limits(file_size=4096)))
    assert result.success  # a pipe is no file
    argv = ["dd", "if=/dev/zero", f"of={path}", "bs=5000", "count=2", "status=none"]
    result = run_task(backend, Command(argv, limits=Limits(file_size=4096)))
    assert (result.outcome, result.exit_code) == (Outcome.CRASHED, -signal.SIGXFSZ)
    assert "a file grew to the limit of 4 KiB; raise --file-size" in result.detail
    assert path.stat().st_size == 4096


@pytest.mark.parametrize("size", [1, 100_000, 5_000_000])
def test_a_result_may_be_larger_than_the_file_size_limit(backend: BackendName, size: int) -> None:
    assert run_one(backend, os.urandom, size, file_size=1).result is not None
    assert run_one(backend, lambda: list(range(size // 5)), file_size=1).result == list(range(size // 5))


def test_no_core_is_dumped(backend: BackendName) -> None:
    source = f"""
import os, resource
from gwsandbox import run
soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
print(run(resource.getrlimit, (resource.RLIMIT_CORE,), backend={backend!r}).result)
"""
    with Program(source) as program:
        assert program.line() == "(0, 0)"


# --- a step of ours that fails ---------------------------------------------------------------------------


@pytest.mark.mount_namespace
def test_a_step_that_fails_is_reported_with_its_name_and_errno(tmp_path: Path) -> None:
    """The real thing: the supervisor's folder for pipes and devices is taken away below it."""
    source = """
import os, sys
from gwsandbox import ProcessManager, Task
from gwsandbox.guest import child
def broken(setup):
    os.open("/mnt/does/not/exist", os.O_RDONLY)
child._close_descriptors = broken
with ProcessManager(1, backend="rlimit") as manager:
    manager.queue_task(Task(abs, (-1,)))
(result,) = manager.task_results
print(result.outcome.name, result.success, result.exit_code, type(result.exception).__name__)
print(result.exception.step, result.exception.errno)
print(result.detail)
"""
    with Program(source) as program:
        assert program.line() == "SANDBOX_ERROR False 125 GuestSetupError"
        assert program.line() == "guest step 'close descriptors' failed 2"
        assert "No such file or directory" in program.line()


def test_a_caller_with_few_descriptors_left_gets_an_error_that_says_so(backend: BackendName) -> None:
    """None of its guests may start, but it gets an error for each, and nothing is left."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = max(int(name) for name in os.listdir("/proc/self/fd"))
    outcomes = []
    for spare in range(2, 14):
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_now + spare, limits[1]))
        try:
            outcomes.append(run(abs, (-1,), backend=backend).outcome)
        except (OSError, SandboxError) as error:
            assert "24" in str(error)  # EMFILE, with its number
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert outcomes[-1] is Outcome.SUCCEEDED
    assert set(outcomes) <= {Outcome.SUCCEEDED, Outcome.SANDBOX_ERROR}


def test_many_workers_under_a_low_soft_limit_of_descriptors(backend: BackendName) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        with ProcessManager(30, backend=backend) as manager:
            for _ in range(29):
                manager.queue_task(Command(["sleep", "1000"]))
            manager.queue_task(Task(resource.getrlimit, (resource.RLIMIT_NOFILE,)))
            first = next(manager.as_completed())
            manager.cancel()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert first.result == (64, limits[1]), first
    assert {result.outcome for result in manager.task_results} == {Outcome.CANCELLED}


def test_results_that_are_mapped_do_not_use_up_the_callers_descriptors(backend: BackendName) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, limits[1]))
    try:
        results = run_all(backend, [Task(mapped_value, (100_000,)) for _ in range(70)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert all(len(result.result) == 100_000 for result in results), results


def mapped_value(size: int) -> pickle.PickleBuffer:
    """What large arrays are pickled as, and that does not need them: out of band."""
    return pickle.PickleBuffer(bytearray(size))


def test_many_guests_one_after_the_other_leave_no_descriptor_in_the_supervisor(backend: BackendName) -> None:
    def count() -> int:
        return len(os.listdir(f"/proc/{os.getppid()}/fd"))

    with ProcessManager(2, backend=backend, limits=Limits(output=100, wall_seconds=60 * PACE)) as manager:
        manager.queue_tasks(Task(count) for _ in range(times(300, at_least=40)))
    counts = [result.result for result in manager.task_results]
    assert max(counts[len(counts) // 2 :]) <= max(counts[: len(counts) // 2]) + 1
