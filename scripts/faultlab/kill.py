"""SIGKILL, SIGTERM, SIGSTOP and SIGCONT to each process and each pair of them, at random moments of a workload."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from signal import Signals
from typing import Any

from faultlab import driver, process_tree
from faultlab.driver import Action, Ended
from faultlab.options import Options
from faultlab.process_tree import ROLES, Role
from faultlab.tally import Finding, Kind, Round, Tally
from faultlab.workload import DAEMON_SECONDS, Plan, drive, random_plan

_MOST_TASKS = 14
_SOONEST, _LATEST = 0.0002, 0.06  # seconds between a result and a strike
_RESUMED_AFTER = 0.3  # seconds

# Who continues a process of ours that somebody has stopped is another one of ours; not so these.
_NOT_RESUMED_BY_US = {Role.CALLER, Role.GUEST}
# With these gone at once nobody is left who could find what a guest has started, but for its cgroup.
_FINDERS = frozenset({Role.REAPER, Role.SUPERVISOR})
_TARGETS: Sequence[tuple[Role, ...]] = (
    *((role,) for role in ROLES),
    *itertools.permutations(ROLES, 2),
    (Role.CALLER, Role.REAPER, Role.SUPERVISOR),
)


@dataclass(slots=True)
class Strike:
    """One signal to one process of each of some roles.

    Args:
        roles: Whose.
        number: The signal.
        progress: How many results must have come before.
        delay: Seconds from then on.
        resumed: Whether the lab continues what it has stopped.
        hit: The roles of which a process was there.
        early: Whether there was no supervisor yet.
    """

    roles: tuple[Role, ...]
    number: Signals
    progress: int
    delay: float
    resumed: bool
    hit: set[Role] = field(default_factory=set)
    early: bool = False

    def __str__(self) -> str:
        return f"{self.number.name} to {'+'.join(self.roles)} {self.delay * 1000:.1f} ms after result {self.progress}"


def run(options: Options) -> Tally:
    """All rounds."""
    tally = Tally("kill")
    for seed in options.seeds():
        tally.add(one_round(options, seed))
    return tally


def one_round(options: Options, seed: int) -> Round:
    """The round of a seed."""
    rng = random.Random(seed)
    plan = random_plan(rng, backend=options.backend, start_method=options.start_method, most=_MOST_TASKS)
    count = rng.choice([1, 1, 2, 3])
    strikes = [_random_strike(rng, len(plan.sorts), alone=count == 1) for _ in range(count)]
    strikes.sort(key=lambda strike: (strike.progress, strike.delay))
    seen: dict[Role, set[int]] = {role: set() for role in ROLES}
    actions = [action for strike in strikes for action in _actions(strike, rng, seen)]
    drive_it = functools.partial(drive, plan)
    ended = driver.run(drive_it, actions, backend=plan.backend, is_swept=lambda: _is_left_to_the_next(strikes))
    findings = tuple(_findings(plan, strikes, ended))
    return Round(len(plan.sorts), findings, options.repeat("kill", seed))


def _random_strike(rng: random.Random, tasks: int, *, alone: bool) -> Strike:
    roles = rng.choice(_TARGETS)
    number = rng.choice([Signals.SIGKILL, Signals.SIGKILL, Signals.SIGSTOP, Signals.SIGTERM])
    resumed = not alone or len(roles) > 1 or bool(_NOT_RESUMED_BY_US & set(roles))
    return Strike(roles, number, rng.randrange(tasks), _SOONEST * (_LATEST / _SOONEST) ** rng.random(), resumed)


def _actions(strike: Strike, rng: random.Random, seen: dict[Role, set[int]]) -> Iterator[Action]:
    chosen: list[int] = []

    def hit(caller: int) -> None:
        ours = set(process_tree.descendants(os.getpid()))
        for role, pids in process_tree.find(caller).items():
            seen[role].update(pids)
        strike.early = not seen[Role.SUPERVISOR]
        for role in strike.roles:
            # Those whose parent was killed by an earlier strike are found below the lab only. A number that is not
            # found there may be a stranger's by now.
            alive = sorted(pid for pid in seen[role] & ours if process_tree.is_alive(pid))
            if alive:
                chosen.append(rng.choice(alive))
                strike.hit.add(role)
        for pid in chosen:
            _send(pid, strike.number)

    def resume(caller: int) -> None:  # noqa: ARG001 - as every action
        for pid in set(chosen) & set(process_tree.descendants(os.getpid())):
            _send(pid, signal.SIGCONT)

    yield Action(strike.progress, strike.delay, hit)
    if strike.number is Signals.SIGSTOP and strike.resumed:
        yield Action(strike.progress, strike.delay + _RESUMED_AFTER, resume, undoes=True)


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


# --- judging ---------------------------------------------------------------------------------------------


def _findings(plan: Plan, strikes: Sequence[Strike], ended: Ended) -> Iterator[Finding]:
    what = f"{plan.start_method}, {plan.workers} workers, {'; '.join(map(str, strikes))}"
    if ended.hung:
        yield Finding(Kind.HUNG, what, ended.log)
        return
    fatal = _hit(strikes, Signals.SIGKILL)
    ended_callers = fatal | _hit(strikes, Signals.SIGTERM)
    for left in ended.left:
        if not _is_declared(left, plan, fatal):
            yield Finding(Kind.LEFT, f"{left} after {what}", ended.log)
    if ended.report is None:
        if Role.CALLER not in ended_callers or ended.exit_code >= 0:
            yield Finding(Kind.WRONG, f"driver ended with {ended.exit_code} after {what}", ended.log)
        return
    for left in ended.report["left"]:
        yield Finding(Kind.LEFT, f"{left} after {what}", ended.log)
    if ended.report["raised"] and _is_start_hit(strikes) and ended.report["raised"]["ours"]:
        return  # no supervisor could be started, which is said
    if ended.report["raised"]:
        yield Finding(Kind.WRONG, f"raised {ended.report['raised']} after {what}", ended.log)
    yield from _judge_tasks(ended.report["tasks"], strikes, what, ended.log)


def _hit(strikes: Sequence[Strike], number: Signals) -> set[Role]:
    return {role for strike in strikes if strike.number is number for role in strike.hit}


def _is_declared(left: str, plan: Plan, killed: set[Role]) -> bool:
    """Whether README says that this is left: by the rlimit backend, where nobody is left to find it."""
    return plan.backend == "rlimit" and killed >= _FINDERS and f"sleep {DAEMON_SECONDS}" in left


def _is_left_to_the_next(strikes: Sequence[Strike]) -> bool:
    """Whether all who clear up were killed, so that the next start of a run by the cgroup backend does it."""
    return _hit(strikes, Signals.SIGKILL) >= _FINDERS


def _judge_tasks(
    tasks: Mapping[str, Sequence[Mapping[str, Any]]], strikes: Sequence[Strike], what: str, log: str
) -> Iterator[Finding]:
    lost = [f"{number} ({len(results)})" for number, results in tasks.items() if len(results) != 1]
    if lost:
        yield Finding(Kind.LOST, f"tasks (results): {', '.join(lost)} after {what}", log)
    guests = sum(Role.GUEST in strike.hit for strike in strikes)
    wrong: dict[str, list[str]] = {}
    for number, results in tasks.items():
        for result in results:
            reason = "" if result["right"] else _excuse(result, strikes)
            guests -= reason == "guest"
            if reason is None or (reason == "guest" and guests < 0):
                wrong.setdefault(_shown(result), []).append(f"{number} ({result['sort']})")
    for text, numbers in wrong.items():
        yield Finding(Kind.WRONG, f"tasks {', '.join(numbers)}: {text} after {what}", log)


def _excuse(result: Mapping[str, Any], strikes: Sequence[Strike]) -> str | None:
    """Which strike may be why a result is not as it would be; ``None`` for none of them."""
    deadly = {Signals.SIGKILL, Signals.SIGTERM}
    guests = [strike.number for strike in strikes if Role.GUEST in strike.hit and strike.number in deadly]
    if result["outcome"] == "KILLED" and -result["exit_code"] in guests:
        return "guest"
    if result["outcome"] == "SANDBOX_ERROR" and result["step"]:
        if Role.SUPERVISOR in _hit(strikes, Signals.SIGKILL):
            return "supervisor"
        if _is_start_hit(strikes):
            return "no supervisor"
    return None


def _is_start_hit(strikes: Sequence[Strike]) -> bool:
    """Whether the reaper was ended before there was a supervisor."""
    deadly = {Signals.SIGKILL, Signals.SIGTERM}
    return any(strike.early and Role.REAPER in strike.hit and strike.number in deadly for strike in strikes)


def _shown(result: Mapping[str, Any]) -> str:
    return f"{result['outcome']}, exit code {result['exit_code']}, {result['type']}: {result['detail']}"
