"""The descriptors that a guest finds: those of the caller where it may, the standard three, and none of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import BackendName, Program, run_all, run_one

from gwsandbox import Command, Limits, ProcessManager, Task, run


def open_descriptors() -> dict[int, str]:
    """In a guest: its descriptors but the one that lists them."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def test_a_call_has_the_callers_descriptors_and_its_result_and_no_other(backend: BackendName) -> None:
    reader, writer = os.pipe()
    try:
        callers = open_descriptors()
        with ProcessManager(3, backend=backend, limits=Limits(output=1000, memory="1GiB")) as manager:
            for _ in range(6):
                manager.queue_task(Task(open_descriptors))
        for result in manager.task_results:
            found = result.result
            assert found[0] == "/dev/null"
            assert found[reader] == callers[reader]
            others = {fd: what for fd, what in found.items() if fd not in {0, 1, 2} and callers.get(fd) != what}
            assert len(others) == 1
            assert "gwsandbox-result" in next(iter(others.values()))
    finally:
        os.close(reader)
        os.close(writer)


def count_descriptors(_argument: bytes) -> int:
    return len(open_descriptors())


def test_a_large_argument_leaves_no_descriptor_to_the_call(backend: BackendName) -> None:
    """One that is queued late comes as a descriptor."""
    with ProcessManager(1, backend=backend) as manager:
        manager.queue_tasks(Task(count_descriptors, (bytes(size),)) for size in (10, 10_000_000))
    small, large = (result.result for result in manager.task_results)
    assert small == large


def test_a_call_in_a_clean_interpreter_has_none_of_the_callers(backend: BackendName) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    try:
        found = run(open_descriptors, backend=backend, start_method="forkserver").result
    finally:
        os.close(reader)
        os.close(writer)
    assert found.pop(0) == "/dev/null"
    # libffi 3.5 keeps its own file open for its trampolines.
    others = [what for fd, what in found.items() if fd > 2 and "/libffi.so" not in what]
    assert len(others) == 1
    assert "gwsandbox-result" in others[0]


def test_a_second_managers_guests_do_not_hold_the_first_ones_link(backend: BackendName) -> None:
    with ProcessManager(1, backend=backend) as first, ProcessManager(1, backend=backend) as second:
        first.queue_task(Task(abs, (-1,)))
        first.queue_task(Task(abs, (-2,)))
        completed = first.as_completed()
        next(completed)
        before = open_descriptors()
        second.queue_task(Task(open_descriptors))
        found = next(second.as_completed()).result
        next(completed)
    sockets = {fd for fd, what in found.items() if what.startswith("socket:")}
    ours = {fd for fd in sockets if before.get(fd) == found[fd]}
    assert not ours


def list_descriptors_command() -> Command:
    program = "import os; print(*sorted(f'{n}={os.readlink(f\"/proc/self/fd/{n}\")}' for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')), sep='\\n')"
    return Command([sys.executable, "-c", program])


def test_a_program_has_the_standard_three_only(backend: BackendName) -> None:
    reader, writer = os.pipe()
    os.set_inheritable(reader, True)
    try:
        results = run_all(backend, [list_descriptors_command() for _ in range(3)])
    finally:
        os.close(reader)
        os.close(writer)
    for result in results:
        lines = result.result.stdout.decode().split()
        assert [line.partition("=")[0] for line in lines] == ["0", "1", "2"]
        assert lines[0] == "0=/dev/null"


def test_stdin_is_empty(backend: BackendName) -> None:
    assert run_one(backend, lambda: (os.read(0, 10), sys.stdin.read())).result == (b"", "")


def test_what_the_caller_had_read_ahead_of_stdin_is_not_the_guests(backend: BackendName) -> None:
    source = f"""
import sys
from gwsandbox import run
assert sys.stdin.readline() == "first\\n"
print(repr(run(lambda: sys.stdin.read(), backend={backend!r}).result), repr(sys.stdin.readline()), flush=True)
"""
    with Program(source) as program:
        program.say("first\nsecond\nthird")
        assert program.line() == r"'' 'second\n'"


def test_what_the_caller_had_buffered_is_written_once(backend: BackendName) -> None:
    source = f"""
from gwsandbox import ProcessManager, Task
print("before, without its end", end=" ")
with ProcessManager(1, backend={backend!r}) as manager:
    for n in range(4):
        manager.queue_task(Task(print, ("guest",), dict(end=" ")))
print("after")
"""
    with Program(source) as program:
        assert program.line() == "before, without its end " + "guest " * 4 + "after"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)], ids=repr)
def test_a_caller_without_standard_descriptors(backend: BackendName, closed: tuple[int, ...], tmp_path: Path) -> None:
    source = f"""
import os, sys
from gwsandbox import Command, ProcessManager, Task
for fd in {closed}:
    os.close(fd)
def speak():
    print("to stdout")
    sys.stderr.write("to stderr")
    return "value"
with ProcessManager(2, backend={backend!r}) as manager:
    manager.queue_task(Task(speak))
    manager.queue_task(Command(["sh", "-c", "echo out; echo err >&2; cat"]))
with open({str(tmp_path / "said")!r}, "w") as file:
    print(sorted([str(result.result) for result in manager.task_results]), file=file)
    print([result.detail for result in manager.task_results], file=file)
os._exit(0)
"""
    with Program(source, stderr=subprocess.DEVNULL) as program:
        assert program.wait() == 0
    said = (tmp_path / "said").read_text()
    assert "CommandOutput(stdout=b'out\\\\n', stderr=b'err\\\\n')" in said
    assert "'value'" in said
