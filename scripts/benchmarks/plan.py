"""How much a run of the bench measures."""

from dataclasses import dataclass
from pathlib import Path

from benchmarks.messages import Backend

MIB = 1024**2
GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much to measure.

    Args:
        backend: Of gwsandbox.
        quick: So little that the figures mean nothing: it shows that everything runs.
        full: With what takes many minutes.
        emulated: The processor is software: fewer rounds, smaller sizes.
        rounds: Of each contender.
        earlier: Folder of another commit of gwsandbox, which is measured in turns with this one; ``None``: none is.
        earlier_name: What it is called in the table.
    """

    backend: Backend
    quick: bool
    full: bool
    emulated: bool
    rounds: int
    earlier: Path | None = None
    earlier_name: str = ""

    def pick(self, native: int, emulated: int, quick: int) -> int:
        """The one of three numbers that this plan is for."""
        if self.quick:
            return quick
        return emulated if self.emulated else native

    @property
    def result_size(self) -> int:
        """P6: bytes of each result."""
        return self.pick(256, 32, 8) * MIB

    @property
    def memory_limit(self) -> int:
        """P8: bytes of the limit that a task runs into."""
        return self.pick(512, 64, 64) * MIB

    @property
    def heap(self) -> int:
        """P4: bytes that the caller holds."""
        return self.pick(2048, 256, 64) * MIB

    @property
    def large_run(self) -> int:
        """P3: tasks of a long run."""
        return self.pick(3000, 400, 40)

    @property
    def small_run(self) -> int:
        """P3: tasks of the short run beside it."""
        return self.pick(200, 100, 10)

    @property
    def few_rounds(self) -> int:
        """Rounds of what takes seconds each."""
        return min(self.rounds, 3)


def size_text(size: float) -> str:
    """A number of bytes in GiB or MiB."""
    return f"{size / GIB:g} GiB" if size >= GIB else f"{size / MIB:g} MiB"
