"""A result in a notebook and by rich, and the bar beside results."""

from __future__ import annotations

import io
import sys
import threading

import pytest
from rich.console import Console
from support import run_one

from gwsandbox import Command, Limits, Outcome, ProcessManager, TaskResult, Usage, progress, run

EVIL = "<script>alert(1)</script>\x1b[2J[bold]"


def failed() -> TaskResult:
    usage = Usage(memory_peak_bytes=50 << 20, sources={"memory_peak_bytes": "memory.peak"})
    task = Command(["convert", EVIL])
    return TaskResult(task, success=False, outcome=Outcome.CRASHED, detail=EVIL, exit_code=-11, usage=usage)


def test_a_notebook_shows_a_table_in_which_nothing_is_markup() -> None:
    shown = failed()._repr_html_()
    assert "<script>" not in shown
    assert "\x1b" not in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\x1b[2J[bold]" in shown
    for text in ("CRASHED", "50 MiB (memory.peak)", "-11"):
        assert text in shown


def test_rich_shows_a_panel() -> None:
    text = io.StringIO()
    Console(file=text, width=100).print(failed())
    shown = text.getvalue()
    assert "TaskResult" in shown
    assert "[bold]" in shown  # no markup of rich either
    assert "\x1b" not in shown
    assert "CRASHED" in shown


def test_a_result_of_a_real_task() -> None:
    result = run_one("rlimit", sorted, [3, 1, 2], wall_seconds=60)
    shown = result._repr_html_()
    for text in ("sorted", "SUCCEEDED", "[1, 2, 3]", "rlimit: wall_seconds by deadline + SIGKILL"):
        assert text in shown
    assert "not fully" in run(Command(["true"]), limits=Limits(memory="1GiB"), backend="rlimit")._repr_html_()


@pytest.fixture(params=["tqdm.auto", "rich.progress", "none"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One library alone that can be imported."""
    for name in ("tqdm.auto", "rich.progress"):
        if name != request.param:
            monkeypatch.setitem(sys.modules, name, None)
    return str(request.param)


def test_progress_yields_everything_and_starts_no_thread(library: str, capfd: pytest.CaptureFixture[str]) -> None:
    threads = set(threading.enumerate())
    found = []
    with ProcessManager(2, backend="rlimit") as manager:
        manager.queue_tasks(Command(["sh", "-c", f"exit {number % 2}"]) for number in range(4))
        for result in progress(manager.as_completed(), total=4):
            found.append(result.success)
            assert set(threading.enumerate()) == threads
    assert sorted(found) == [False, False, True, True]
    shown = "".join(capfd.readouterr())
    if library == "none":
        assert shown == ""
    else:
        assert ("4/4" if library == "tqdm.auto" else "100%") in shown
        assert ("failed=2" if library == "tqdm.auto" else "2 failed") in shown


def test_progress_that_is_left_early_loses_nothing(library: str) -> None:
    assert library
    with ProcessManager(1, backend="rlimit") as manager:
        for number in range(3):
            manager.queue_task(Command(["sh", "-c", f"exit {number}"]))
        for _ in progress(manager.as_completed()):
            break
    assert len(manager.task_results) == 2
