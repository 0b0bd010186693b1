"""What all subcommands are asked with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from faultlab.process_tree import Role
from faultlab.workload import BackendName, StartMethod


@dataclass(frozen=True, slots=True)
class Options:
    """Of one subcommand.

    Args:
        seed: Of the first round; each further round has the next one.
        rounds: How many rounds; ``None``: as many as ``seconds`` allow.
        seconds: When to begin no further round; ``None``: never.
        backend: How limits are held.
        start_method: ``None``: both.
        json: Where to write the figures.
        point: For "inject": the one fault to inject.
        role: For "inject": whose calls; ``None``: everybody's.
        traced: For "inject": by strace.
        each: For "inject": every call fails in one manner with one errno, by the seed, instead of in all.
        share: Run every n-th round only, as (which, n): for several labs at a time.
        power_cut: For "spool": its disk loses its power, instead of kills.
        batch: For "fuzz": by how much a batch is larger than usual.
        scale: For "table": by how much rounds are more than usual.
        only: For "table": these rows; empty: all.
        manner: For "inject": "once" or "lasting"; ``None``: both.
    """

    seed: int
    rounds: int | None = None
    seconds: float | None = None
    backend: BackendName = "rlimit"
    start_method: StartMethod | None = None
    json: Path | None = None
    point: str | None = None
    manner: str | None = None
    traced: bool = False
    role: Role | None = None
    each: bool = False
    share: tuple[int, int] = (0, 1)
    power_cut: bool = False
    batch: int = 1
    scale: float = 1.0
    only: tuple[str, ...] = ()
    began: float = field(default_factory=time.monotonic)

    def methods(self) -> tuple[StartMethod, ...]:
        """The start methods that were asked for."""
        return (self.start_method,) if self.start_method else ("fork", "forkserver")

    def seeds(self) -> Iterator[int]:
        """The seed of each round."""
        seed = self.seed
        while (self.rounds is None or seed < self.seed + self.rounds) and not self.is_over():
            yield seed
            seed += 1

    def is_over(self) -> bool:
        """Whether the time is up."""
        return self.seconds is not None and time.monotonic() - self.began >= self.seconds

    def repeat(self, subcommand: str, seed: int, *further: str) -> str:
        """The command that repeats one round."""
        method = ["--start-method", self.start_method] if self.start_method else []
        words = ["scripts/faults", subcommand, "--seed", str(seed), "--rounds", "1", "--backend", self.backend]
        return " ".join([*words, *method, *further])
