"""Tasks whose results are known beforehand, and a driver that runs them and says what came of each."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from faultlab import process_tree
from faultlab.driver import OUTPUT_LINE
from gwsandbox import Command, CommandOutput, Limits, Outcome, ProcessManager, Task, TaskResult
from gwsandbox.model.errors import SandboxError

BackendName = Literal["rlimit", "cgroup"]
StartMethod = Literal["fork", "forkserver"]
Work = Task | Command
_METHODS: tuple[StartMethod, ...] = ("fork", "forkserver")

DAEMON_SECONDS = "98765"
"""What a daemon of the workload sleeps, by which it is known."""
_LARGE = 300_000  # bytes: too much for a report, so it travels as a descriptor
_SHORT_LIMIT = 0.25  # seconds


# --- what the tasks do -----------------------------------------------------------------------------------


def square(number: int) -> int:
    return number * number


def large(number: int) -> bytes:
    return bytes([number % 251]) * (_LARGE + number)


def pickled(number: int) -> dict[str, list[int]]:
    return {"numbers": list(range(number, number + 30_000))}


def failing(number: int) -> None:
    raise ValueError(f"task {number}")


def nap(number: int) -> int:
    time.sleep(0.03)
    return number


def printing(number: int) -> int:
    print(OUTPUT_LINE * 500, flush=True, end="")
    return number


def size_of(data: bytes, number: int) -> int:
    return len(data) + number


def forking(number: int) -> int:
    """Leaves a daemon behind, which must end with the task."""
    subprocess.Popen(["sleep", DAEMON_SECONDS], start_new_session=True)
    return number


def for_ever(number: int) -> int:
    time.sleep(number + 100_000)
    return number


def aborting(number: int) -> int:
    os.kill(os.getpid(), signal.SIGABRT)
    return number


# --- what must come of them ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sort:
    """A sort of task.

    Args:
        make: The task with a number.
        value: What it gives.
        outcome: How it ends where nothing disturbs it.
    """

    make: Callable[[int], Work]
    value: Callable[[int], object] = lambda _: None
    outcome: Outcome = Outcome.SUCCEEDED


def _call(func: Callable[[int], object], *, outcome: Outcome = Outcome.SUCCEEDED, **limits: Any) -> Sort:
    own = Limits(**limits) if limits else None
    value = func if func in {square, large, pickled} else (lambda number: number)
    return Sort(
        lambda number: Task(func, (number,), limits=own),
        value if outcome is Outcome.SUCCEEDED else (lambda _: None),
        outcome,
    )


SORTS: Mapping[str, Sort] = {
    "square": _call(square),
    "large": _call(large),
    "pickled": _call(pickled),
    "failing": _call(failing, outcome=Outcome.FAILED),
    "nap": _call(nap),
    "printing": _call(printing, output="1MiB"),
    "argument": Sort(lambda number: Task(size_of, (b"x" * 100_000, number)), lambda number: 100_000 + number),
    "forking": _call(forking),
    "endless": _call(for_ever, outcome=Outcome.TIMED_OUT, wall_seconds=_SHORT_LIMIT),
    "aborting": _call(aborting, outcome=Outcome.CRASHED),
    "limited": _call(nap, memory="512MiB", cpu_seconds=20, wall_seconds=60, open_files=100, pids=5000),
    "echo": Sort(
        lambda number: Command(["/bin/echo", str(number)]), lambda number: CommandOutput(b"%d\n" % number, b"")
    ),
    "cat": Sort(
        lambda number: Command(["/bin/cat"], stdin=large(number)), lambda number: CommandOutput(large(number), b"")
    ),
    "false": Sort(
        lambda _: Command(["/bin/false"]), lambda _: CommandOutput(b"", b""), Outcome.FAILED
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """What a driver runs.

    Args:
        sorts: The sort of each task.
        workers: Tasks at a time.
        backend: How limits are held.
        start_method: As of ``ProcessManager``.
        late: How many of the tasks, the last ones, come from an iterable.
        leave_after: How many results are taken by ``as_completed``; the rest comes with the end of the block.
        preload: Modules for "forkserver" to import.
    """

    sorts: tuple[str, ...]
    workers: int = 2
    backend: BackendName = "rlimit"
    start_method: StartMethod = "fork"
    late: int = 0
    leave_after: int = sys.maxsize
    preload: tuple[str, ...] = ()

    def tasks(self) -> list[Work]:
        return [SORTS[name].make(number) for number, name in enumerate(self.sorts)]

    def manager(self) -> ProcessManager:
        return ProcessManager(self.workers, backend=self.backend, start_method=self.start_method, preload=self.preload)


def random_plan(rng: random.Random, *, backend: BackendName, start_method: StartMethod | None, most: int) -> Plan:
    """A plan of up to ``most`` tasks."""
    size = rng.randint(2, most)
    chosen = rng.choice(_METHODS) if start_method is None else start_method
    return Plan(
        tuple(rng.choices(list(SORTS), k=size)),
        workers=rng.randint(1, 4),
        backend=backend,
        start_method=chosen,
        late=rng.choice([0, size // 2, size]),
        leave_after=rng.choice([sys.maxsize, sys.maxsize, rng.randint(1, size)]),
    )


def judged(plan: Plan, number: int, result: TaskResult) -> dict[str, Any]:
    """What a result says, and whether it is what comes of the task where nothing disturbs it."""
    sort = SORTS[plan.sorts[number]]
    error = result.exception
    fits = result.outcome is sort.outcome and result.success is (sort.outcome is Outcome.SUCCEEDED)
    if result.outcome is Outcome.SUCCEEDED:
        fits = fits and result.result == sort.value(number) and error is None
    if plan.sorts[number] == "failing" and result.outcome is Outcome.FAILED:
        fits = isinstance(error, ValueError) and str(error) == f"task {number}"
    return {
        "sort": plan.sorts[number],
        "outcome": result.outcome.name,
        "right": fits,
        "detail": result.detail,
        "exit_code": result.exit_code,
        "type": type(error).__name__,
        "errno": getattr(error, "errno", None) or 0,
        "step": getattr(error, "step", ""),
    }


# --- the driver ------------------------------------------------------------------------------------------


def drive(
    plan: Plan, progress: Callable[[], None], *, before_late: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Run a plan; what came of each task, what was raised, and what of this process's own is left.

    Args:
        plan: What to run.
        progress: Called after each result.
        before_late: Called when the first task is drawn from the iterable.
    """
    tasks = plan.tasks()
    numbers = {id(task): number for number, task in enumerate(tasks)}
    before = open_descriptors()
    raised: BaseException | None = None
    manager: ProcessManager | None = None
    results: list[TaskResult] = []
    queued: list[int] = []
    try:
        manager = plan.manager()
        with manager:
            queue(manager, tasks, plan.late, queued, before_late=before_late)
            for result in _some(manager.as_completed(), plan.leave_after):
                results.append(result)
                progress()
    except Exception as error:  # noqa: BLE001 - what comes out is judged by the lab
        raised = error
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in queued}
    for result in [*results, *(manager.task_results if manager is not None else [])]:
        number = numbers[id(result.task)]
        found.setdefault(number, []).append(judged(plan, number, result))
    manager = None
    results.clear()
    return {"tasks": found, "raised": described(raised), "left": left_since(before)}


def queue(
    manager: ProcessManager,
    tasks: Sequence[Work],
    late: int,
    queued: list[int],
    *,
    before_late: Callable[[], None] = lambda: None,
) -> None:
    """Queue all tasks, the last ``late`` of them as an iterable; ``queued`` gets the numbers of what was taken."""
    early = len(tasks) - late
    for number, task in enumerate(tasks[:early]):
        manager.queue_task(task)
        queued.append(number)

    def drawn() -> Iterator[Work]:
        before_late()
        for number, task in enumerate(tasks[early:], start=early):
            queued.append(number)
            yield task

    if late:
        manager.queue_tasks(drawn())


def _some(results: Iterator[TaskResult], most: int) -> Iterator[TaskResult]:
    for count, result in enumerate(results, start=1):
        yield result
        if count >= most:
            return


def described(error: BaseException | None) -> dict[str, Any] | None:
    """An exception that came out of the manager."""
    if error is None:
        return None
    return {
        "type": type(error).__name__,
        "ours": isinstance(error, SandboxError),
        "text": str(error),
        "errno": getattr(error, "errno", None) or 0,
        "step": getattr(error, "step", ""),
    }


def open_descriptors() -> dict[int, str]:
    """The descriptors of this process, with what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def left_since(before: Mapping[int, str]) -> list[str]:
    """Descriptors and children of this process that it had not before, in words."""
    now = open_descriptors()
    found = [f"descriptor {fd} ({now[fd]})" for fd in now.keys() - before.keys()]
    return found + [f"child of the caller: {process_tree.describe(pid)}" for pid in process_tree.children(os.getpid())]


def errno_named(text: str, number: int) -> bool:
    """Whether a message names an errno."""
    return f"errno {number}" in text or os.strerror(number) in text or errno.errorcode.get(number, "-") in text
