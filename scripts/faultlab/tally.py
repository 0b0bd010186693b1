"""What the rounds of one subcommand came to: five figures, and each bad round with the command that repeats it."""

from __future__ import annotations

import enum
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path


class Kind(enum.StrEnum):
    """How a round can go wrong."""

    LOST = "lost"  # a task has no result, or more than one
    LEFT = "left"  # a process, cgroup, file or descriptor is left
    HUNG = "hung"  # it does not end
    WRONG = "wrong"  # a result is not true, or an error says nothing


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that went wrong.

    Args:
        kind: How.
        text: What was seen, in one line.
        evidence: Further lines: stacks, logs.
    """

    kind: Kind
    text: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Round:
    """What one round came to.

    Args:
        tasks: How many tasks it queued.
        findings: What went wrong.
        command: What repeats it.
        reached: Whether the fault came about.
    """

    tasks: int
    findings: tuple[Finding, ...]
    command: str
    reached: bool = True


@dataclass(slots=True)
class Tally:
    """The figures of one subcommand, and its bad rounds."""

    name: str
    unit: str = "tasks"
    rounds: int = 0
    tasks: int = 0
    reached: int = 0
    kinds: Counter[Kind] = field(default_factory=Counter)
    bad: list[Round] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, done: Round) -> None:
        """Count a round, and print it where it is bad: a long run is read while it goes on."""
        self.rounds += 1
        self.tasks += done.tasks
        self.reached += done.reached
        self.kinds.update(finding.kind for finding in done.findings)
        if done.findings:
            self.bad.append(done)
            print(
                done.command, *(f"  {finding.kind}: {finding.text}" for finding in done.findings), sep="\n", flush=True
            )

    @property
    def exit_code(self) -> int:
        return 1 if self.bad else 0

    def lines(self) -> Iterator[str]:
        """The table."""
        figures = {"rounds": self.rounds, self.unit: self.tasks} | {str(kind): self.kinds[kind] for kind in Kind}
        yield "  ".join(["subcommand".ljust(10), *(name.rjust(8) for name in figures)])
        yield "  ".join([self.name.ljust(10), *(str(number).rjust(8) for number in figures.values())])
        yield from self.notes

    def write(self, path: Path) -> None:
        """Write all of it as JSON."""
        content = {
            "subcommand": self.name,
            "rounds": self.rounds,
            self.unit: self.tasks,
            **{str(kind): self.kinds[kind] for kind in Kind},
            "notes": self.notes,
            "bad": [_as_json(done) for done in self.bad],
        }
        path.write_text(json.dumps(content, indent=1) + "\n")


def _as_json(done: Round) -> dict[str, object]:
    findings = [{"kind": one.kind, "text": one.text, "evidence": one.evidence} for one in done.findings]
    return {"command": done.command, "findings": findings}


def grouped(rounds: Iterable[Round]) -> Counter[str]:
    """How often each text was found, figures left out: what is the same fault, once."""
    return Counter(
        "".join("#" if letter.isdigit() else letter for letter in f"{finding.kind}: {finding.text}")
        for done in rounds
        for finding in done.findings
    )
