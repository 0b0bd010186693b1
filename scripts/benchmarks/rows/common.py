"""What several rows do."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import ParamSpec

from benchmarks.pairs import Floor, Turn
from benchmarks.plan import GIB, Plan
from benchmarks.row import Entry
from benchmarks.side import Absent, Side, SideSpec

MEMORY, WALL, PIDS = GIB, 30.0, 64  # "all limits": so wide that no task reaches them


P = ParamSpec("P")


def attempt(
    who: str, measure: Callable[P, Iterable[Entry]], *arguments: P.args, **keywords: P.kwargs
) -> Iterator[Entry]:
    """The entries that ``measure`` gives; where a tool is absent, one that says why ends them."""
    try:
        yield from measure(*arguments, **keywords)
    except Absent as why:
        yield Entry(who, note=str(why))


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A tool in a row of costs."""

    who: str
    """Its name in the table."""
    spec: SideSpec
    """The side that runs it."""
    count: int
    """Tasks of one round."""
    at_most: float | None = None
    """The target for its ratio, where it has one."""


def compete(plan: Plan, floor: Floor, contenders: Iterable[Contender], of: str, **arguments: object) -> Iterator[Entry]:
    """An entry for each contender, in turns with the floor; ``of`` is the floor's name in the targets."""

    def measure(contender: Contender) -> Iterator[Entry]:
        specs = [contender.spec]
        if plan.earlier is not None and contender.spec.tool.startswith("gwsandbox"):
            specs.append(replace(contender.spec, package=plan.earlier))
        with contextlib.ExitStack() as sides:
            turns = [Turn(sides.enter_context(Side(spec)), contender.count, arguments) for spec in specs]
            ours, *earlier = floor.beside_all(turns, plan.rounds)
        entry = ours.entry(contender.who, contender.spec.tool, contender.count)
        yield entry if contender.at_most is None else entry.judged_by_ratio(contender.at_most, of)
        for pairs in earlier:
            yield pairs.entry(f"  at {plan.earlier_name}", contender.spec.tool, contender.count)

    for contender in contenders:
        yield from attempt(contender.who, measure, contender)
