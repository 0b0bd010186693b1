"""One round of work by a tool: what is timed, and what of this process is measured meanwhile."""

import os
import time
from collections.abc import Iterator, Sequence

from benchmarks import proc
from benchmarks.messages import Sample, Terms
from benchmarks.worker import loads, peaks
from benchmarks.worker.floors import Account
from benchmarks.worker.tools import CALLERS, COMMANDERS, Call

Answer = dict[str, object]

_SAMPLES = 20


def _calls(load: str, arguments: Sequence[object], count: int) -> Iterator[Call]:
    function = getattr(loads, load)
    for _ in range(count):
        yield function, tuple(arguments)


def calls(tool: str, terms: Terms, *, count: int, load: str = "noop", arguments: Sequence[object] = ()) -> Answer:
    """``count`` calls; how long they took together, and what kinds of results came."""
    run = CALLERS[tool]
    account = Account()
    kinds = {type(value).__name__ for value in run(_calls(load, arguments, count), terms)}
    return {**account.taken(), "kinds": sorted(kinds)}


def long_run(tool: str, terms: Terms, *, count: int, keep: bool = False) -> Answer:
    """``count`` no-ops, and what this process and its supervisor hold as the run goes on.

    With ``keep`` something is kept of each, as a caller does that collects results.
    """
    run = CALLERS[tool]
    account = Account()
    samples: list[Sample] = []
    kept: list[object] = []
    for done, value in enumerate(run(_calls("noop", [], count), terms), 1):
        if keep:
            kept.append([repr(value), done, bytearray(4096)])
        if done % max(count // _SAMPLES, 1) == 0:
            samples.append({"done": done, "seconds": account.seconds(), "holdings": _holdings()})
    return {**account.taken(), "samples": samples}


def _holdings() -> dict[str, tuple[int, int]]:
    """Memory in bytes and descriptors of this process, and of gwsandbox's supervisor below it."""
    processes = {"caller": os.getpid()}
    reaper = min(proc.children(os.getpid()), default=None)
    supervisor = None if reaper is None else min(proc.children(reaper), default=None)
    if supervisor is not None:
        processes["supervisor"] = supervisor
    return {who: (proc.resident(pid), proc.descriptors(pid)) for who, pid in processes.items()}


def big_values(tool: str, terms: Terms, *, size: int, count: int) -> Answer:
    """``count`` values of ``size`` bytes, all kept; the peak of this process's memory above what it had."""
    run = CALLERS[tool]
    before = peaks.start()
    start = time.perf_counter()
    kept = list(run(_calls("make_bytes", [size], count), terms))
    seconds = time.perf_counter() - start
    whole = all(isinstance(value, bytes) and len(value) == size for value in kept)
    return {"seconds": seconds, "peak": peaks.end() - before, "whole": whole}


def growth(tool: str, terms: Terms, *, progress: str, ceiling: int, shared: bool) -> Answer:
    """One task that takes memory as fast as it can; with gwsandbox, also the peak that the kernel counted."""
    if not tool.startswith("gwsandbox"):
        answer = calls(tool, terms, count=1, load="grow", arguments=[progress, ceiling, shared])
        return {"peak": None, **answer}
    import gwsandbox as package

    limits = package.Limits(memory=terms["memory"], wall_seconds=terms["wall"])
    result = package.run(loads.grow, (progress, ceiling, shared), limits=limits, backend=terms["backend"])
    usage = result.usage
    source = usage.sources.get("memory_peak_bytes")
    return {"peak": usage.memory_peak_bytes, "source": source, "kinds": [result.outcome.value]}


def commands(tool: str, terms: Terms, *, argv: list[str], count: int) -> Answer:
    """``count`` runs of a program, one after the other."""
    run = COMMANDERS[tool]
    account = Account()
    run(argv, count, terms)
    return account.taken()
