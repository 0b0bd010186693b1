"""What a guest finds around it: descriptors, signals, session, streams, limits; and a step of ours that fails."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import pickle
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support import PACE, SLOW, BackendName, Program, Watched, parent, run_all, run_one, run_task, times

from gwsandbox import Command, Limits, Outcome, ProcessManager, SandboxError, Task, run

PR_GET_PDEATHSIG = 2


def open_descriptors() -> dict[int, str]:
    """In a guest: its descriptors but the one that lists them."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def status() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8") as file:
        return {key: value.strip() for key, _, value in (line.partition(":") for line in file)}


def death_signal() -> int:
    number = ctypes.c_int(-1)
    assert ctypes.CDLL(None).prctl(PR_GET_PDEATHSIG, ctypes.byref(number)) == 0
    return number.value


# --- descriptors -----------------------------------------------------------------------------------------


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


# --- what a task may do ----------------------------------------------------------------------------------


def test_guests_draw_different_random_numbers(backend: BackendName) -> None:
    random.seed(1)
    results = run_all(backend, [Task(random.random) for _ in range(3)])
    assert len({result.result for result in results}) == 3


def use_threads() -> int:
    found: list[int] = []
    threads = [threading.Thread(target=found.append, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(found)


def use_asyncio() -> str:
    async def main() -> str:
        process = await asyncio.create_subprocess_exec("echo", "hello", stdout=subprocess.PIPE)
        output, _ = await process.communicate()
        await asyncio.sleep(0)
        return output.decode()

    return asyncio.run(main())


def _double(n: int) -> int:
    return 2 * n


def use_multiprocessing() -> list[int]:
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        return pool.map(_double, range(5))


def use_a_queue() -> int:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=queue.put, args=(7,))
    process.start()
    value: int = queue.get()
    process.join()
    return value


def use_subprocess() -> str:
    return subprocess.run(["sh", "-c", "echo $((6 * 7))"], capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize(
    ("func", "expected"),
    [
        (use_threads, 10),
        (use_asyncio, "hello\n"),
        pytest.param(
            use_multiprocessing, [0, 2, 4, 6, 8], marks=pytest.mark.filterwarnings("ignore::DeprecationWarning")
        ),
        (use_a_queue, 7),
        (use_subprocess, "42\n"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_task_may_use_threads_and_processes(backend: BackendName, func: Any, expected: object) -> None:
    result = run_one(backend, func)
    assert result.result == expected, result


def test_threads_that_the_function_left_are_waited_for(backend: BackendName) -> None:
    reader, writer = os.pipe()
    go = threading.Event()

    def leave_a_thread() -> str:
        def work() -> None:
            go.wait()
            os.write(writer, b"thread done")

        threading.Thread(target=work).start()
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
        go.set()
        return "returned"

    assert run_one(backend, leave_a_thread).result == "returned"
    assert os.read(reader, 100) == b"thread done"
    os.close(reader)
    os.close(writer)


def test_the_callers_own_multiprocessing_children_are_left_alone(backend: BackendName) -> None:
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe()
    process = context.Process(target=reader.recv, daemon=True)
    process.start()
    assert run_one(backend, use_a_queue).result == 7
    assert process.is_alive()
    writer.send(1)
    process.join()
    process.close()
    reader.close()
    writer.close()


def test_garbage_is_collected_if_the_caller_collects_it(backend: BackendName) -> None:
    import gc

    assert run_one(backend, gc.isenabled).result is True
    gc.disable()
    try:
        assert run_one(backend, gc.isenabled).result is False
    finally:
        gc.enable()


def test_folder_and_environment_are_the_callers(
    backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_NAME", "some value")
    for start_method in ("fork", "forkserver"):
        result = run(_folder_and_environment, backend=backend, start_method=start_method)  # type: ignore[arg-type]
        assert result.result == (str(tmp_path), "some value")


def _folder_and_environment() -> tuple[str, str]:
    return os.getcwd(), os.environ["SOME_NAME"]


# --- a clean interpreter ---------------------------------------------------------------------------------


def test_forkserver_takes_lambdas_closures_and_functions_of_main(backend: BackendName) -> None:
    source = f"""
import sys, threading
from gwsandbox import ProcessManager, Task, run
GLOBAL = 5
def of_main(n): return n + GLOBAL
class Point:
    def __init__(self, x): self.x = x
def make_point(x): return Point(x)
hold = threading.Event()
threading.Thread(target=hold.wait).start()
local = 7
with ProcessManager(2, backend={backend!r}, start_method="forkserver") as manager:
    manager.queue_task(Task(of_main, (1,)))
    manager.queue_task(Task(lambda: local))
    manager.queue_task(Task(lambda: threading.active_count()))
    manager.queue_task(Task(sys.getrecursionlimit))
print(sorted(r.result for r in manager.task_results), flush=True)
print(run(make_point, (3,), backend={backend!r}, start_method="forkserver").result.x, flush=True)
hold.set()
"""
    with Program(source) as program:
        assert program.line() == "[1, 6, 7, 1000]"
        assert program.line() == "3"
        assert program.wait() == 0


def test_forkserver_fails_what_cannot_travel_and_goes_on(backend: BackendName) -> None:
    tasks = [Task(id, (threading.Lock(),)), Task(abs, (-3,))]
    results = run_all(backend, tasks, start_method="forkserver")
    by_outcome = {result.outcome: result for result in results}
    assert "_thread.lock" in by_outcome[Outcome.FAILED].detail
    assert by_outcome[Outcome.SUCCEEDED].result == 3


def test_forkserver_does_not_change_a_programs_environment(
    backend: BackendName, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    result = run(Command(["env"]), backend=backend, start_method="forkserver")
    names = {line.partition(b"=")[0] for line in result.result.stdout.splitlines()}
    assert b"PYTHONPATH" not in names


def test_forkserver_imports_what_the_caller_could(
    backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("def answer(): return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from only_here import answer  # type: ignore[import-not-found]

    try:
        assert run(answer, backend=backend, start_method="forkserver").result == 42
    finally:
        del sys.modules["only_here"]


TELLS_ITS_IMPORTER = """
import os
IMPORTER, PYTHON_PATH = os.getpid(), os.environ.get("PYTHONPATH")
def tell(): return IMPORTER, os.getpid(), PYTHON_PATH
"""


def test_forkserver_imports_once_what_is_to_be_preloaded(
    backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "folder").mkdir()
    for name in ("once", "anew"):
        (tmp_path / "folder" / f"{name}.py").write_text(TELLS_ITS_IMPORTER)
    monkeypatch.syspath_prepend(str(tmp_path))
    from folder import anew, once  # type: ignore[import-not-found]

    try:
        preload = iter(["email.message", "folder.once"])
        with ProcessManager(2, backend=backend, start_method="forkserver", preload=preload) as manager:
            manager.queue_tasks(Task(module.tell) for module in (once, anew, once, anew))
        told: dict[bool, list[Any]] = {True: [], False: []}
        for result in manager.task_results:
            told[result.task.func is once.tell].append(result.result)  # type: ignore[union-attr]
    finally:
        for name in ("folder", "folder.once", "folder.anew"):
            del sys.modules[name]
    (importer, guest, path), (same_importer, other_guest, _) = told[True]
    assert importer == same_importer
    assert len({importer, guest, other_guest, os.getpid()}) == 4
    assert path is None, "the interpreter's own PYTHONPATH shows to what it imports"
    assert all(importer == guest for importer, guest, _ in told[False])


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module' ('broken_module')"),
        ("raise SystemExit(3)", "SystemExit: 3 ('broken_module')"),
        ("def", "SyntaxError: invalid syntax ('broken_module')"),
        ("import os; os._exit(0)", "the interpreter ended meanwhile"),
        ("import os; os.kill(os.getpid(), 9)", "the interpreter ended meanwhile"),
    ],
)
def test_what_cannot_be_preloaded_is_said_at_once(
    backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, text: str
) -> None:
    (tmp_path / "broken_module.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    manager = ProcessManager(1, backend=backend, start_method="forkserver", preload=["json", "broken_module"])
    manager.queue_task(Task(abs, (-3,)))
    with pytest.raises(SandboxError) as caught:
        manager.start_tasks()
    remedy = "see that the caller could import it, or leave it out of preload"
    assert str(caught.value) == f"preload modules: {text}; {remedy}"
    notes = getattr(caught.value, "__notes__", [])
    assert "".join(notes).count("broken_module.py") == (0 if "ended" in text else 1)
    manager.preload = ()
    manager.start_tasks()
    assert [result.result for result in manager.task_results] == [3], "the task was not lost"


def test_what_preloaded_lives_on_without_the_thread_that_started_it(backend: BackendName) -> None:
    """A death signal is for the death of the thread that forked, and is for the imports only."""
    with ProcessManager(1, backend=backend, start_method="forkserver", preload=["json"]) as manager:
        manager.queue_tasks(Task(lambda: parent(os.getppid())) for _ in range(20))
        completed = manager.as_completed()
        keepers = []
        thread = threading.Thread(target=lambda: keepers.append(next(completed).result))
        thread.start()
        thread.join()
        keepers.extend(result.result for result in completed)
    assert len(keepers) == 20
    assert len(set(keepers)) == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_preload_that_never_ends_can_be_ended(backend: BackendName, tmp_path: Path, number: int) -> None:
    (tmp_path / "endless_module.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(1e6)")
    source = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
from gwsandbox import ProcessManager, Task
with ProcessManager(1, backend={backend!r}, start_method="forkserver", preload=["endless_module"]) as manager:
    manager.queue_task(Task(abs, (-3,)))
"""
    with Program(source, stderr=subprocess.DEVNULL) as program:
        (importer,) = program.numbers()
        with Watched(importer) as watched:
            program.process.send_signal(number)
            assert program.wait() in {1, 130, -number}
            assert watched.living_after(1.0 * SLOW) == set()


def test_we_load_nothing_that_every_fork_pays_for(backend: BackendName) -> None:
    """``threading`` runs Python code in every child of a fork: half as much again as the fork itself."""
    source = f"""
import ctypes, dataclasses, pickle, signal, socket, sys, traceback, typing  # Python 3.14's own load it
def loaded():
    return "threading" in sys.modules
before = loaded()
from gwsandbox import ProcessManager, Task
with ProcessManager(1, backend="{backend}") as manager:
    manager.queue_task(Task(loaded))
print(manager.task_results[0].result == loaded() == before)
"""
    with Program(source) as program:
        assert program.line() == "True"


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
