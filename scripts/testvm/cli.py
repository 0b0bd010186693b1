"""The command line of `scripts/vm`."""

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from testvm import VmError, commands, log, recipe
from testvm.boot import Kind

SUMMARY = "A throw-away Linux machine with cgroup v2 and systemd, to run this project's tests where limits are real."
EPILOG = """\
A command runs in a copy of the work tree as it is now (what git tracks or would track, without .git), with the
project's dependencies for Python on PATH and no network. Its exit code is passed on; 125 says that the machine failed.

  scripts/vm test                                  the test suite, as a delegated unit and as an ordinary user
  scripts/vm test -k memory -x                     some of it
  scripts/vm up && scripts/vm exec -- python -m pytest tests/test_cgroup.py
  scripts/vm run --as user -- systemctl --user status
  scripts/vm test --as nspawn -m cgroup2           in a container
  scripts/vm run --suite bookworm --append systemd.unified_cgroup_hierarchy=0 -- gwsandbox doctor

environment:
  GWSANDBOX_VM_ACCEL   tcg (default, works everywhere) or kvm
  GWSANDBOX_VM_EXTRAS  further extras of the project to have in there, such as bench
  GWSANDBOX_VM_CACHE   where images are kept (default: ~/.cache/gwsandbox/vm)
"""
SUITE_HELP = (
    "Debian release; linux-5.10 is bookworm with bullseye's kernel, which lacks cgroup.kill and memory.peak "
    "(default: trixie)"
)
MACHINE_HELP = (
    "qemu: the suite's own kernel on emulated processors (default); uml: User-mode Linux, which starts in seconds "
    "and is several times faster, with one processor, without Landlock and PSI"
)
ROLES = ("unit", "nspawn", "user", "root")
AS_HELP = (
    "unit: root, in a service with Delegate=yes (default); nspawn: root in a container without systemd, in such a "
    "service; user: the ordinary user `tester`, in a service with Delegate=yes of its own manager; root: root in a "
    "scope that is not delegated, as in a login shell"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand; the process's exit code."""
    fill_standard_descriptors()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    options = parse(arguments)
    try:
        code: int = options.command_function(options)
    except VmError as error:
        log(str(error))
        return 125
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone; Python must not write to it at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return code


def fill_standard_descriptors() -> None:
    """Open the missing ones among 0 to 2: otherwise the next file gets such a number, and no child inherits it."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(spare)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line; what `test` does not know goes to pytest."""
    commands_parser = parser()
    options, others = commands_parser.parse_known_args(arguments)
    if options.command_function is commands.test:
        options.pytest = commands.without_dashes(others)
    elif others:
        commands_parser.error(f"unrecognized arguments: {' '.join(others)}")
    return options


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="scripts/vm", description=SUMMARY, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    subparsers = top.add_subparsers(metavar="COMMAND", required=True)
    for name, (function, add_options, text) in SUBCOMMANDS.items():
        # argparse would take pytest's options for abbreviations of ours.
        sub = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command_function=function)
        add_options(sub)
    return top


def build_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--suite", action="append", choices=recipe.SUITES, help="may be repeated (default: trixie)")
    sub.add_argument("--fresh", action="store_true", help="build again even if the cache has it: newer packages")
    sub.add_argument("--prune", action="store_true", help="remove what older recipes left in the cache")


def machine_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--machine", default=Kind.QEMU.value, choices=[kind.value for kind in Kind], help=MACHINE_HELP)
    boot_options(sub)


def boot_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--suite", default="trixie", choices=recipe.SUITES, help=SUITE_HELP)
    sub.add_argument("--memory", metavar="SIZE", help="the machine's memory (default: 6G; uml: 4G)")
    sub.add_argument("--cpus", type=int, default=2, metavar="N", help="the machine's CPUs (default: 2)")
    sub.add_argument(
        "--append", default="", metavar="WORDS", help="more words for the kernel, such as swapaccount=0; one argument"
    )


def order_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--timeout", type=float, metavar="SECONDS", help="of the command, booting not counted")
    sub.add_argument(
        "--env", action="append", default=[], type=variable, metavar="K=V", help="for the command; may be repeated"
    )
    sub.add_argument("--out", type=Path, metavar="DIR", help="gets the files that the command leaves in $OUT")


def run_options(sub: argparse.ArgumentParser) -> None:
    machine_options(sub)
    command_options(sub)


def command_options(sub: argparse.ArgumentParser) -> None:
    order_options(sub)
    sub.add_argument("--as", dest="role", default="unit", choices=ROLES, help=AS_HELP)
    sub.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND [ARG…]")


def test_options(sub: argparse.ArgumentParser) -> None:
    machine_options(sub)
    order_options(sub)
    both = f"{AS_HELP}; without it: unit and then user"
    sub.add_argument("--as", dest="role", choices=ROLES, help=both)
    sub.add_argument("--name", help="a machine that is up, instead of one of its own")
    sub.usage = "%(prog)s [options] [PYTEST ARG…]"


def up_options(sub: argparse.ArgumentParser) -> None:
    machine_options(sub)
    name_option(sub)


def exec_options(sub: argparse.ArgumentParser) -> None:
    name_option(sub)
    command_options(sub)


def down_options(sub: argparse.ArgumentParser) -> None:
    name_option(sub)
    sub.add_argument("--all", action="store_true", help="every machine of yours")


def shell_options(sub: argparse.ArgumentParser) -> None:
    boot_options(sub)
    sub.add_argument(
        "--as", dest="role", default="root", choices=("root", "user"), help="whose shell it is (default: root)"
    )


def name_option(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--name", default="default", help="tells several machines apart (default: default)")


def variable(text: str) -> tuple[str, str]:
    """NAME=VALUE as a pair."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


Function = Callable[[argparse.Namespace], int]
AddOptions = Callable[[argparse.ArgumentParser], None]

SUBCOMMANDS: dict[str, tuple[Function, AddOptions, str]] = {
    "build": (commands.build, build_options, "build the disk images, if they are not in the cache"),
    "test": (
        commands.test,
        test_options,
        "run the test suite in a machine of its own; other arguments go to pytest",
    ),
    "run": (commands.run, run_options, "run a command in a machine of its own"),
    "up": (commands.up, up_options, "start a machine and leave it running, for `exec`"),
    "exec": (commands.exec_, exec_options, "run a command in a machine that is up"),
    "down": (commands.down, down_options, "stop a machine that is up"),
    "status": (commands.status, lambda _: None, "list the machines that are up"),
    "shell": (
        commands.shell,
        shell_options,
        "a shell in a machine of its own, on its console; ends the machine when left",
    ),
}
