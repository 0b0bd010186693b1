"""One round of work in a side: what is timed, and what of this process is looked at meanwhile."""

import fcntl
import gc
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any

from benchlib import loads, proc
from benchlib.tools import CALLERS, COMMANDERS, Call, Terms

Answer = dict[str, Any]

_PIPE = 1 << 20
_SAMPLES = 20


def make_heap(kind: str, size: int) -> object:
    """About ``size`` bytes of live heap: "bytes", one touched block; "objects", small lists of one number."""
    if kind == "bytes":
        return bytearray(b"x" * (1 << 20)) * (size >> 20)
    gc.disable()
    try:
        # A list with the collector's head, its items, the number, our pointer.
        each = 56 + 16 + 8 + 32 + 8
        return [[number] for number in range(1000, 1000 + size // each)]
    finally:
        gc.enable()


def _cpu() -> float:
    """CPU time of this process and of all that was waited for, by itself or by children that were."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def _calls(load: str, arguments: list[Any], count: int) -> Iterator[Call]:
    function = getattr(loads, load)
    for _ in range(count):
        yield function, tuple(arguments)


def calls(
    tool: str, terms: Terms, *, count: int, load: str = "noop", arguments: list[Any] | None = None
) -> Answer:
    """``count`` calls; how long they took together, and what kinds of results came."""
    cpu, start = _cpu(), time.perf_counter()
    kinds = {type(value).__name__ for value in CALLERS[tool](_calls(load, arguments or [], count), terms)}
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu": _cpu() - cpu, "kinds": sorted(kinds)}


def long_run(tool: str, terms: Terms, *, count: int, keep: bool = False) -> Answer:
    """``count`` no-ops, and what this process and its supervisor hold as the run goes on.

    With ``keep`` something is kept of each, as a caller does that collects results.
    """
    cpu, start = _cpu(), time.perf_counter()
    samples, kept = [], []
    for done, value in enumerate(CALLERS[tool](_calls("noop", [], count), terms), 1):
        if keep:
            kept.append([value, done, bytearray(4096)])
        if done % max(count // _SAMPLES, 1) == 0:
            samples.append({"done": done, "seconds": time.perf_counter() - start, **_holdings()})
    return {"seconds": time.perf_counter() - start, "cpu": _cpu() - cpu, "samples": samples}


def _holdings() -> Answer:
    """Memory and descriptors of this process, and of gwsandbox's supervisor below it."""
    own = os.getpid()
    found = {"caller_bytes": proc.resident(own), "caller_descriptors": proc.descriptors(own)}
    keeper = next(iter(sorted(proc.children(own))), None)
    supervisor = None if keeper is None else next(iter(sorted(proc.children(keeper))), None)
    if supervisor is not None:
        found["supervisor_bytes"] = proc.resident(supervisor)
        found["supervisor_descriptors"] = proc.descriptors(supervisor)
    return found


def big_values(tool: str, terms: Terms, *, size: int, count: int) -> Answer:
    """``count`` values of ``size`` bytes, all kept; the peak of this process's memory above what it had."""
    before = _start_peak()
    start = time.perf_counter()
    kept = list(CALLERS[tool](_calls("make_bytes", [size], count), terms))
    seconds = time.perf_counter() - start
    whole = all(isinstance(value, bytes) and len(value) == size for value in kept)
    return {"seconds": seconds, "peak": proc.status_bytes(os.getpid(), "VmHWM") - before, "whole": whole}


def piped_values(_tool: str, _terms: Terms, *, size: int, count: int) -> Answer:
    """The floor of ``big_values``: fork, make the bytes, and a pipe of 1 MiB into one buffer."""
    before = _start_peak()
    start = time.perf_counter()
    kept = [_through_pipe(size) for _ in range(count)]
    seconds = time.perf_counter() - start
    whole = all(value[:1] == value[-1:] == b"x" for value in kept)
    return {"seconds": seconds, "peak": proc.status_bytes(os.getpid(), "VmHWM") - before, "whole": whole}


def _start_peak() -> int:
    proc.forget_peak()
    return proc.resident(os.getpid())


def _through_pipe(size: int) -> bytearray:
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE)
    pid = os.fork()
    if pid == 0:
        view = memoryview(loads.make_bytes(size))
        while view:
            view = view[os.write(writer, view) :]
        os._exit(0)
    os.close(writer)
    buffer = bytearray(size)
    with open(reader, "rb", buffering=0) as file:
        view, filled = memoryview(buffer), 0
        while filled < size and (got := file.readinto(view[filled:])):
            filled += got
    os.waitpid(pid, 0)
    return buffer


def growth(tool: str, terms: Terms, *, progress: str, ceiling: int, shared: bool) -> Answer:
    """One task that takes memory as fast as it can; gwsandbox also says what peak the kernel counted."""
    if not tool.startswith("gwsandbox"):
        answer = calls(tool, terms, count=1, load="grow", arguments=[progress, ceiling, shared])
        return {"peak": None, **answer}
    import gwsandbox as package

    limits = package.Limits(memory=terms.memory, wall_seconds=terms.wall)
    options: dict[str, Any] = {"backend": terms.backend}
    result = package.run(loads.grow, (progress, ceiling, shared), limits=limits, **options)
    usage = result.usage
    source = usage.sources.get("memory_peak_bytes")
    return {"peak": usage.memory_peak_bytes, "source": source, "kinds": [result.outcome.value]}


def commands(tool: str, terms: Terms, *, argv: list[str], count: int) -> Answer:
    """``count`` runs of a program, one after the other."""
    cpu, start = _cpu(), time.perf_counter()
    COMMANDERS[tool](argv, count, terms)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "cpu": _cpu() - cpu}


WORKS: dict[str, Callable[..., Answer]] = {
    "calls": calls,
    "long run": long_run,
    "big values": big_values,
    "piped values": piped_values,
    "growth": growth,
    "commands": commands,
}
