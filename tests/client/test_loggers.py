"""A caller forked beside threads that log: its guests may log too, and the result of one that waits for a lock says why."""

from __future__ import annotations

import logging
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import PACE, BackendName, Program

from gwsandbox import Limits, Outcome, run
from gwsandbox.client.loggers import fork_beside_loggers


@pytest.fixture
def log(tmp_path: Path) -> Iterator[logging.Logger]:
    """A logger that three threads write to a file with, all the time."""
    logger = logging.getLogger("beside")
    handler = logging.FileHandler(tmp_path / "log")
    logger.addHandler(handler)
    logger.propagate = False
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            logger.warning("x" * 100)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    yield logger
    stop.set()
    for thread in threads:
        thread.join()
    logger.removeHandler(handler)
    handler.close()


def test_guests_may_log_where_the_callers_threads_do(backend: BackendName, log: logging.Logger) -> None:
    outcomes = [
        run(log.warning, ("in a guest",), backend=backend, limits=Limits(wall_seconds=10 * PACE)).outcome
        for _ in range(15)
    ]
    assert set(outcomes) == {Outcome.SUCCEEDED}


def test_locks_are_free_again_and_one_that_stays_taken_is_not_waited_for() -> None:
    class Stuck(logging.NullHandler):
        def createLock(self) -> None:
            self.lock = threading.RLock()

    stuck, other = Stuck(), logging.StreamHandler()
    taken, go = threading.Event(), threading.Event()

    def hold() -> None:
        with stuck.lock:  # type: ignore[union-attr]
            taken.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    seen = []
    fork_beside_loggers(lambda: seen.append(is_free(other.lock)))
    assert seen == [False]
    assert is_free(other.lock)
    assert is_free(logging._lock)  # type: ignore[attr-defined]
    go.set()
    thread.join()
    with pytest.raises(OSError, match="no fork"):
        fork_beside_loggers(no_fork)
    assert is_free(other.lock)


def no_fork() -> None:
    raise OSError("no fork")


def is_free(lock: threading.RLock | None) -> bool:
    """Asked by another thread, as one that holds it may take it again."""
    assert lock is not None
    found: list[bool] = []

    def ask() -> None:
        found.append(lock.acquire(blocking=False))
        if found[0]:
            lock.release()

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return found[0]


def test_a_lock_that_a_thread_of_the_caller_held_is_named_where_the_deadline_comes(backend: BackendName) -> None:
    source = f"""
import threading, time
from gwsandbox import Limits, run
held, hold = threading.Lock(), threading.Event()
thread = threading.Thread(target=lambda: (held.acquire(), hold.wait()))
thread.start()
while not held.locked():
    pass
limits = Limits(wall_seconds={0.5 * PACE})
print(run(held.acquire, backend={backend!r}, limits=limits).detail, flush=True)
print(run(time.sleep, (3600,), backend={backend!r}, limits=limits, start_method="forkserver").detail, flush=True)
hold.set()
thread.join()
print(run(time.sleep, (3600,), backend={backend!r}, limits=limits).detail, flush=True)
"""
    with Program(source, stderr=subprocess.DEVNULL) as program:
        reached = (
            f"wall-clock limit of {0.5 * PACE:g} s reached; raise --timeout (wall_seconds) if the work needs longer"
        )
        assert program.line() == (
            f"{reached}; perhaps it waited for a lock: the caller was forked beside 1 more threads, and what they held "
            "stays locked in a guest; start_method='forkserver' has none of them"
        )
        assert program.line() == reached
        assert program.line() == reached
