"""An exception at any bytecode of the caller's side: Ctrl-C, or a signal handler of the caller's own that raises.

The signal is sent at the n-th bytecode that the caller executes outside of its own code, and not raised from there:
where signals are held back for a moment, it comes when they are let through again, as it would for a user.
"""

from __future__ import annotations

import functools
import importlib
import os
import random
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from faultlab import driver
from faultlab.driver import Ended, Report
from faultlab.options import Options
from faultlab.tally import Finding, Kind, Round, Tally
from faultlab.workload import (
    BackendName,
    Plan,
    StartMethod,
    described,
    judged,
    left_since,
    open_descriptors,
    queue,
    random_plan,
)
from gwsandbox import ProcessManager, TaskResult

_MOST_TASKS = 8
_PHASES = ("make", "queue", "process", "leave")
_IMPORTED_LATE = ("cloudpickle", "subprocess")  # by the package, whose bytecodes are not to be spent on that
_PLACES = 4  # interrupts of one plan, whose bytecodes are counted once
_SECOND_AFTER = 0.004  # seconds
_LATER = 0.0002


class Ring(Exception):
    """What a signal handler of the caller's own raises."""


@dataclass(frozen=True, slots=True)
class Interrupt:
    """When to interrupt, and what the caller does then.

    Args:
        place: At which bytecode; 0: never.
        number: The signal.
        caught: Whether the caller catches it in the block, and goes on.
        second_after: Seconds from the first to a second one; ``None``: none.
    """

    place: int
    number: signal.Signals
    caught: bool = False
    second_after: float | None = None

    def __str__(self) -> str:
        text = f"{self.number.name} at bytecode {self.place}, {'caught' if self.caught else 'let through'}"
        return text if self.second_after is None else f"{text}, again after {self.second_after * 1000:.1f} ms"


@dataclass(slots=True)
class _Tracer:
    """Counts the bytecodes that this process executes outside of this lab, and sends the signal at one of them."""

    interrupt: Interrupt
    count: int = 0
    marks: dict[str, int] = field(default_factory=dict)
    where: str = ""

    def begin(self, phase: str) -> None:
        self.marks[phase] = self.count

    def call(self, frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG002 - as sys.settrace wants it
        if frame.f_globals.get("__name__", "").startswith("faultlab."):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:  # noqa: ARG002 - as sys.settrace wants it
        if event == "opcode":
            self.count += 1
            if self.count >= self.interrupt.place > 0 and not self.where and not _is_pickling(frame):
                self._fire(frame)
        return self._step

    def _fire(self, frame: FrameType) -> None:
        sys.settrace(None)  # what comes then need not be slow
        self.where = " < ".join(_stack(frame))
        print("interrupted in", self.where, file=sys.stderr, flush=True)
        if self.interrupt.second_after is not None:
            signal.setitimer(signal.ITIMER_REAL, self.interrupt.second_after)
        signal.raise_signal(self.interrupt.number)


def _is_pickling(frame: FrameType | None) -> bool:
    """Whether a task is pickled: any exception is taken there for a sign that it has to go another way."""
    while frame is not None:
        if frame.f_code.co_name == "pack_task" or frame.f_globals.get("__name__", "").startswith("cloudpickle"):
            return True
        frame = frame.f_back
    return False


def _stack(frame: FrameType | None) -> Iterator[str]:
    """Where a frame stands, the innermost first, down to the lab's own code."""
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("faultlab."):
        yield f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back


# --- the driver ------------------------------------------------------------------------------------------


class _Alarm:
    """The caller's signal handler: raises, but in the lab's own code, or where pickling would swallow it, later."""

    is_armed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - as every signal handler
        in_tracer = frame is not None and frame.f_code is _Tracer._fire.__code__
        ours = frame is None or frame.f_globals.get("__name__", "").startswith("faultlab.")
        if not self.is_armed:
            return
        if (ours and not in_tracer) or _is_pickling(frame):
            signal.setitimer(signal.ITIMER_REAL, _LATER)
        else:
            raise Ring


class _Session:
    """One block, its interrupt, and what the caller has got."""

    def __init__(self, plan: Plan, interrupt: Interrupt, progress: Callable[[], None]) -> None:
        self.plan = plan
        self.interrupt = interrupt
        self.tracer = _Tracer(interrupt)
        self.alarm = _Alarm()
        self.tasks = plan.tasks()
        self.queued: list[int] = []
        self.results: list[TaskResult] = []
        self.manager: ProcessManager | None = None
        self.caught_in_block = False
        self._progress = progress

    def run(self) -> BaseException | None:
        """What came out of the block."""
        sys.settrace(self.tracer.call)
        self.alarm.is_armed = True
        try:
            self.tracer.begin("make")
            self.manager = self.plan.manager()
            with self.manager as manager:
                self._in_block(manager)
                self.tracer.begin("leave")
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - what comes out is judged by the lab
            return error
        finally:
            self.alarm.is_armed = False
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_REAL, 0)
        return None

    def _in_block(self, manager: ProcessManager) -> None:
        self.tracer.begin("queue")
        queue(manager, self.tasks, self.plan.late, self.queued)
        self.tracer.begin("process")
        if not self.interrupt.caught:
            self._process(manager)
            return
        try:
            self._process(manager)
        except (KeyboardInterrupt, Ring):
            self.caught_in_block = True
        self._process(manager)

    def _process(self, manager: ProcessManager) -> None:
        for result in manager.as_completed():
            self.results.append(result)
            self._progress()
            if len(self.results) >= self.plan.leave_after:
                return


def _drive(plan: Plan, interrupt: Interrupt, progress: Callable[[], None]) -> Report:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.register_at_fork(after_in_child=lambda: sys.settrace(None))
    before = open_descriptors()
    session = _Session(plan, interrupt, progress)
    signal.signal(signal.SIGALRM, session.alarm)
    raised = session.run()
    found: dict[int, list[dict[str, Any]]] = {number: [] for number in session.queued}
    numbers = {id(task): number for number, task in enumerate(session.tasks)}
    for result in [*session.results, *(session.manager.task_results if session.manager else [])]:
        number = numbers[id(result.task)]
        found.setdefault(number, []).append(judged(plan, number, result))
    report = {
        "tasks": found,
        "raised": described(raised),
        "caught": session.caught_in_block,
        "bytecodes": session.tracer.count,
        "marks": session.tracer.marks,
        "where": session.tracer.where,
    }
    del session, raised
    return {**report, "left": left_since(before)}


# --- the lab ---------------------------------------------------------------------------------------------


def run(options: Options) -> Tally:
    """All rounds."""
    for name in _IMPORTED_LATE:
        importlib.import_module(name)
    tally = Tally("interrupt")
    for seed in options.seeds():
        tally.add(one_round(options, seed))
    return tally


def one_round(options: Options, seed: int) -> Round:
    """The round of a seed: a plan, the same for some seeds in a row, interrupted once."""
    plan, counted = _counted(options.backend, options.start_method, seed // _PLACES)
    command = options.repeat("interrupt", seed)
    if counted.report is None:
        return Round(0, (Finding(Kind.WRONG, "it does not run undisturbed", counted.log),), command)
    interrupt = _random_interrupt(random.Random(seed), counted.report["marks"], counted.report["bytecodes"])
    ended = driver.run(functools.partial(_drive, plan, interrupt), backend=options.backend)
    return Round(len(plan.sorts), tuple(_findings(plan, interrupt, ended)), command)


@functools.lru_cache(maxsize=1)
def _counted(backend: BackendName, start_method: StartMethod | None, number: int) -> tuple[Plan, Ended]:
    """A plan, and how it ends undisturbed, with its bytecodes counted."""
    plan = random_plan(random.Random(number), backend=backend, start_method=start_method, most=_MOST_TASKS)
    return plan, driver.run(functools.partial(_drive, plan, Interrupt(0, signal.SIGINT)), backend=backend)


def _random_interrupt(rng: random.Random, marks: Mapping[str, int], total: int) -> Interrupt:
    """In each phase as often as in the others, however long it is."""
    phase = rng.randrange(len(_PHASES))
    bounds = [*(marks[name] for name in _PHASES), total]
    place = rng.randint(bounds[phase] + 1, max(bounds[phase + 1], bounds[phase] + 1))
    number = rng.choice([signal.SIGINT, signal.SIGALRM])
    manner = rng.choice(["through", "through", "caught", "again"])
    second = rng.uniform(0, _SECOND_AFTER) if manner == "again" else None
    return Interrupt(place, number, manner == "caught", second)


def _findings(plan: Plan, interrupt: Interrupt, ended: Ended) -> Iterator[Finding]:
    what = f"{plan.start_method}, {interrupt}"
    if ended.hung:
        yield Finding(Kind.HUNG, what, ended.log)
        return
    for left in ended.left:
        yield Finding(Kind.LEFT, f"{left} after {what}", ended.log)
    report = ended.report
    if report is None:
        yield Finding(Kind.WRONG, f"driver ended with {ended.exit_code} after {what}", ended.log)
        return
    what = f"{what} in {report['where'] or 'none'}"
    for left in report["left"]:
        yield Finding(Kind.LEFT, f"{left} after {what}", ended.log)
    wanted = {"KeyboardInterrupt" if interrupt.number is signal.SIGINT else "Ring"}
    if interrupt.second_after is not None:
        wanted.add("Ring")
    raised = report["raised"]
    if raised is not None and raised["type"] not in wanted:
        yield Finding(Kind.WRONG, f"raised {raised['type']}: {raised['text']} after {what}", ended.log)
    if raised is None and report["where"] and not report["caught"]:
        yield Finding(Kind.WRONG, f"the exception was swallowed: {what}", ended.log)
    yield from _judge_tasks(report, what, ended.log)


def _judge_tasks(report: Report, what: str, log: str) -> Iterator[Finding]:
    lost = [f"{number} ({len(results)})" for number, results in report["tasks"].items() if len(results) != 1]
    if lost and _phase(report) != "make":
        yield Finding(Kind.LOST, f"tasks (results): {', '.join(lost)} after {what}", log)
    may_be_cancelled = report["raised"] is not None
    wrong: dict[str, list[str]] = {}
    for number, results in report["tasks"].items():
        for result in results:
            if not result["right"] and not (may_be_cancelled and result["outcome"] == "CANCELLED"):
                wrong.setdefault(f"{result['outcome']} ({result['detail']})", []).append(number)
    for text, numbers in wrong.items():
        yield Finding(Kind.WRONG, f"tasks {', '.join(numbers)}: {text} after {what}", log)


def _phase(report: Report) -> str:
    """The phase that was not left in peace."""
    return next(name for name in reversed(_PHASES) if name in report["marks"])
