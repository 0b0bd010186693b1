"""The n-th system call of each kind, of each role, fails with each fitting errno, once and from then on."""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from faultlab import driver, hook, service, traced
from faultlab.driver import Ended, Report
from faultlab.options import Options
from faultlab.process_tree import Role
from faultlab.tally import Finding, Kind, Round, Tally
from faultlab.workload import Plan, StartMethod, drive, errno_named
from gwsandbox.linux.errnos import NOT_NOW

_SORTS = ("square", "large", "failing", "echo", "limited", "printing", "cat", "argument", "nap")
_LATE = 5
# Seconds that a run may take, and that it may rest, before it is taken for hung. What lasts is borne for a while.
_ONCE, _LASTING = (15.0, 5.0), (90.0, 40.0)

# Steps without which there is no run: each says so in its error, and every task that has not ended fails with it.
_FATAL = ("start supervisor", "fork supervisor", "supervise", "watch the caller", "open the event loop")


@dataclass(frozen=True, slots=True)
class Point:
    """One fault.

    Args:
        role: Whose call fails.
        call: Which, as of ``hook.ERRNOS``.
        number: The how many-th.
        errno: How.
        lasting: Whether all further ones fail too.
    """

    role: Role
    call: str
    number: int
    errno: str
    lasting: bool

    def __str__(self) -> str:
        return f"{self.role}:{self.call}:{self.number}:{self.errno}:{self.manner}"

    @property
    def manner(self) -> str:
        """In one word."""
        return "lasting" if self.lasting else "once"

    @classmethod
    def parse(cls, text: str) -> Self:
        """From what ``str`` gives."""
        role, call, number, name, manner = text.split(":")
        return cls(Role(role), call, int(number), name, manner == "lasting")


def run(options: Options) -> Tally:
    """All points, or as many as were asked for, in an order that comes from the seed."""
    tally = Tally("inject")
    if options.traced or (options.point or "").endswith(":traced"):
        return _run_traced(options, tally)
    if options.point:
        points = [(options.methods()[0], Point.parse(options.point))]
    else:
        points = [(method, point) for method, point in _points(options) if options.manner in {None, point.manner}]
        random.Random(options.seed).shuffle(points)
        points = _one_of_each(points) if options.each else points
        points = points[options.share[0] :: options.share[1]]
    for method, point in points[: options.rounds]:
        if options.is_over():
            break
        tally.add(one_round(options, method, point))
    tally.notes.append(f"{len(points)} points are known; {tally.reached} of these were reached")
    return tally


def _one_of_each(points: Sequence[tuple[StartMethod, Point]]) -> list[tuple[StartMethod, Point]]:
    """The first point of each call."""
    return [*{(method, one.role, one.call, one.number): (method, one) for method, one in reversed(points)}.values()]


def _run_traced(options: Options, tally: Tally) -> Tally:
    for method, point in traced.chosen(options):
        if options.is_over():
            break
        failed, ended = traced.injected(options, method, point)
        judged = Point(point.role, point.calls, point.number, point.errno, lasting=False)
        findings = tuple(_findings(judged, failed, ended))
        tasks = len(ended.report["tasks"]) if ended.report else 0
        tally.add(Round(tasks, findings, _command(options, method, str(point)), failed > 0))
    tally.notes.append(f"{tally.reached} of these points were reached")
    return tally


def _plan(options: Options, method: StartMethod) -> Plan:
    preload = ("faultlab.hook",) if method == "forkserver" else ()
    return Plan(_SORTS, workers=2, backend=options.backend, start_method=method, late=_LATE, preload=preload)


def _points(options: Options) -> Iterator[tuple[StartMethod, Point]]:
    """All calls that undisturbed runs make, with all their errnos."""
    if options.role is not Role.SERVICE:
        for method in options.methods():
            yield from (
                (method, point) for point in _points_of_run(options, method) if options.role in {None, point.role}
            )
    if options.role in {None, Role.SERVICE}:
        yield from (("fork", point) for point in _points_of_service(options))


def _points_of_run(options: Options, method: StartMethod) -> Iterator[Point]:
    _, counts, ended = _injected(_plan(options, method), None)
    if ended.report is None or ended.report["raised"]:
        raise SystemExit(f"the workload does not run undisturbed: {ended.log}{ended.report}")
    for (role, call), count in counts.items():
        yield from _faults(role, call, count)


def _points_of_service(options: Options) -> Iterator[Point]:
    _, counts, findings = service.injected(options, None)
    if findings:
        raise SystemExit(f"the service does not run undisturbed: {findings[0]}")
    for call, count in counts.items():
        yield from _faults(Role.SERVICE, call, count)


def _faults(role: Role, call: str, count: int) -> Iterator[Point]:
    for number in range(1, count + 1):
        for name in hook.ERRNOS[call]:
            # A socket that can be read and says EAGAIN does so once, when somebody else was faster.
            for lasting in (False,) if name == "EAGAIN" and call.startswith("socket") else (False, True):
                yield Point(role, call, number, name, lasting)


def _injected(plan: Plan, fault: Mapping[str, Any] | None) -> tuple[int, dict[tuple[Role, str], int], Ended]:
    folder = tempfile.mkdtemp(prefix="faultlab-")
    try:
        hook.prepare(folder, fault)
        longest, stalled = _LASTING if fault and fault["lasting"] else _ONCE
        drive = functools.partial(_drive, plan, folder)
        ended = driver.run(drive, longest=longest, stalled=stalled, backend=plan.backend)
        return *hook.counts(folder), dataclasses.replace(ended, log=hook.stacks(folder) + ended.log)
    finally:
        shutil.rmtree(folder)


def _drive(plan: Plan, folder: str, progress: Callable[[], None]) -> Report:
    os.environ[hook.VARIABLE] = folder
    hook.install(folder, Role.CALLER)
    return drive(plan, progress)


def one_round(options: Options, method: StartMethod, point: Point) -> Round:
    """One point."""
    if point.role is Role.SERVICE:
        fired, _, findings = service.injected(options, dataclasses.asdict(point))
        return Round(service.INPUTS, findings, _command(options, method, str(point)), fired > 0)
    plan = _plan(options, method)
    fault = dataclasses.asdict(point)
    fired, _, ended = _injected(plan, fault)
    findings = tuple(_findings(point, fired, ended))
    return Round(len(plan.sorts), findings, _command(options, method, str(point)), fired > 0)


def _command(options: Options, method: StartMethod, point: str) -> str:
    return f"scripts/faults inject --backend {options.backend} --start-method {method} --point {point}"


def _findings(point: Point, fired: int, ended: Ended) -> Iterator[Finding]:
    if ended.hung:
        yield Finding(Kind.HUNG, f"failed {fired} times", ended.log)
        return
    for left in ended.left:
        yield Finding(Kind.LEFT, left, ended.log)
    report = ended.report
    if report is None:
        yield Finding(Kind.WRONG, f"driver ended with {ended.exit_code}", ended.log)
        return
    for left in report["left"]:
        yield Finding(Kind.LEFT, left, ended.log)
    lost = [f"{number} ({len(results)})" for number, results in report["tasks"].items() if len(results) != 1]
    if lost:
        yield Finding(Kind.LOST, f"tasks (results): {', '.join(lost)}", ended.log)
    raised = report["raised"]
    number: int = getattr(errno, point.errno)
    if raised and not (raised["ours"] and raised["step"] and errno_named(raised["text"], number)):
        yield Finding(Kind.WRONG, f"raised {raised['type']}: {raised['text']}", ended.log)
    yield from _judge_tasks(point, fired, report, ended.log)


def _judge_tasks(point: Point, fired: int, report: Report, log: str) -> Iterator[Finding]:
    number: int = getattr(errno, point.errno)
    failed: list[Mapping[str, Any]] = []
    wrong: dict[str, list[str]] = {}
    for task, results in report["tasks"].items():
        for result in results:
            if result["right"] or (report["raised"] and result["outcome"] == "CANCELLED"):
                continue
            failed.append(result)
            if not _says_why(result, number):
                wrong.setdefault(_shown(result), []).append(f"{task} ({result['sort']})")
    for text, tasks in wrong.items():
        yield Finding(Kind.WRONG, f"tasks {', '.join(tasks)}: {text}", log)
    if not wrong and len(failed) > fired and not point.lasting and not _is_fatal(failed):
        yield Finding(Kind.WRONG, f"{fired} failing calls fail {len(failed)} tasks: {_shown(failed[0])}", log)
    passes = number in NOT_NOW and not point.lasting and point.role in {Role.SUPERVISOR, Role.ZYGOTE}
    if not wrong and failed and passes and not _is_fatal(failed):
        yield Finding(Kind.WRONG, f"what passes fails {len(failed)} tasks: {_shown(failed[0])}", log)


def _says_why(result: Mapping[str, Any], number: int) -> bool:
    """Whether a failure names what failed, and how."""
    if result["outcome"] == "SANDBOX_ERROR":
        return bool(result["step"]) and (result["errno"] == number or errno_named(result["detail"], number))
    # What the guest's own last steps cannot do is the task's failure: execute the program, leave the result.
    return result["outcome"] == "FAILED" and (result["errno"] == number or errno_named(result["detail"], number))


def _is_fatal(failed: Sequence[Mapping[str, Any]]) -> bool:
    return all(result["step"].startswith(_FATAL) for result in failed)


def _shown(result: Mapping[str, Any]) -> str:
    return f"{result['outcome']}, exit code {result['exit_code']}, {result['type']}: {result['detail']}"
