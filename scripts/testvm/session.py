"""What the host does with a machine that is up: copy the work tree, run a command, fetch what it left."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from testvm import VmError
from testvm.image import REPO
from testvm.machine import BOOT_SECONDS, Machine
from testvm.wire import Channel, DeadlineExpired, Disconnected, FileHeader, Kind, RunRequest, Stamp


@dataclass(frozen=True)
class Order:
    """One command.

    Args:
        argv: The program and its arguments.
        role: unit, nspawn, user or root.
        env: Variables beside those that every command gets.
        timeout: In seconds, without the boot; `None` for no limit.
        out: The folder that gets what the command leaves in $OUT; `None` to leave it there.
    """

    argv: list[str]
    role: str = "unit"
    env: dict[str, str] = field(default_factory=dict)
    timeout: float | None = None
    out: Path | None = None


def write_out(data: bytes) -> None:
    """Write to stdout at once."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def execute(machine: Machine, orders: list[Order], before: Callable[[Order], None] = lambda _: None) -> list[int]:
    """Run the orders one after the other, each in a fresh copy of the work tree; their exit codes.

    Raises:
        VmError: The machine died, or an order took longer than its timeout.
    """
    with machine.channel(time.monotonic() + BOOT_SECONDS) as channel:
        codes = []
        for order in orders:
            deadline = None if order.timeout is None else time.monotonic() + order.timeout
            try:
                send_tree(channel)
                before(order)
                codes.append(run(channel, order, deadline))
            except Disconnected as error:
                raise VmError(f"machine {machine.name} died under the command.{machine.last_words()}") from error
            except DeadlineExpired as error:
                limit = f"--timeout {order.timeout:g}: the command had not ended by then and was killed."
                raise VmError(limit + machine.last_words()) from error
        return codes


def run(channel: Channel, order: Order, deadline: float | None) -> int:
    """Run one command, with its output on stdout; its exit code."""
    request = RunRequest(argv=order.argv, role=order.role, env=order.env, out=order.out is not None)
    channel.send(Kind.RUN, json.dumps(request).encode())
    while True:
        kind, payload = channel.receive(deadline)
        if kind is Kind.OUTPUT:
            write_out(payload)
        elif kind is Kind.FILE and order.out is not None:
            keep_file(order.out, payload)
        elif kind is Kind.EXIT:
            return int(json.loads(payload)["code"])


def keep_file(out: Path, payload: bytes) -> None:
    """Write a file that the command left in $OUT."""
    head, _, content = payload.partition(b"\n")
    header: FileHeader = json.loads(head)
    name = PurePosixPath(header["path"])
    # What runs in the machine may be hostile: it names files, but not where on the host they go.
    if name.is_absolute() or ".." in name.parts:
        raise VmError(f"the guest sent a file named {name}; only names below $OUT are taken.")
    path = out / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(stat.S_IMODE(header["mode"]) & 0o777)


def send_tree(channel: Channel) -> None:
    """Bring the machine's copy of the work tree up to date."""
    tree = survey(REPO)
    channel.send(Kind.TREE, json.dumps(tree).encode())
    with channel.together():
        for path in json.loads(answer(channel, Kind.NEED)):
            channel.send(Kind.FILE, pack_file(path, tree[path]))
    channel.send(Kind.TREE_DONE)
    answer(channel, Kind.TREE_DONE)


def answer(channel: Channel, kind: Kind) -> bytes:
    """The payload of the next message of this kind."""
    while True:
        found, payload = channel.receive(time.monotonic() + BOOT_SECONDS)
        if found is kind:
            return payload


def survey(repo: Path) -> dict[str, Stamp]:
    """Every file that git tracks or would track, by its path."""
    listing = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"]
    done = subprocess.run(
        ["git", "-c", f"safe.directory={repo}", "-C", str(repo), *listing], capture_output=True, check=False
    )
    if done.returncode:
        raise VmError(f"git ls-files in {repo} failed: {done.stderr.decode(errors='replace').strip()}")
    tree = {}
    for name in filter(None, done.stdout.split(b"\0")):
        try:
            found = os.lstat(os.path.join(os.fsencode(repo), name))
        except FileNotFoundError:
            continue
        if stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
            tree[os.fsdecode(name)] = [found.st_mode, found.st_mtime_ns, found.st_size]
    return tree


def pack_file(name: str, stamp: Stamp) -> bytes:
    """A FILE message's payload for a file of the work tree."""
    path = REPO / name
    is_link = stat.S_ISLNK(stamp[0])
    header = FileHeader(path=name, mode=stamp[0], mtime_ns=stamp[1], link=os.readlink(path) if is_link else None)
    return json.dumps(header).encode() + b"\n" + (b"" if is_link else path.read_bytes())
