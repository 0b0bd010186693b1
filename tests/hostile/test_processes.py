"""Tasks that leave processes behind, cannot be stopped, stop others, or burn what they may not."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

import pytest
import support
from support import PACE, BackendName, is_running, run_all, run_one, run_open, run_task, sleep_for_ever, times

from gwsandbox import Command, Hardening, Limits, Outcome, Task, TaskResult


def assert_timed_out(result: TaskResult) -> None:
    assert result.outcome is Outcome.TIMED_OUT, result
    assert result.timed_out
    assert not result.out_of_memory
    assert result.exit_code == -signal.SIGKILL
    assert isinstance(result.exception, TimeoutError)


# --- left behind -----------------------------------------------------------------------------------------


def daemonise() -> int:
    """Double fork with a session of its own, as daemons do; the daemon's pid."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(writer, str(os.getpid()).encode())
            sleep_for_ever()
        os._exit(0)
    os.wait()
    return int(os.read(reader, 20))


def test_a_daemon_is_dead_when_the_result_arrives(backend: BackendName) -> None:
    result = run_one(backend, daemonise)
    assert result.success, result
    assert not is_running(result.result)


def test_daemons_of_tasks_that_run_at_once(backend: BackendName) -> None:
    results = run_all(backend, [Task(daemonise) for _ in range(times(40))], workers=4)
    assert all(result.success for result in results), results
    assert not [result.result for result in results if is_running(result.result)]


def daemonise_and_sleep(path: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(str(daemonise()))
    sleep_for_ever()


def test_a_daemon_dies_with_a_task_that_timed_out(backend: BackendName, tmp_path: object) -> None:
    path = f"{tmp_path}/pid"
    assert_timed_out(run_one(backend, daemonise_and_sleep, path, wall_seconds=0.5 * PACE))
    with open(path, encoding="ascii") as file:
        assert not is_running(int(file.read()))


def test_a_background_process_that_holds_stdout_does_not_hold_the_result(backend: BackendName) -> None:
    result = run_task(backend, Command(["sh", "-c", "sleep 1000 & echo $!"]))
    assert result.success, result
    assert not is_running(int(result.result.stdout))


def burn_in_background() -> None:
    if os.fork() == 0:
        while True:
            pass
    began = time.monotonic()
    while time.monotonic() - began < 0.3 * PACE:  # lets the other one burn, and does not burn itself
        signal.sigtimedwait([], 0.05)


def test_what_burns_in_the_background_is_killed_and_its_cpu_time_counted(backend: BackendName) -> None:
    result = run_one(backend, burn_in_background)
    assert result.success, result
    usage = result.usage
    assert usage.cpu_user_seconds is not None
    assert usage.cpu_system_seconds is not None
    assert usage.cpu_user_seconds + usage.cpu_system_seconds > 0.05 * PACE


@pytest.mark.cgroup2
def test_a_fork_bomb_ends_at_its_limit() -> None:
    result = run_one("cgroup", support.fork_until_refused, pids=20, wall_seconds=60)
    assert result.success, result
    assert result.result == "refused"
    assert result.usage.pids_limit_hits
    assert result.usage.pids_peak == 20


def bomb_for_ever() -> None:
    while True:
        with contextlib.suppress(BlockingIOError):
            os.fork()


@pytest.mark.cgroup2
def test_a_fork_bomb_that_goes_on_ends_at_its_deadline() -> None:
    result = run_one("cgroup", bomb_for_ever, pids=6, wall_seconds=1.0 * PACE)
    assert_timed_out(result)
    assert result.usage.pids_limit_hits


# --- not to be stopped -----------------------------------------------------------------------------------


def ignore_everything() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while True:
        with contextlib.suppress(InterruptedError):
            signal.pause()


def test_a_sleeper_that_ignores_every_signal(backend: BackendName) -> None:
    assert_timed_out(run_one(backend, ignore_everything, wall_seconds=0.3 * PACE))


def stop_itself() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_task_that_stops_itself_meets_its_deadline(backend: BackendName) -> None:
    assert_timed_out(run_one(backend, stop_itself, wall_seconds=0.3 * PACE))


def signal_parent(number: int) -> str:
    os.kill(os.getppid(), number)
    return "signalled"


def test_a_task_that_stops_its_parent_is_supervised_all_the_same(backend: BackendName) -> None:
    tasks = [Task(signal_parent, (signal.SIGSTOP,)), *(Task(pow, (2, n)) for n in range(5))]
    results = run_all(backend, tasks, hardening=Hardening.off())
    assert [result.outcome for result in results] == [Outcome.SUCCEEDED] * 6, results


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_task_that_signals_its_parent_changes_nothing(backend: BackendName, number: int) -> None:
    assert run_open(backend, signal_parent, number).success


def test_a_task_that_kills_its_parent_gets_nothing_but_an_error(backend: BackendName) -> None:
    result = run_open(backend, signal_parent, signal.SIGKILL)
    assert result.outcome is Outcome.SANDBOX_ERROR, result
    assert "supervisor" in result.detail


def frozen_group() -> None:
    with open("/proc/self/cgroup", encoding="ascii") as file:
        group = "/sys/fs/cgroup" + file.read().strip()[3:] + "/frozen"
    os.mkdir(group)
    pid = os.fork()
    if pid == 0:
        sleep_for_ever()
    for name, value in (("cgroup.procs", str(pid)), ("cgroup.freeze", "1")):
        with open(f"{group}/{name}", "w", encoding="ascii") as file:
            file.write(value)
    os.chmod(group, 0)
    sleep_for_ever()


@pytest.mark.cgroup2
def test_a_frozen_group_without_permissions_dies_too() -> None:
    assert_timed_out(run_open("cgroup", frozen_group, wall_seconds=0.5 * PACE))


# --- CPU time --------------------------------------------------------------------------------------------


def burn_in_two_processes() -> None:
    os.fork()
    while True:
        pass


def test_cpu_time_of_all_processes_counts(backend: BackendName) -> None:
    result = run_one(backend, burn_in_two_processes, cpu_seconds=1, wall_seconds=60 * PACE)
    assert result.outcome is Outcome.CPU_TIME_EXCEEDED, result
    assert not result.timed_out
    assert result.usage.cpu_user_seconds is not None
    assert result.usage.cpu_system_seconds is not None
    assert 0.9 <= result.usage.cpu_user_seconds + result.usage.cpu_system_seconds < 2


# --- endings ---------------------------------------------------------------------------------------------

_FATAL = {"SEGV", "ABRT", "BUS", "FPE", "ILL", "SYS", "TRAP", "XCPU", "XFSZ"}
_OTHERS = {"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "PIPE", "ALRM", "TERM", "VTALRM", "PROF", "IO", "PWR"}


@pytest.mark.parametrize("name", sorted(_FATAL | _OTHERS))
def test_every_fatal_signal(backend: BackendName, name: str) -> None:
    number = signal.Signals[f"SIG{name}"]
    result = run_task(backend, Command([sys.executable, "-c", f"import os; os.kill(os.getpid(), {int(number)})"]))
    if name in {"PIPE", "XFSZ", "INT"}:  # the interpreter handles or ignores these
        result = run_task(backend, Command(["sh", "-c", f"kill -{name} $$"]))
    assert result.exit_code == -number
    assert result.outcome is (Outcome.CRASHED if name in _FATAL or name == "XFSZ" else Outcome.KILLED), result
    assert not result.out_of_memory
    assert not result.timed_out
    assert f"SIG{name}" in result.detail


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_exit_codes_of_programs(backend: BackendName, code: int) -> None:
    result = run_task(backend, Command(["sh", "-c", f"exit {code}"]))
    assert result.exit_code == code
    assert result.outcome is (Outcome.SUCCEEDED if code == 0 else Outcome.FAILED)
    assert result.success is (code == 0)


def end_near(seconds: float) -> str:
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        pass
    return "done"


def test_one_coherent_verdict_at_the_very_deadline(backend: BackendName) -> None:
    limit = 0.02 * PACE
    spread = [limit * (0.9 + 0.2 * n / 20) for n in range(20)]
    tasks = [Task(end_near, (spread[n % 20],)) for n in range(times(1000))]
    outcomes = set()
    for result in run_all(backend, tasks, workers=2, limits=Limits(wall_seconds=limit)):
        outcomes.add(result.outcome)
        if result.success:
            # The deadline may come between the record and the end: what was returned stands.
            assert (result.result, result.exception) == ("done", None)
            assert result.exit_code in {0, -signal.SIGKILL}
            assert not result.timed_out
        else:
            assert result.result is None
            assert_timed_out(result)
    assert outcomes <= {Outcome.SUCCEEDED, Outcome.TIMED_OUT}


# --- descriptors -----------------------------------------------------------------------------------------


def close_everything() -> None:
    os.closerange(0, 4096)


def test_a_task_that_closes_all_descriptors_has_failed(backend: BackendName) -> None:
    result = run_one(backend, close_everything)
    assert result.outcome is Outcome.FAILED, result
    assert "what it gave is lost" in result.detail


def write_junk_everywhere() -> str:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith("/memfd:"):  # the others are the caller's own
                os.write(int(name), b"junk" * 100)
    return "value"


def test_a_task_that_writes_junk_to_each_descriptor(backend: BackendName) -> None:
    result = run_one(backend, write_junk_everywhere)
    assert result.outcome is Outcome.FAILED, result
    assert "what it gave is lost" in result.detail


def test_a_flood_is_cut_at_its_limit(backend: BackendName) -> None:
    result = run_task(backend, Command(["sh", "-c", "yes; yes >&2"], limits=Limits(output=100_000)))
    assert result.outcome is Outcome.OUTPUT_EXCEEDED, result
    assert len(result.result.stdout) + len(result.result.stderr) == 100_000
