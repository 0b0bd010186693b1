"""Many tasks of mixed sorts in one block: every result is right, and no process of ours grows."""

from __future__ import annotations

import functools
import itertools
import math
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from faultlab import driver, process_tree
from faultlab.driver import Report
from faultlab.options import Options
from faultlab.process_tree import Role
from faultlab.tally import Finding, Kind, Round, Tally
from faultlab.workload import SORTS, Plan, Work, judged, left_since, open_descriptors
from gwsandbox import TaskResult

_TASKS_A_ROUND = 500
_SORTS = tuple(name for name in SORTS if name not in {"endless", "nap"})
_LIGHT = frozenset({"square", "failing", "echo", "false", "aborting"})
_WEIGHTS = [8 if name in _LIGHT else 1 for name in _SORTS]
_ROLES = (Role.CALLER, Role.REAPER, Role.SUPERVISOR, Role.ZYGOTE)
_MOST_GROWTH = 1024**2  # bytes from the first quarter to the end
_MOST_WRONG = 20  # in the report
_PAGE = os.sysconf("SC_PAGE_SIZE")

Sample = Mapping[str, tuple[int, int]]  # resident bytes and descriptors, by role


def run(options: Options) -> Tally:
    """All rounds in one block, for each start method."""
    tally = Tally("soak")
    for method in options.methods():
        rounds = math.ceil((options.rounds or 20) / len(options.methods()))
        plan = Plan((), workers=2, backend=options.backend, start_method=method)
        words = ["scripts/faults soak --seed", str(options.seed), "--rounds", str(rounds), "--backend", options.backend]
        tasks = rounds * _TASKS_A_ROUND
        ended = driver.run(functools.partial(_drive, plan, tasks, options.seed), longest=math.inf)
        findings = tuple(_findings(ended, tasks))
        tally.add(Round(tasks, findings, " ".join([*words, "--start-method", method])))
        tally.rounds += rounds - 1
        if ended.report is not None:
            tally.notes += [f"{method}: {_compared(ended.report['samples'])}"]
    return tally


def _drive(plan: Plan, tasks: int, seed: int, progress: Callable[[], None]) -> Report:
    before = open_descriptors()
    wrong: list[str] = []
    seen = 0
    samples: list[Sample] = []
    every = max(tasks // 8, 1)
    with plan.manager() as manager:
        drawn: dict[int, tuple[int, str]] = {}
        manager.queue_tasks(_tasks(random.Random(seed), tasks, drawn))
        for seen, result in enumerate(manager.as_completed(), start=1):
            wrong += _judge(plan, result, drawn)[: _MOST_WRONG - len(wrong)]
            progress()
            if seen % every == 0:
                samples.append(_sample())
        zombies = [pid for pid in process_tree.descendants(os.getpid()) if process_tree.state(pid) == "Z"]
    del result
    left = [*left_since(before), *(f"zombie {pid} while the run goes on" for pid in zombies)]
    return {"seen": seen, "wrong": wrong, "left": left, "unfinished": len(drawn), "samples": samples}


def _tasks(rng: random.Random, most: int, drawn: dict[int, tuple[int, str]]) -> Iterator[Work]:
    for number in itertools.islice(itertools.count(), most):
        (name,) = rng.choices(_SORTS, _WEIGHTS)
        task = SORTS[name].make(number % 1000)
        drawn[id(task)] = (number % 1000, name)
        yield task


def _judge(plan: Plan, result: TaskResult, drawn: dict[int, tuple[int, str]]) -> list[str]:
    number, name = drawn.pop(id(result.task))
    found = judged(Plan((name,) * (number + 1), backend=plan.backend), number, result)
    return [] if found["right"] else [f"{name} {number}: {found['outcome']}: {found['detail']}"]


def _sample() -> Sample:
    """Memory and descriptors of each of our processes."""
    found = process_tree.find(os.getpid())
    return {str(role): _of(found[role][0]) for role in _ROLES if found[role]}


def _of(pid: int) -> tuple[int, int]:
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        fields = list(map(int, file.read().split()))
    return (fields[1] - fields[2]) * _PAGE, len(os.listdir(f"/proc/{pid}/fd"))


def _findings(ended: driver.Ended, tasks: int) -> Iterator[Finding]:
    if ended.hung:
        yield Finding(Kind.HUNG, "it stands still", ended.log)
        return
    for left in ended.left:
        yield Finding(Kind.LEFT, left, ended.log)
    report = ended.report
    if report is None:
        yield Finding(Kind.WRONG, f"driver ended with {ended.exit_code}", ended.log)
        return
    if report["seen"] != tasks or report["unfinished"]:
        yield Finding(Kind.LOST, f"{report['seen']} results of {tasks} tasks", ended.log)
    for text in report["wrong"]:
        yield Finding(Kind.WRONG, text, ended.log)
    for text in (*report["left"], *_growth(report["samples"])):
        yield Finding(Kind.LEFT, text, ended.log)


def _growth(samples: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    early, late = samples[len(samples) // 4], samples[-1]
    for role in early.keys() & late.keys():
        (memory, descriptors), (memory_late, descriptors_late) = early[role], late[role]
        if memory_late > memory + _MOST_GROWTH:
            yield f"{role} grew by {(memory_late - memory) // 1024} KiB"
        if descriptors_late > descriptors + _SLACK:
            yield f"{role} has {descriptors_late - descriptors} descriptors more"


_SLACK = 24  # descriptors that two attempts hold, which may run when a sample is taken


def _compared(samples: Sequence[Mapping[str, Any]]) -> str:
    first, last = samples[len(samples) // 4], samples[-1]
    parts = []
    for role in first.keys() & last.keys():
        (memory, descriptors), (memory_late, descriptors_late) = first[role], last[role]
        parts.append(f"{role} {memory // 1024} to {memory_late // 1024} KiB, {descriptors} to {descriptors_late} open")
    return "; ".join(sorted(parts))
