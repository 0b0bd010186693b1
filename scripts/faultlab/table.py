"""Every kind of fault, one row after the other, as a table in Markdown with the command that repeats each row."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faultlab.options import Options
from faultlab.tally import Finding, Kind, Round, Tally

_PROGRAM = Path(__file__).parents[1] / "faults"


@dataclass(frozen=True, slots=True)
class Row:
    """A row.

    Args:
        kind: The subcommand.
        rounds: How many, or fewer where there are no more.
        words: Further arguments.
        parts: How it is split where two labs run at a time: by "seeds", "methods" or "share".
        unit: What its JSON counts beside rounds.
    """

    kind: str
    rounds: int
    words: tuple[str, ...] = ()
    parts: str = "seeds"
    unit: str = "tasks"

    def scaled(self, scale: float) -> Row:
        """With more or fewer rounds."""
        return dataclasses.replace(self, rounds=math.ceil(self.rounds * scale))

    def command(self, options: Options) -> list[str]:
        """What repeats it."""
        rounds = ["--rounds", str(self.rounds)]
        return [self.kind, "--seed", str(options.seed), *rounds, "--backend", options.backend, *self.words]

    def halves(self, options: Options) -> list[list[str]]:
        """The commands of two labs that do it together."""
        if self.parts == "share":
            return [[*self.command(options), "--share", f"{which}/2"] for which in (0, 1)]
        first = dataclasses.replace(self, rounds=-(-self.rounds // 2))
        second = dataclasses.replace(self, rounds=self.rounds - first.rounds)
        if self.parts == "methods":
            halves = zip((first, second), ("fork", "forkserver"), strict=True)
            return [[*half.command(options), "--start-method", method] for half, method in halves if half.rounds]
        later = dataclasses.replace(options, seed=options.seed + first.rounds)
        return [half.command(of) for half, of in ((first, options), (second, later)) if half.rounds]


ROWS = (
    Row("kill", 2000),
    Row("interrupt", 2000),
    Row("inject", 4000, ("--each",), parts="share"),  # more than there are calls
    Row("soak", 200, parts="methods"),
    Row("states", 200, parts="methods", unit="uses"),
    Row("fuzz", 42, ("--batch", "8"), unit="inputs"),
    Row("spool", 50, unit="inputs"),
)
_COLUMNS = ("faults", "backend", "rounds", "what", *map(str, Kind), "minutes", "command")


def run(options: Options) -> Tally:
    """All rows, or those that were asked for."""
    tally = Tally("table")
    for row in ROWS:
        if not options.only or row.kind in options.only:
            began = time.monotonic()
            found = _run(row.scaled(options.scale), options)
            cells = _cells(row.scaled(options.scale), options, found, (time.monotonic() - began) / 60)
            print(_line(cells), flush=True)
            tally.notes.append(_line(cells))
            tally.rounds += found["rounds"]
            tally.add(_as_round(row, found))
    tally.notes[:0] = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    return tally


def _run(row: Row, options: Options) -> Mapping[str, Any]:
    """The figures of a row, of two labs at a time. By the cgroup backend of one, which looks at all run groups."""
    commands = [row.command(options)] if options.backend == "cgroup" else row.halves(options)
    with tempfile.TemporaryDirectory(prefix="faultlab-") as folder:
        reports = [Path(folder) / str(number) for number in range(len(commands))]
        labs = [
            subprocess.Popen([sys.executable, str(_PROGRAM), *words, "--json", str(report)])
            for words, report in zip(commands, reports, strict=True)
        ]
        for lab in labs:
            lab.wait()
        for words, report in zip(commands, reports, strict=True):
            if not report.exists():
                raise SystemExit(f"scripts/faults {' '.join(words)}: ended without a report")
        return _sum([json.loads(report.read_text()) for report in reports])


def _sum(reports: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    figures: Counter[str] = Counter()
    for report in reports:
        figures.update({key: value for key, value in report.items() if isinstance(value, int)})
    bad = [one for report in reports for one in report["bad"]]
    return {**figures, "bad": bad, "notes": [note for report in reports for note in report["notes"]]}


def _cells(row: Row, options: Options, found: Mapping[str, Any], minutes: float) -> list[str]:
    kills = sum(int(note.partition(" ")[0]) for note in found["notes"] if note.endswith(" kills"))
    what = f"{found.get(row.unit, 0):,} {row.unit}" + (f", {kills} kills" if kills else "")
    kinds = [str(found.get(str(kind), 0)) for kind in Kind]
    command = " ".join(["scripts/faults", *row.command(options)])
    return [row.kind, options.backend, f"{found['rounds']:,}", what, *kinds, f"{minutes:.1f}", f"`{command}`"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _as_round(row: Row, found: Mapping[str, Any]) -> Round:
    """What is bad of a row, which its labs have printed."""
    findings = [
        Finding(Kind(one["kind"]), one["text"], one["evidence"]) for bad in found["bad"] for one in bad["findings"]
    ]
    return Round(found.get("tasks", 0), tuple(findings[:1]), f"scripts/faults {row.kind}: {len(findings)} findings")
