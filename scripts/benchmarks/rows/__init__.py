"""The rows of the table, by name; each is a function from the plan to the row."""

from collections.abc import Callable

from benchmarks.plan import Plan
from benchmarks.row import Row
from benchmarks.rows import (
    deadline,
    executor,
    hardening,
    heap,
    leftovers,
    memory,
    no_op,
    programs,
    rest,
    results,
    run_length,
)

ROWS: dict[str, Callable[[Plan], Row]] = {
    "P1": no_op.p1,
    "P2": no_op.p2,
    "P3": run_length.p3,
    "P4": heap.p4,
    "P5": rest.p5,
    "P6": results.p6,
    "P7": deadline.p7,
    "P8": memory.p8,
    "P9": leftovers.p9,
    "P10": programs.p10,
    "P11": programs.p11,
    "P12": hardening.p12,
    "P14": executor.p14,
}
