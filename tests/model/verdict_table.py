"""What ``judge`` and ``explain`` must say, as a table; run against the real module and against broken ones.

A row is (name, evidence, outcome, words of the explanation). Enum members are given by name, so that the
table can be held against any copy of the module.
"""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

ASKED = {
    "wall_seconds": 2.5,
    "cpu_seconds": 3.0,
    "memory": 200 * 1024**2,
    "output": 16 * 1024**2,
    "file_size": 4096,
    "pids": 64,
}

OWN_OOM: dict[str, Any] = {"oom_events": 1, "oom_kills": 2, "oom_kills_local": 2}
ANCESTORS_OOM: dict[str, Any] = {"oom_kills": 1, "oom_kills_local": 1}
NESTED_OOM: dict[str, Any] = {"oom_kills": 1}
REFUSAL = "much was reserved"
NEAR_MISS: dict[str, Any] = {"oom_events": 3}  # the limit was reached, and what was reclaimed was enough

FATAL = [signal.Signals[f"SIG{name}"] for name in ["SEGV", "ABRT", "BUS", "FPE", "ILL", "SYS", "TRAP", "XFSZ", "XCPU"]]
FROM_OUTSIDE = sorted({signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE, signal.SIGALRM, signal.SIGUSR1, signal.SIGRTMIN, signal.SIGRTMAX})  # fmt: skip


class Row(NamedTuple):
    name: str
    evidence: dict[str, Any]
    outcome: str
    words: str = ""


def row(name: str, outcome: str, words: str, **evidence: Any) -> Row:
    return Row(name, evidence, outcome, words)


ROWS = [
    # --- it ended by itself -----------------------------------------------------------------------------
    row("returned", "SUCCEEDED", "", exit_code=0, delivery="VALUE"),
    row("program ended well", "SUCCEEDED", "", exit_code=0, is_command=True),
    row("raised", "FAILED", "the function raised", exit_code=1, delivery="RAISED"),
    row("raised SystemExit(0)", "FAILED", "the function raised", exit_code=0, delivery="RAISED"),
    row("raised MemoryError, nothing of ours refused", "FAILED", "the function raised", exit_code=1, delivery="NO_MEMORY"),
    row("value cannot travel", "FAILED", "could not be sent back", exit_code=1, delivery="NOT_TRANSFERABLE"),
    row("os._exit(0) without a result", "FAILED", "exited with code 0 before the function returned", exit_code=0),
    row("os._exit(7)", "FAILED", "exited with code 7 before the function returned", exit_code=7),
    row("returned, and exited otherwise", "SUCCEEDED", "the function returned, and exited with code 7 later", exit_code=7, delivery="VALUE"),
    row("its record found no room", "FAILED", "what it gave is lost: No space left on device [errno 28]", exit_code=113, write_errno=28),
    row("its record was sealed", "FAILED", "what it gave is lost: Operation not permitted [errno 1]", exit_code=0, write_errno=1),
    row("its result descriptor was lost", "FAILED", "the task had closed or replaced the descriptor of its result", exit_code=113),
    row("a program's exit code of that number", "FAILED", "exit code 113", exit_code=113, is_command=True),
    row("program failed", "FAILED", "exit code 3", exit_code=3, is_command=True),
    row("program exits like a signal", "FAILED", "exit code 137", exit_code=137, is_command=True),
    row("program not found", "FAILED", "could not be executed", exit_code=127, delivery="NOT_EXECUTED", is_command=True),
    row("program left a value", "SUCCEEDED", "", exit_code=0, delivery="VALUE", is_command=True),
    # --- limits of ours ---------------------------------------------------------------------------------
    row("deadline", "TIMED_OUT", "wall-clock limit of 2.5 s reached; raise --timeout", exit_code=-9, reason="DEADLINE"),
    row("deadline, by another signal", "TIMED_OUT", "2.5 s", exit_code=-15, reason="DEADLINE"),
    row("deadline of a program that could not start", "TIMED_OUT", "2.5 s", exit_code=-9, reason="DEADLINE", delivery="NOT_EXECUTED", is_command=True),
    row("deadline and OOM", "TIMED_OUT", "2.5 s", exit_code=-9, reason="DEADLINE", **OWN_OOM),
    row("returned in the deadline's instant", "SUCCEEDED", "", exit_code=0, reason="DEADLINE", delivery="VALUE"),
    row("raised in the deadline's instant", "FAILED", "the function raised", exit_code=1, reason="DEADLINE", delivery="RAISED"),
    row("program ended in the deadline's instant", "SUCCEEDED", "", exit_code=0, reason="DEADLINE", is_command=True),
    row("SIGTERM at the deadline, program cleaned up", "TIMED_OUT", "2.5 s", exit_code=0, reason="DEADLINE", is_command=True, asked_to_end=True),
    row("SIGTERM at the deadline, and the function returned", "SUCCEEDED", "", exit_code=0, reason="DEADLINE", delivery="VALUE", asked_to_end=True),
    row("CPU time by our look", "CPU_TIME_EXCEEDED", "CPU-time limit of 3 s used up; raise --cpu-time", exit_code=-9, reason="CPU_TIME"),
    row("CPU time by SIGXCPU", "CPU_TIME_EXCEEDED", "3 s", exit_code=-signal.SIGXCPU, cpu_limited=True),
    row("SIGXCPU that was not ours", "CRASHED", "crashed with SIGXCPU: a limit was reached that the task or the caller has set (ulimit -t)", exit_code=-signal.SIGXCPU),
    row("memory by our look", "OUT_OF_MEMORY", "memory limit of 200 MiB reached; raise --memory", exit_code=-9, reason="MEMORY"),
    row("memory by the kernel", "OUT_OF_MEMORY", "memory limit of 200 MiB reached; raise --memory", exit_code=-9, **OWN_OOM),
    row("a descendant OOM-killed, it returned", "OUT_OF_MEMORY", "by a descendant, which the kernel killed", exit_code=0, delivery="VALUE", **OWN_OOM),
    row("a descendant OOM-killed, program failed", "OUT_OF_MEMORY", "by a descendant", exit_code=1, is_command=True, **OWN_OOM),
    row("allocation refused", "OUT_OF_MEMORY", "200 MiB reached: an allocation was refused", exit_code=1, delivery="NO_MEMORY", memory_refused=True),
    row("raised something else under a limit", "FAILED", "the function raised", exit_code=1, delivery="RAISED", memory_refused=True),
    row("allocation refused, exit code 0", "OUT_OF_MEMORY", "an allocation was refused", exit_code=0, delivery="NO_MEMORY", memory_refused=True),
    row("killed from outside, with limits", "KILLED", "SIGKILL", exit_code=-9, cpu_limited=True, file_size_limited=True),
    row("crashed, with limits", "CRASHED", "crashed with SIGSEGV", exit_code=-11, cpu_limited=True, file_size_limited=True),
    row("an allocation was refused, then it crashed", "OUT_OF_MEMORY", "an allocation was refused", exit_code=-11, delivery="NO_MEMORY", memory_refused=True),
    row("output", "OUTPUT_EXCEEDED", "more than 16 MiB written to stdout and stderr; raise --output-limit", exit_code=-9, reason="OUTPUT", is_command=True),
    row("output found after a good end", "OUTPUT_EXCEEDED", "16 MiB", exit_code=0, reason="OUTPUT", is_command=True),
    row("output and OOM", "OUTPUT_EXCEEDED", "16 MiB", exit_code=-9, reason="OUTPUT", **OWN_OOM),
    row("file size by SIGXFSZ", "CRASHED", "a file grew to the limit of 4 KiB; raise --file-size", exit_code=-signal.SIGXFSZ, file_size_limited=True),
    row("SIGXFSZ that was not ours", "CRASHED", "crashed with SIGXFSZ: a limit was reached that the task or the caller has set (ulimit -f)", exit_code=-signal.SIGXFSZ),
    row("processes by our look", "KILLED", "more than 64 processes and threads at a time; raise --pids", exit_code=-9, reason="PIDS"),
    row("program ended with too many processes", "SUCCEEDED", "", exit_code=0, reason="PIDS", is_command=True),
    row("processes by our look after the value", "SUCCEEDED", "the limit of 64 processes and threads ended what it left", exit_code=-9, reason="PIDS", delivery="VALUE"),
    row("cancelled", "CANCELLED", "ended by the caller", exit_code=-9, reason="CANCELLED"),
    row("returned in the instant of cancelling", "SUCCEEDED", "", exit_code=0, reason="CANCELLED", delivery="VALUE"),
    # --- memory of others -------------------------------------------------------------------------------
    row("ancestor's or host's OOM", "KILLED", "not for this task's own limit", exit_code=-9, **ANCESTORS_OOM),
    row("OOM of all tasks together", "KILLED", "as all tasks together reached total_memory of 4 GiB", exit_code=-9, total_memory=4 * 1024**3, **ANCESTORS_OOM),
    row("SIGKILL beside total_memory", "KILLED", "ended by SIGKILL, sent by itself or from outside", exit_code=-9, total_memory=4 * 1024**3),
    row("ancestor's OOM took a descendant", "SUCCEEDED", "", exit_code=0, delivery="VALUE", **ANCESTORS_OOM),
    row("nested group's OOM, survived", "SUCCEEDED", "", exit_code=0, delivery="VALUE", **NESTED_OOM),
    row("nested group's OOM, killed", "KILLED", "in a cgroup that the task made itself", exit_code=-9, **NESTED_OOM),
    row("limit reached and reclaimed", "SUCCEEDED", "", exit_code=0, delivery="VALUE", **NEAR_MISS),
    row("limit reached and reclaimed, then killed", "KILLED", "SIGKILL", exit_code=-9, **NEAR_MISS),
    row("near miss, and a nested group's OOM", "KILLED", "made itself", exit_code=-9, oom_events=1, oom_kills=1),
    row("near miss, and a nested group's OOM, survived", "SUCCEEDED", "", exit_code=0, delivery="VALUE", oom_events=1, oom_kills=1),
    # --- what came after a whole record changes nothing of it ---------------------------------------------
    row("grace was over", "SUCCEEDED", "the function returned, and what it left was ended after 2 s: thread 'Thread-1'", exit_code=-14, delivery="VALUE", unfinished="thread 'Thread-1'"),
    row("grace was over, nothing known", "SUCCEEDED", "what it left was ended after 2 s: its last output", exit_code=-14, delivery="VALUE"),
    row("deadline after the value", "SUCCEEDED", "the wall-clock limit of 2.5 s ended what it left: an exit function", exit_code=-9, reason="DEADLINE", delivery="VALUE", unfinished="an exit function"),
    row("CPU time used up after the value", "SUCCEEDED", "the CPU-time limit of 3 s ended what it left", exit_code=-9, reason="CPU_TIME", delivery="VALUE"),
    row("memory by our look after the value", "SUCCEEDED", "the memory limit of 200 MiB ended what it left", exit_code=-9, reason="MEMORY", delivery="VALUE"),
    row("cancelled after the value", "SUCCEEDED", "the caller ended what it left", exit_code=-9, reason="CANCELLED", delivery="VALUE"),
    row("killed from outside after the value", "SUCCEEDED", "SIGKILL ended what it left", exit_code=-9, delivery="VALUE"),
    row("crashed after the value", "SUCCEEDED", "SIGSEGV ended what it left", exit_code=-11, delivery="VALUE"),
    row("memory by the kernel after the value", "SUCCEEDED", "SIGKILL ended what it left", exit_code=-9, delivery="VALUE", **OWN_OOM),
    row("deadline after it raised", "FAILED", "the function raised (and the wall-clock limit of 2.5 s ended what it left)", exit_code=-9, reason="DEADLINE", delivery="RAISED"),
    row("killed after its value could not travel", "FAILED", "its value could not be sent back (and SIGKILL ended what it left)", exit_code=-9, delivery="NOT_TRANSFERABLE"),
    row("output, value was there", "OUTPUT_EXCEEDED", "16 MiB", exit_code=-9, reason="OUTPUT", delivery="VALUE"),
    row("killed by who is known", "KILLED", "ended by SIGKILL, sent by a daemon", exit_code=-9, killer="a daemon"),
    # --- allocations that may have been refused ---------------------------------------------------------
    row("program failed near RLIMIT_DATA", "FAILED", "exit code 3; much was reserved", exit_code=3, is_command=True, refusal=REFUSAL),
    row("crashed near RLIMIT_DATA", "CRASHED", "SIGSEGV; much was reserved", exit_code=-11, refusal=REFUSAL),
    row("refused near RLIMIT_DATA", "OUT_OF_MEMORY", "needs more; much was reserved", exit_code=1, delivery="NO_MEMORY", memory_refused=True, refusal=REFUSAL),
    row("ended well near RLIMIT_DATA", "SUCCEEDED", "", exit_code=0, is_command=True, refusal=REFUSAL),
    # --- signals ----------------------------------------------------------------------------------------
    row("killed from outside", "KILLED", "ended by SIGKILL, sent by itself or from outside", exit_code=-9),
    row("killed by a signal without a name", "KILLED", "ended by signal 40", exit_code=-40),
    *(row(f"fatal {n.name}", "CRASHED", f"crashed with {n.name}", exit_code=-n) for n in FATAL),
    *(row(f"fatal {n.name} of a program", "CRASHED", n.name, exit_code=-n, is_command=True) for n in FATAL),
    *(row(f"ended by signal {n}", "KILLED", "not by gwsandbox", exit_code=-n) for n in FROM_OUTSIDE),
    # --- ours -------------------------------------------------------------------------------------------
    row("a step failed", "SANDBOX_ERROR", "", exit_code=125, delivery="STEP_FAILED"),
    row("no room for the value", "SANDBOX_ERROR", "send value back: it is larger than the hard RLIMIT_FSIZE", exit_code=0, delivery="NO_ROOM"),
    row("a step failed, then the deadline came", "SANDBOX_ERROR", "", exit_code=-9, delivery="STEP_FAILED", reason="DEADLINE"),
    row("a step failed for want of memory", "SANDBOX_ERROR", "", exit_code=125, delivery="STEP_FAILED", **OWN_OOM),
]  # fmt: skip


def evidence_of(module: ModuleType, parts: dict[str, Any]) -> Any:
    made = dict(parts)
    for name, enum in (("reason", module.Reason), ("delivery", module.Delivery)):
        if made.get(name) is not None:
            made[name] = enum[made[name]]
    return module.Evidence(**made)


def check_row(module: ModuleType, row: Row) -> None:
    evidence = evidence_of(module, row.evidence)
    outcome = module.judge(evidence)
    assert outcome.name == row.outcome, row.name
    text = module.explain(evidence, outcome, ASKED)
    assert row.words in text, (row.name, text)
    assert bool(text) == needs_words(evidence, row.outcome), (row.name, text)


def needs_words(evidence: Any, outcome: str) -> bool:
    """Whether there is something to say: of a success only what came after a call's record."""
    if outcome == "SUCCEEDED":
        return evidence.exit_code != 0 and not evidence.is_command
    return outcome != "SANDBOX_ERROR" or evidence.delivery.name == "NO_ROOM"


def everything_that_can_occur(module: ModuleType) -> Iterator[Any]:
    """Every combination of evidence that a supervisor can have in its hands."""
    for reason, delivery, exit_code, oom, is_command, flags in itertools.product(
        [None, *module.Reason],
        module.Delivery,
        [0, 1, 7, 113, 126, 127, 137, 255, *(-n for n in signal.valid_signals())],
        [{}, OWN_OOM, ANCESTORS_OOM, NESTED_OOM, NEAR_MISS],
        [False, True],
        [{}, {"memory_refused": True}, {"cpu_limited": True, "file_size_limited": True}],
    ):
        yield module.Evidence(
            reason=reason, delivery=delivery, exit_code=exit_code, is_command=is_command, **oom, **flags
        )
