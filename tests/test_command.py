"""``Command``: what a program is given, what it gives back, and why it could not be executed."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
from support import MIB, PACE, SLOW, BackendName, Program, run_all, run_task

from gwsandbox import (
    Command,
    CommandOutput,
    CpuTimeExceeded,
    GuestFailed,
    Limits,
    Outcome,
    OutputExceeded,
    ProcessManager,
)


def sh(script: str, **limits: object) -> Command:
    return Command(["sh", "-c", script], limits=Limits(**limits))  # type: ignore[arg-type]


def test_output_and_exit_code(backend: BackendName) -> None:
    result = run_task(backend, sh("echo out; echo err >&2"))
    assert result.success
    assert (result.outcome, result.exit_code, result.exception) == (Outcome.SUCCEEDED, 0, None)
    assert result.result == CommandOutput(b"out\n", b"err\n")


def test_failure_keeps_the_output(backend: BackendName) -> None:
    result = run_task(backend, sh("echo out; echo err >&2; exit 3"))
    assert (result.outcome, result.exit_code, result.success) == (Outcome.FAILED, 3, False)
    assert isinstance(result.exception, GuestFailed)
    assert str(result.exception) == "exit code 3"
    assert result.result == CommandOutput(b"out\n", b"err\n")


@pytest.mark.parametrize("size", [0, 1, 65536, 5 * MIB])
def test_stdin_arrives_whole(backend: BackendName, size: int) -> None:
    data = os.urandom(size)
    assert run_task(backend, Command(["cat"], stdin=data)).result.stdout == data


def test_stdin_that_is_not_read(backend: BackendName) -> None:
    assert run_task(backend, Command(["true"], stdin=bytes(5 * MIB))).success


def test_stdin_travels_with_a_task_that_is_queued_late(backend: BackendName) -> None:
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_tasks(Command(["wc", "-c"], stdin=bytes(size)) for size in (3, 300_000))
    assert [int(result.result.stdout) for result in manager.task_results] == [3, 300_000]


def test_folder_and_environment(backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROM_THE_CALLER", "yes")
    own, given, empty = run_all(
        backend,
        [
            Command(["sh", "-c", "pwd; echo $FROM_THE_CALLER"]),
            Command(
                ["sh", "-c", "pwd; echo $FROM_THE_CALLER$GIVEN"],
                cwd=tmp_path,
                env={"GIVEN": "x y", "PATH": os.environ["PATH"]},
            ),
            Command(["/usr/bin/env"], env={}),
        ],
        workers=1,
    )
    assert own.result.stdout.decode().split("\n")[:2] == [os.getcwd(), "yes"]
    assert given.result.stdout.decode() == f"{tmp_path}\nx y\n"
    assert empty.result.stdout == b""


def test_the_program_is_looked_up_in_the_path_that_it_is_given(backend: BackendName, tmp_path: Path) -> None:
    program = tmp_path / "only-here"
    program.write_text("#!/bin/sh\necho found\n")
    program.chmod(0o755)
    found, not_found = run_all(
        backend, [Command(["only-here"], env={"PATH": str(tmp_path)}), Command(["only-here"])], workers=1
    )
    assert found.result.stdout == b"found\n"
    assert not_found.exit_code == 127


def test_arguments_are_passed_as_they_are(backend: BackendName) -> None:
    words = ["a b", "", "*", "$HOME", "-n", "ä€", os.fsdecode(b"\xff")]
    result = run_task(
        backend,
        Command(
            [sys.executable, "-c", "import sys, os; os.write(1, b'\\0'.join(map(os.fsencode, sys.argv[1:])))", *words]
        ),
    )
    assert result.result.stdout == b"\0".join(map(os.fsencode, words))


@pytest.mark.parametrize("name", ["/nonexistent/program", "surely-no-such-program"])
def test_not_found(backend: BackendName, name: str) -> None:
    result = run_task(backend, Command([name]))
    assert (result.outcome, result.exit_code, result.success) == (Outcome.FAILED, 127, False)
    assert isinstance(result.exception, FileNotFoundError)
    assert result.exception.filename == name
    assert "could not be executed" in result.detail
    assert name in result.detail
    assert result.result == CommandOutput(b"", b"")


def test_not_executable(backend: BackendName, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("echo never")
    plain.chmod(0o644)
    folder, file = run_all(backend, [Command([tmp_path]), Command([plain])], workers=1)
    for result, path in ((folder, tmp_path), (file, plain)):
        assert (result.outcome, result.exit_code) == (Outcome.FAILED, 126)
        assert isinstance(result.exception, PermissionError)
        assert str(path) in result.detail


def test_no_program_but_junk(backend: BackendName, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"\0\1\2")
    junk.chmod(0o755)
    result = run_task(backend, Command([junk]))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 126)
    assert "Exec format error" in result.detail


def test_an_interpreter_that_does_not_exist(backend: BackendName, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    result = run_task(backend, Command([script]))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 127)
    assert str(script) in result.detail
    assert "/nonexistent/interpreter" in result.detail  # or who reads it would look for the script, which is there


def test_a_folder_that_does_not_exist(backend: BackendName) -> None:
    result = run_task(backend, Command(["true"], cwd="/nonexistent/folder"))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 127)
    assert isinstance(result.exception, FileNotFoundError)
    assert result.exception.filename == "/nonexistent/folder"


def test_an_argument_list_that_is_too_long(backend: BackendName) -> None:
    result = run_task(backend, Command(["true", "x" * 3 * MIB]))
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 126)
    assert "Argument list too long" in result.detail


# --- output ----------------------------------------------------------------------------------------------


def test_much_output_arrives_whole(backend: BackendName) -> None:
    size = 20 * MIB
    result = run_task(backend, sh(f"head -c {size} /dev/zero; head -c {size} /dev/zero >&2"))
    assert (len(result.result.stdout), len(result.result.stderr)) == (size, size)


def test_output_at_its_limit_is_no_excess(backend: BackendName) -> None:
    result = run_task(backend, sh("printf 12345; printf 67890 >&2", output=10))
    assert result.success, result
    assert result.result == CommandOutput(b"12345", b"67890")


def test_one_byte_past_the_limit_is(backend: BackendName) -> None:
    result = run_task(backend, sh("printf 12345678901", output=10))
    assert (result.outcome, result.success) == (Outcome.OUTPUT_EXCEEDED, False)
    assert isinstance(result.exception, OutputExceeded)
    assert result.result == CommandOutput(b"1234567890", b"")
    assert (
        result.detail
        == "more than 10 B written to stdout and stderr; raise --output-limit (output) if that much is meant"
    )


@pytest.mark.parametrize("limit", [0, 10 * MIB])
def test_a_flood_does_not_hold_up_a_deadline(backend: BackendName, limit: int) -> None:
    """Natively a flooding guest is faster than who reads it; the loop must look at the clock all the same."""
    flood = sh("cat /dev/zero & cat /dev/zero >&2", output=limit * 1000, wall_seconds=0.3 * PACE)
    other = Command(["sleep", "1000"], limits=Limits(wall_seconds=0.3 * PACE))
    for result in run_all(backend, [flood, other]):
        assert result.outcome in {Outcome.TIMED_OUT, Outcome.OUTPUT_EXCEEDED}
        assert result.elapsed_time is not None
        assert result.elapsed_time < 0.3 * PACE + 1.0 * SLOW


def test_a_program_that_closes_its_output(backend: BackendName) -> None:
    result = run_task(backend, sh("exec >&- 2>&-; exit 5"))
    assert (result.exit_code, result.result) == (5, CommandOutput(b"", b""))


def test_what_a_call_prints_goes_to_the_callers_own_streams(backend: BackendName) -> None:
    source = f"""
import os, sys
from gwsandbox import Limits, Task, run
def speak():
    print("printed")
    os.write(1, b"written\\n")
run(speak, backend={backend!r})
run(speak, backend={backend!r}, limits=Limits(output=1000))
result = run(speak, backend={backend!r}, limits=Limits(output=10))
os.write(1, b"\\n" + result.outcome.name.encode() + b"\\n")
"""
    with Program(source) as program:
        lines = [program.line() for _ in range(7)]
    assert [sorted(lines[:2]), sorted(lines[2:4])] == [["printed", "written"]] * 2
    assert len("\n".join(lines[4:6])) == 10
    assert lines[6] == "OUTPUT_EXCEEDED"


def test_a_limit_on_output_kills_who_passes_it(backend: BackendName) -> None:
    result = run_task(
        backend, Command([sys.executable, "-c", "while True: print('x' * 100)"], limits=Limits(output=5000))
    )
    assert (result.outcome, result.exit_code) == (Outcome.OUTPUT_EXCEEDED, -signal.SIGKILL)
    assert len(result.result.stdout) == 5000


# --- limits ----------------------------------------------------------------------------------------------


def test_a_programs_deadline(backend: BackendName) -> None:
    result = run_task(backend, sh("echo early; sleep 1000", wall_seconds=0.3 * PACE))
    assert (result.outcome, result.timed_out, result.exit_code) == (Outcome.TIMED_OUT, True, -9)
    assert isinstance(result.exception, TimeoutError)
    assert result.result.stdout == b"early\n"


def test_a_programs_cpu_time(backend: BackendName) -> None:
    result = run_task(backend, sh("while :; do :; done", cpu_seconds=0.2))
    assert (result.outcome, result.timed_out) == (Outcome.CPU_TIME_EXCEEDED, False)
    assert isinstance(result.exception, CpuTimeExceeded)
    assert result.usage.cpu_user_seconds is not None
    assert result.usage.cpu_system_seconds is not None
    assert 0.19 <= result.usage.cpu_user_seconds + result.usage.cpu_system_seconds < 0.2 + 0.3 * SLOW


def test_a_program_that_ignores_sigxcpu_is_ended_all_the_same(backend: BackendName) -> None:
    result = run_task(backend, sh("trap '' XCPU; while :; do :; done", cpu_seconds=0.3))
    assert result.outcome is Outcome.CPU_TIME_EXCEEDED


@pytest.mark.cgroup2
def test_a_program_out_of_memory() -> None:
    hog = Command([sys.executable, "-c", "x = bytearray(10**9)"], limits=Limits(memory=64 * MIB))
    result = run_task("cgroup", hog)
    assert (result.outcome, result.out_of_memory, result.exit_code) == (Outcome.OUT_OF_MEMORY, True, -9)
    assert isinstance(result.exception, MemoryError)
    assert isinstance(result.result, CommandOutput)


def test_a_program_out_of_memory_without_cgroups() -> None:
    """It is refused memory, or found past its limit: which comes first cannot be said, but not a success."""
    hog = Command([sys.executable, "-c", "x = bytearray(10**9)"], limits=Limits(memory=64 * MIB))
    result = run_task("rlimit", hog)
    assert result.outcome in {Outcome.OUT_OF_MEMORY, Outcome.FAILED}
    if result.outcome is Outcome.FAILED:
        assert b"MemoryError" in result.result.stderr
    assert "memory" in result.enforcement.degraded


def test_a_script_without_a_first_line_is_run_by_sh(backend: BackendName, tmp_path: Path) -> None:
    """As execvp(3) does; and a file that is no text is refused."""
    script = tmp_path / "script"
    script.write_text('echo "ran $1 in $COLOUR"\n')
    script.chmod(0o755)
    env = {"PATH": f"/nonexistent:{tmp_path}", "COLOUR": "blue"}
    for name in (str(script), "script"):
        assert run_task(backend, Command([name, "x"], env=env)).result.stdout == b"ran x in blue\n"
    script.write_bytes(b"\x7fELF\0 of another machine")
    result = run_task(backend, Command([str(script)]))
    assert isinstance(result.exception, OSError)
    assert (result.exit_code, result.exception.errno) == (126, errno.ENOEXEC)
