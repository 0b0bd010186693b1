"""Random uses of ``ProcessManager``, held against a small model of what it promises."""

from __future__ import annotations

import contextlib
import functools
import json
import signal
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
from hypothesis import stateful, strategies

from faultlab import driver
from faultlab.driver import Report
from faultlab.options import Options
from faultlab.tally import Finding, Kind, Round, Tally
from faultlab.workload import SORTS, Plan, Work, judged, left_since, nap, open_descriptors
from gwsandbox import ProcessManager, Task, TaskResult

_STEPS = 10
_SORTS = ("square", "large", "failing", "echo", "false", "argument", "nap", "printing", "nested")
_HANGS_AFTER = 60  # seconds of one use


class Broken(Exception):
    """What an iterable of tasks raises, or the body of the block."""


def nested(number: int) -> int:
    """A task that runs tasks."""
    with ProcessManager(1, backend="rlimit") as manager:
        manager.queue_task(Task(nap, (number,)))
    return int(manager.task_results[0].result)


class Uses(stateful.RuleBasedStateMachine):
    """One block, its uses, and what must come of them.

    The model is: what was queued, by number; what may be CANCELLED; and how many iterables are still to raise.
    """

    plan = Plan((), workers=2)

    def __init__(self) -> None:
        super().__init__()
        self.before = open_descriptors()
        self.manager = ProcessManager(2, backend=self.plan.backend, start_method=self.plan.start_method)
        self.manager.__enter__()
        self.sorts: list[str] = []
        self.numbers: dict[int, int] = {}
        self.tasks: list[Work] = []  # kept, so that no id is used twice
        self.results: dict[int, int] = {}
        self.may_be_cancelled: set[int] = set()
        self.is_over = False

    # --- uses -----------------------------------------------------------------------------------

    @stateful.precondition(lambda self: not self.is_over)
    @stateful.rule(name=strategies.sampled_from(_SORTS))
    def queue_task(self, name: str) -> None:
        self.manager.queue_task(self._task(name))

    @stateful.precondition(lambda self: not self.is_over)
    @stateful.rule(names=strategies.lists(strategies.sampled_from(_SORTS), max_size=5), breaks=strategies.booleans())
    def queue_tasks(self, names: list[str], breaks: bool) -> None:  # noqa: FBT001 - Hypothesis names it
        self.manager.queue_tasks(self._drawn(names, breaks=breaks))

    @stateful.precondition(lambda self: not self.is_over)
    @stateful.rule(most=strategies.integers(min_value=0, max_value=6))
    def take_some(self, most: int) -> None:
        try:
            for count, result in enumerate(self.manager.as_completed(), start=1):
                self._note(result)
                if count >= most:
                    return
        except Broken:
            return

    @stateful.precondition(lambda self: not self.is_over)
    @stateful.rule()
    def start_tasks(self) -> None:
        with contextlib.suppress(Broken):
            self.manager.start_tasks()
        self._harvest()

    @stateful.precondition(lambda self: not self.is_over)
    @stateful.rule()
    def cancel(self) -> None:
        self.may_be_cancelled |= set(range(len(self.sorts))) - self.results.keys()
        self.manager.cancel()

    @stateful.rule(number=strategies.integers(min_value=0, max_value=50))
    def use_another(self, number: int) -> None:
        """A second manager, while the first one may be in the middle of its tasks."""
        with ProcessManager(1, backend=self.plan.backend) as other:
            other.queue_task(Task(nap, (number,)))
        assert [result.result for result in other.task_results] == [number]

    @stateful.precondition(lambda self: not self.is_over)
    @stateful.rule(is_raised=strategies.booleans())
    def leave(self, is_raised: bool) -> None:  # noqa: FBT001 - Hypothesis names it
        self._leave(Broken() if is_raised else None)

    # --- the model ------------------------------------------------------------------------------

    def _task(self, name: str) -> Work:
        number = len(self.sorts)
        self.sorts.append(name)
        task = Task(nested, (number,)) if name == "nested" else SORTS[name].make(number)
        self.numbers[id(task)] = number
        self.tasks.append(task)
        return task

    def _drawn(self, names: list[str], *, breaks: bool) -> Iterator[Work]:
        for name in names:
            yield self._task(name)
        if breaks:
            raise Broken

    def _note(self, result: TaskResult) -> None:
        number = self.numbers[id(result.task)]
        assert number not in self.results, f"task {number} has two results"
        self.results[number] = 1
        names = tuple("nap" if name == "nested" else name for name in self.sorts)
        found = judged(Plan(names, backend=self.plan.backend), number, result)
        cancelled = number in self.may_be_cancelled and found["outcome"] == "CANCELLED"
        assert found["right"] or cancelled, f"task {number}: {json.dumps(found)}"

    def _harvest(self) -> None:
        for result in self.manager.task_results:
            self._note(result)
        self.manager.task_results = []

    def _leave(self, error: Broken | None) -> None:
        self.is_over = True
        queued = len(self.sorts)
        unfinished = set(range(queued)) - self.results.keys()
        if error is not None:
            self.may_be_cancelled |= unfinished
        try:
            self.manager.__exit__(None if error is None else Broken, error, None)
        except Broken:
            self.may_be_cancelled |= set(range(len(self.sorts)))
        self._harvest()
        missing = set(range(len(self.sorts))) - self.results.keys()
        assert not missing, f"no results for {sorted(missing)}"

    def teardown(self) -> None:
        signal.alarm(_HANGS_AFTER)
        if not self.is_over:
            self._leave(None)
        self.manager, numbers = ProcessManager(1, backend="rlimit"), self.numbers
        numbers.clear()
        self.tasks.clear()
        assert not left_since(self.before), left_since(self.before)


def run(options: Options) -> Tally:
    """Each round is one sequence of uses; Hypothesis shrinks one that goes wrong."""
    tally = Tally("states", unit="uses")
    for method in options.methods():
        plan = Plan((), backend=options.backend, start_method=method)
        rounds = options.rounds or 100
        ended = driver.run(functools.partial(_drive, plan, options.seed, rounds), longest=float("inf"))
        words = f"scripts/faults states --seed {options.seed} --rounds {rounds} --backend {options.backend}"
        report = ended.report or {"sequences": 0, "uses": 0, "failure": "it did not end", "steps": ""}
        done = Round(report["uses"], tuple(_findings(report, ended)), f"{words} --start-method {method}")
        tally.add(done)
        tally.rounds += report["sequences"] - 1
    return tally


def _findings(report: Report, ended: driver.Ended) -> Iterator[Finding]:
    if ended.hung or ended.exit_code:
        kind = Kind.HUNG if ended.hung or ended.exit_code == -signal.SIGALRM else Kind.WRONG
        yield Finding(kind, f"driver ended with {ended.exit_code}", ended.log)
    for left in ended.left:
        yield Finding(Kind.LEFT, left, ended.log)
    if report["failure"] and not ended.hung:
        text = report["failure"].splitlines()[0]
        kind = Kind.LOST if "result" in text else Kind.LEFT if "descriptor" in text or "child" in text else Kind.WRONG
        yield Finding(kind, text, report["steps"])


def _drive(plan: Plan, seed: int, rounds: int, progress: Callable[[], None]) -> Report:
    counted = {"sequences": 0, "uses": 0}

    class Counted(Uses):
        def __init__(self) -> None:
            super().__init__()
            signal.alarm(_HANGS_AFTER)
            counted["sequences"] += 1

        def check_invariants(self, *args: Any, **options: Any) -> None:
            counted["uses"] += 1
            signal.alarm(_HANGS_AFTER)
            progress()
            super().check_invariants(*args, **options)

    Counted.plan = plan
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    failure, steps = "", ""
    try:
        stateful.run_state_machine_as_test(hypothesis.seed(seed)(Counted), settings=_settings(rounds))
    except Exception as error:  # noqa: BLE001 - whatever a use raises is a finding
        failure, steps = f"{type(error).__name__}: {error}", "\n".join(getattr(error, "__notes__", []))
    signal.alarm(0)
    return {**counted, "failure": failure, "steps": steps}


def _settings(rounds: int) -> hypothesis.settings:
    return hypothesis.settings(
        max_examples=rounds,
        stateful_step_count=_STEPS,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
