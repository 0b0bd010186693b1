"""What each subcommand of `scripts/vm` does. Each takes the parsed options and returns the exit code."""

import argparse
import os
import time

from testvm import VmError, image, log, machine, recipe, session
from testvm.boot import Boot, Kind

PYTEST = "scripts/pytest.sh"  # in the work tree


def build(options: argparse.Namespace) -> int:
    """Build the images of the suites, and print where their disks are."""
    made = [image.get(suite, fresh=options.fresh) for suite in options.suite or recipe.SUITES[:1]]
    if options.prune:
        image.prune(made)
    for one in made:
        print(one.disk)
    return 0


def run(options: argparse.Namespace) -> int:
    """Run a command in a machine of its own."""
    with machine.private_machine(boot_of(options)) as private:
        return session.execute(private, [order_of(options)])[0]


def test(options: argparse.Namespace) -> int:
    """Run the test suite, once in each role."""
    argv = ["sh", PYTEST, "-ra", *options.pytest]
    orders = [
        session.Order(argv, role, test_environment(role) | dict(options.env), options.timeout, options.out)
        for role in ([options.role] if options.role else ["unit", "user"])
    ]

    def heading(order: session.Order) -> None:
        session.write_out(f"===== {options.suite}, as {order.role}: {' '.join(argv)} =====\n".encode())

    if options.name:
        codes = session.execute(machine_that_is_up(options.name), orders, heading)
    else:
        with machine.private_machine(boot_of(options)) as private:
            codes = session.execute(private, orders, heading)
    return next((code for code in codes if code), 0)


def test_environment(role: str) -> dict[str, str]:
    """The features without which tests fail and are not skipped (see tests/features.py), and what scripts/test asks."""
    must_have = {"root": "cgroup2", "unit": "cgroup2,delegated,mount_namespace,root,swap,vm"}.get(
        role, "cgroup2,delegated"
    )
    again = {name: value for name, value in os.environ.items() if name == "GWSANDBOX_TEST_AGAIN"}
    return {"GWSANDBOX_TEST_MUST_HAVE": must_have, **again}


def shell(options: argparse.Namespace) -> int:
    """A shell on this terminal, in a machine of its own."""
    with machine.private_machine(boot_of(options, login="tester" if options.role == "user" else "root")) as private:
        send_tree(private)
        private.wait()
    return 0


def up(options: argparse.Namespace) -> int:
    """Start a machine and leave it running."""
    began = time.monotonic()
    named = machine.Machine(options.name)
    named.start(boot_of(options), outlives_caller=True)
    try:
        send_tree(named)
    except BaseException:
        named.stop()
        raise
    log(f"machine {named.name} ({options.suite}, {options.machine}) is up after {time.monotonic() - began:.0f} s")
    return 0


def exec_(options: argparse.Namespace) -> int:
    """Run a command in a machine that is up."""
    return session.execute(machine_that_is_up(options.name), [order_of(options)])[0]


def down(options: argparse.Namespace) -> int:
    """Stop a machine, or all that `up` started."""
    targets = machine.running() if options.all else [machine.Machine(options.name)]
    for target in targets:
        target.stop()
    return 0


def status(_: argparse.Namespace) -> int:
    """List the machines that are up: name, suite, kind, folder."""
    for one in machine.running():
        print(f"{one.name}\t{one.suite}\t{one.kind}\t{one.folder}")
    return 0


def boot_of(options: argparse.Namespace, login: str | None = None) -> Boot:
    kind = Kind.QEMU if login else Kind(options.machine)
    memory = options.memory or kind.memory
    return Boot(image.get(options.suite), kind, memory, options.cpus, options.append, login)


def order_of(options: argparse.Namespace) -> session.Order:
    """The command that the options name.

    Raises:
        VmError: They name none.
    """
    argv = without_dashes(options.command)
    if not argv:
        raise VmError("no command given: put it behind `--`, as in `-- python -m pytest`.")
    return session.Order(argv, options.role, dict(options.env), options.timeout, options.out)


def without_dashes(words: list[str]) -> list[str]:
    """The words without a leading `--`."""
    return words[1:] if words[:1] == ["--"] else words


def machine_that_is_up(name: str) -> machine.Machine:
    """The machine of this name.

    Raises:
        VmError: It is not up.
    """
    named = machine.Machine(name)
    if not named.is_up:
        raise VmError(f"no machine named {name} is up: start it with `scripts/vm up --name {name}`.")
    return named


def send_tree(booting: machine.Machine) -> None:
    """Wait until the machine is up, and copy the work tree into it."""
    with booting.channel(time.monotonic() + machine.BOOT_SECONDS) as channel:
        session.send_tree(channel)
