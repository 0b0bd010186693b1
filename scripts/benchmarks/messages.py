"""What the bench and a side send each other: plain dictionaries, because a side marshals them.

The types cost a side nothing where only a type checker imports this module.
"""

from typing import Literal, TypedDict

Backend = Literal["auto", "cgroup", "rlimit"]


class Terms(TypedDict):
    """How tasks run. A tool leaves out what it cannot hold.

    Keys:
        workers: Tasks at a time.
        memory: Limit in bytes, or `None`.
        wall: Limit in seconds, or `None`.
        pids: Limit, or `None`.
        backend: Of gwsandbox.
    """

    workers: int
    memory: int | None
    wall: float | None
    pids: int | None
    backend: Backend


class Wish(TypedDict):
    """The first message to a side: what it is. `heap` is what it holds: "bytes" or "objects", and the size in bytes."""

    work: str
    tool: str
    terms: Terms
    heap: tuple[str, int] | None


class Sample(TypedDict):
    """A moment of a long run: tasks done, seconds since its start, and by process its memory and descriptors."""

    done: int
    seconds: float
    holdings: dict[str, tuple[int, int]]


class Answer(TypedDict, total=False):
    """What came of a round. Each kind of work has its own keys; see `worker.floors` and `worker.works`.

    Keys:
        absent: Why there is nothing else.
        pid: Of the side, in its first answer.
        seconds: Wall-clock time of all tasks together.
        cpu: CPU time in seconds of the side and all that it waited for.
        faults: Page faults of the same processes.
        kinds: The types of the results, or the outcomes.
        samples: Of a long run.
        peak: Memory in bytes, or `None` where the tool does not say.
        source: Where gwsandbox has the peak from.
        whole: Whether all results came complete.
    """

    absent: str
    pid: int
    seconds: float
    cpu: float
    faults: int
    kinds: list[str]
    samples: list[Sample]
    peak: int | None
    source: str | None
    whole: bool


def terms(
    *,
    workers: int = 1,
    memory: int | None = None,
    wall: float | None = None,
    pids: int | None = None,
    backend: Backend = "auto",
) -> Terms:
    """The terms with defaults: one worker, no limits."""
    return {"workers": workers, "memory": memory, "wall": wall, "pids": pids, "backend": backend}
