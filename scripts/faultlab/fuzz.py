"""Whatever reads what others wrote gets inputs that are nearly right: nothing but its documented errors comes out.

A round is a batch of inputs for one reader. The batch says how many it ran, and that is held against how many it was to
run.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import resource
import traceback
from collections import Counter
from collections.abc import Callable, Iterator

from faultlab import driver, readers
from faultlab.driver import Report
from faultlab.options import Options
from faultlab.readers import READERS, Reader
from faultlab.tally import Finding, Kind, Round, Tally

_MEMORY = 512 * 1024**2  # bytes of address space, past which a reader gets MemoryError
_MOST_GROWTH = 256 * 1024  # KiB of resident memory
_MOST_FAILURES = 3  # of one batch
_LONGEST = 300.0  # seconds of one batch


def run(options: Options) -> Tally:
    """All rounds: each reader in turn."""
    tally = Tally("fuzz", unit="inputs")
    ran: Counter[str] = Counter()
    for seed in options.seeds():
        reader = READERS[seed % len(READERS)]
        reader = dataclasses.replace(reader, batch=reader.batch * options.batch)
        ended = driver.run(functools.partial(_drive, reader, seed), longest=_LONGEST)
        report = ended.report or {"ran": 0, "failures": [], "grown": 0}
        ran[reader.name] += report["ran"]
        tally.add(
            Round(
                report["ran"],
                tuple(_findings(reader, ended, report)),
                options.repeat("fuzz", seed, "--batch", str(options.batch)),
            )
        )
    tally.notes += [f"{name}: {count} inputs" for name, count in ran.items()]
    return tally


def _findings(reader: Reader, ended: driver.Ended, report: Report) -> Iterator[Finding]:
    if ended.hung:
        yield Finding(Kind.HUNG, reader.name, ended.log)
    elif report["ran"] != reader.batch:
        text = f"{reader.name}: {report['ran']} of {reader.batch} inputs were read; ended with {ended.exit_code}"
        yield Finding(Kind.WRONG, text, ended.log)
    for text, stack in report["failures"]:
        yield Finding(Kind.WRONG, f"{reader.name}: {text}", stack)
    if report["grown"] > _MOST_GROWTH:
        yield Finding(Kind.LEFT, f"{reader.name} grew by {report['grown']} KiB", ended.log)


def _drive(reader: Reader, seed: int, progress: Callable[[], None]) -> Report:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    rng = random.Random(seed)
    failures: list[tuple[str, str]] = []
    ran = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with readers.folder() as folder:
        for ran in range(1, reader.batch + 1):
            made = reader.make(rng)
            try:
                reader.read(made, folder)
            except reader.errors:
                pass
            except Exception as error:  # noqa: BLE001 - what is not documented is a finding
                if len(failures) < _MOST_FAILURES:
                    failures.append(
                        (f"{type(error).__name__}: {str(error)[:120]} for {made!r:.300}", traceback.format_exc())
                    )
            if ran % 1000 == 0:
                progress()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"ran": ran, "failures": failures, "grown": grown}
