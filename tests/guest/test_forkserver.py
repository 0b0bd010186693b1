"""Guests of a clean interpreter: what reaches them of the caller, what is imported once, and what does not come along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from support import SLOW, BackendName, Program, Watched, parent, run_all

from gwsandbox import Command, Outcome, ProcessManager, SandboxError, Task, run


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


SAYS_ITS_IMPORTER = """
import os
IMPORTER, PYTHON_PATH = os.getpid(), os.environ.get("PYTHONPATH")
def say(): return IMPORTER, os.getpid(), PYTHON_PATH
"""


def test_forkserver_imports_once_what_is_to_be_preloaded(
    backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    (tmp_path / "folder").mkdir()
    for name in ("once", "again"):
        (tmp_path / "folder" / f"{name}.py").write_text(SAYS_ITS_IMPORTER)
    monkeypatch.syspath_prepend(str(tmp_path))
    from folder import again, once  # type: ignore[import-not-found]

    try:
        preload = iter(["email.message", "folder.once"])
        with ProcessManager(2, backend=backend, start_method="forkserver", preload=preload) as manager:
            manager.queue_tasks(Task(module.say) for module in (once, again, once, again))
        found: dict[bool, list[Any]] = {True: [], False: []}
        for result in manager.task_results:
            found[result.task.func is once.say].append(result.result)  # type: ignore[union-attr]
    finally:
        for name in ("folder", "folder.once", "folder.again"):
            del sys.modules[name]
    (importer, guest, path), (same_importer, other_guest, _) = found[True]
    assert importer == same_importer
    assert len({importer, guest, other_guest, os.getpid()}) == 4
    assert path is None, "the interpreter's own PYTHONPATH shows to what it imports"
    assert all(importer == guest for importer, guest, _ in found[False])


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
