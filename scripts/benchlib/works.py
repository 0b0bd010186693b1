"""One round of work in a side: what is timed, and what of this process is looked at meanwhile."""

import os
import time
from collections.abc import Iterator
from typing import Any

from benchlib import loads, peaks, proc
from benchlib.floors import cpu_seconds
from benchlib.tools import CALLERS, COMMANDERS, Call, Terms

Answer = dict[str, Any]
Wish = dict[str, Any]

_SAMPLES = 20


def _calls(load: str, arguments: list[Any], count: int) -> Iterator[Call]:
    function = getattr(loads, load)
    for _ in range(count):
        yield function, tuple(arguments)


def calls(tool: str, wish: Wish, *, count: int, load: str = "noop", arguments: list[Any] | None = None) -> Answer:
    """``count`` calls; how long they took together, and what kinds of results came."""
    run, terms = CALLERS[tool], Terms(**wish)
    cpu, start = cpu_seconds(), time.perf_counter()
    kinds = {type(value).__name__ for value in run(_calls(load, arguments or [], count), terms)}
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu": cpu_seconds() - cpu, "kinds": sorted(kinds)}


def long_run(tool: str, wish: Wish, *, count: int, keep: bool = False) -> Answer:
    """``count`` no-ops, and what this process and its supervisor hold as the run goes on.

    With ``keep`` something is kept of each, as a caller does that collects results.
    """
    run, terms = CALLERS[tool], Terms(**wish)
    cpu, start = cpu_seconds(), time.perf_counter()
    samples, kept = [], []
    for done, value in enumerate(run(_calls("noop", [], count), terms), 1):
        if keep:
            kept.append([repr(value), done, bytearray(4096)])
        if done % max(count // _SAMPLES, 1) == 0:
            samples.append({"done": done, "seconds": time.perf_counter() - start, **_holdings()})
    return {"seconds": time.perf_counter() - start, "cpu": cpu_seconds() - cpu, "samples": samples}


def _holdings() -> Answer:
    """Memory and descriptors of this process, and of gwsandbox's supervisor below it."""
    own = os.getpid()
    found = {"caller_bytes": proc.resident(own), "caller_descriptors": proc.descriptors(own)}
    keeper = min(proc.children(own), default=None)
    supervisor = None if keeper is None else min(proc.children(keeper), default=None)
    if supervisor is not None:
        found["supervisor_bytes"] = proc.resident(supervisor)
        found["supervisor_descriptors"] = proc.descriptors(supervisor)
    return found


def big_values(tool: str, wish: Wish, *, size: int, count: int) -> Answer:
    """``count`` values of ``size`` bytes, all kept; the peak of this process's memory above what it had."""
    run, terms = CALLERS[tool], Terms(**wish)
    before = peaks.start()
    start = time.perf_counter()
    kept = list(run(_calls("make_bytes", [size], count), terms))
    seconds = time.perf_counter() - start
    whole = all(isinstance(value, bytes) and len(value) == size for value in kept)
    return {"seconds": seconds, "peak": peaks.end() - before, "whole": whole}


def growth(tool: str, wish: Wish, *, progress: str, ceiling: int, shared: bool) -> Answer:
    """One task that takes memory as fast as it can; gwsandbox also says what peak the kernel counted."""
    if not tool.startswith("gwsandbox"):
        answer = calls(tool, wish, count=1, load="grow", arguments=[progress, ceiling, shared])
        return {"peak": None, **answer}
    import gwsandbox as package

    limits = package.Limits(memory=wish["memory"], wall_seconds=wish["wall"])
    result = package.run(loads.grow, (progress, ceiling, shared), limits=limits, backend=wish["backend"])
    usage = result.usage
    source = usage.sources.get("memory_peak_bytes")
    return {"peak": usage.memory_peak_bytes, "source": source, "kinds": [result.outcome.value]}


def commands(tool: str, wish: Wish, *, argv: list[str], count: int) -> Answer:
    """``count`` runs of a program, one after the other."""
    run, terms = COMMANDERS[tool], Terms(**wish)
    cpu, start = cpu_seconds(), time.perf_counter()
    run(argv, count, terms)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu": cpu_seconds() - cpu}
