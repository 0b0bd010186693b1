"""The command line of scripts/faults."""

from __future__ import annotations

import argparse
import importlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from faultlab.options import Options
from faultlab.process_tree import Role
from faultlab.tally import Tally

SUBCOMMANDS = {
    "inject": "each system call of each role fails, with each errno, once and lasting",
    "soak": "many tasks of all sorts in one block; memory and descriptors stay flat (a round: 500 tasks)",
    "fuzz": "readers of what others wrote, by inputs that are nearly right (a round: a batch for one reader)",
    "spool": "files through the service while it is killed again and again (a round: 20 files)",
    "states": "random uses of the manager, against a model (a round: one sequence of uses)",
    "interrupt": "Ctrl-C, or a signal handler that raises, at any bytecode of the caller",
    "table": "all of these, the long forms, as a table in Markdown",
    "kill": "signals to each process and each pair, at random moments",
}


class _Subcommand(Protocol):
    def run(self, options: Options) -> Tally: ...


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; 1 where a round went wrong."""
    asked = _parse(arguments)
    if asked.subcommand == "table":
        asked.seed = asked.seed or 1
    rounds = asked.rounds if asked.rounds or asked.seconds else 100
    options = Options(
        seed=random.randrange(10**9) if asked.seed is None else asked.seed,
        rounds=rounds,
        seconds=asked.seconds,
        backend=asked.backend,
        start_method=asked.start_method,
        json=asked.json,
        point=getattr(asked, "point", None),
        manner=getattr(asked, "manner", None),
        traced=getattr(asked, "traced", False),
        role=getattr(asked, "role", None),
        each=getattr(asked, "each", False),
        share=getattr(asked, "share", (0, 1)),
        power_cut=getattr(asked, "power_cut", False),
        batch=getattr(asked, "batch", 1),
        scale=getattr(asked, "rounds_scale", 1.0),
        only=tuple(getattr(asked, "only", ())),
    )
    print(f"seed {options.seed}", flush=True)
    subcommand = cast("_Subcommand", importlib.import_module(f"faultlab.{asked.subcommand}"))
    tally = subcommand.run(options)
    print("\n".join(tally.lines()))
    if options.json:
        tally.write(options.json)
    return tally.exit_code


def _share(text: str) -> tuple[int, int]:
    which, _, of = text.partition("/")
    return int(which), int(of)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/faults", description=__doc__)
    subparsers = parser.add_subparsers(dest="subcommand", required=True)
    for name, text in SUBCOMMANDS.items():
        one = subparsers.add_parser(name, help=text, description=text)
        one.add_argument("--seed", type=int, metavar="N", help="of the first round (default: a random one)")
        one.add_argument("--rounds", type=int, metavar="N", help="how many (default: 100)")
        one.add_argument("--seconds", type=float, metavar="S", help="begin no further round after so many")
        one.add_argument("--backend", choices=("rlimit", "cgroup"), default="rlimit")
        one.add_argument("--start-method", choices=("fork", "forkserver"), help="(default: both)")
        one.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
        if name == "inject":
            one.add_argument("--point", metavar="ROLE:CALL:N:ERRNO:MANNER", help="the one fault to inject")
            one.add_argument("--traced", action="store_true", help="the kernel's own calls, by strace: a check")
            one.add_argument("--role", type=Role, choices=tuple(Role), help="whose calls (default: everybody's)")
            one.add_argument("--manner", choices=("once", "lasting"), help="(default: both)")
            one.add_argument("--each", action="store_true", help="each call in one way, which the seed chooses")
            one.add_argument("--share", type=_share, default=(0, 1), metavar="K/N", help="every N-th, from the K-th on")
        elif name == "spool":
            one.add_argument("--power-cut", action="store_true", help="the disk loses its power, once a round; as root")
        elif name == "fuzz":
            one.add_argument("--batch", type=int, default=1, metavar="N", help="inputs of a round: N times as many")
        elif name == "table":
            one.add_argument("--rounds-scale", type=float, default=1.0, metavar="X", help="X times as many rounds")
            one.add_argument(
                "--only",
                nargs="+",
                default=(),
                choices=[name for name in SUBCOMMANDS if name != "table"],
                help="these rows",
            )
    return parser.parse_args(arguments)
