"""Boots images under QEMU or User-mode Linux, and knows which machine runs under which name.

A machine's folder holds a lock file whose lock is that of the process which is the machine: it inherits the open
descriptor, so the lock is held exactly as long as that process lives. So it is certain whether a machine is up, and
whether the recorded pid is still its own.
"""

import contextlib
import fcntl
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from testvm import VmError, log, qemu, uml
from testvm.boot import AGENT, SHARED, Boot, Kind
from testvm.build_host import SYSTEM_PATH
from testvm.wire import Channel, DeadlineExpired, Disconnected

BOOT_SECONDS = 600.0
PRIVATE = "private-"


class Machine:
    """One machine under its name, running or not."""

    def __init__(self, name: str) -> None:
        if not name or "/" in name or name.startswith("."):
            raise VmError(f"--name {name!r}: not a name; use letters, digits and dashes.")
        self.name = name
        self.folder = state() / name
        self.socket = self.folder / "agent.sock"
        self.console = self.folder / "console.log"  # QEMU's; User-mode Linux writes it to output.log

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        try:
            with (self.folder / "lock").open("r+") as lock:
                return not try_lock(lock.fileno())
        except FileNotFoundError:
            return False

    @property
    def suite(self) -> str:
        """The suite that it was started with."""
        return str(self._about["suite"])

    @property
    def kind(self) -> Kind:
        """What runs it."""
        return Kind(self._about["kind"])

    @property
    def _about(self) -> dict[str, Any]:
        about: dict[str, Any] = json.loads((self.folder / "about.json").read_text())
        return about

    def start(self, boot: Boot, *, outlives_caller: bool) -> subprocess.Popen[bytes]:
        """Start its process, which inherits the lock.

        Raises:
            VmError: A machine of this name is up.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            if not try_lock(lock.fileno()):
                raise VmError(f"a machine named {self.name} is up already: use `exec`, or `down --name {self.name}`.")
            self.socket.unlink(missing_ok=True)
            self.console.unlink(missing_ok=True)
            (self.folder / SHARED).mkdir(exist_ok=True)
            (self.folder / SHARED / AGENT).write_bytes(pack_agent())
            process = self._start_process(boot, lock.fileno(), outlives_caller=outlives_caller)
        about = {"pid": process.pid, "suite": boot.image.suite, "kind": boot.kind}
        (self.folder / "about.json").write_text(json.dumps(about))
        return process

    def _start_process(self, boot: Boot, lock: int, *, outlives_caller: bool) -> subprocess.Popen[bytes]:
        prefix = [] if outlives_caller else ["setpriv", "--pdeathsig", "KILL"]
        if boot.kind is Kind.QEMU:
            return self._popen([*prefix, *qemu.command(boot, self.folder)], boot, [lock], {})
        with uml.pipes(self.folder) as line:
            command = [*prefix, *uml.command(boot, self.folder, line)]
            return self._popen(command, boot, [lock, *line], uml.environment())

    def _popen(
        self, command: list[str], boot: Boot, inherited: list[int], environment: dict[str, str]
    ) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=None if boot.login else subprocess.DEVNULL,
            stdout=None if boot.login else (self.folder / "output.log").open("wb"),
            stderr=None if boot.login else subprocess.STDOUT,
            pass_fds=inherited,
            start_new_session=boot.login is None,
            env={**os.environ, "PATH": SYSTEM_PATH, **environment},
        )

    @contextlib.contextmanager
    def channel(self, deadline: float) -> Iterator[Channel]:
        """A greeted connection to the agent. It waits for its turn, and for the machine to come up.

        Raises:
            VmError: The machine ended, or did not answer before the deadline.
        """
        with (self.folder / "turn").open("w") as turn, contextlib.ExitStack() as stack:
            if not try_lock(turn.fileno()):
                log(f"machine {self.name} is busy; waiting for our turn …")
                fcntl.flock(turn, fcntl.LOCK_EX)
                deadline = time.monotonic() + BOOT_SECONDS
            try:
                if self.kind is Kind.UML:
                    channel = stack.enter_context(uml.connected(self.folder))
                else:
                    link = stack.enter_context(socket.socket(socket.AF_UNIX))
                    self._connect(link, deadline)
                    channel = Channel(link.fileno())
                channel.greet(os.urandom(16).hex().encode(), deadline)
            except Disconnected as error:
                raise VmError(f"machine {self.name} ended before it was up.{self.last_words()}") from error
            except DeadlineExpired as error:
                raise VmError(f"machine {self.name} did not answer in time.{self.last_words()}") from error
            yield channel

    def _connect(self, link: socket.socket, deadline: float) -> None:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return link.connect(str(self.socket))
            # QEMU makes the socket in its first tenths of a second, and gives no sign of it.
            if not self.is_up:
                raise Disconnected
            if time.monotonic() > deadline:
                raise DeadlineExpired
            time.sleep(0.02)

    def wait(self) -> None:
        """Wait until it ends by itself."""
        with (self.folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)

    def stop(self) -> None:
        """End its process, if that runs, and remove the folder.

        Raises:
            VmError: The process survives SIGKILL.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 10
            if self.is_up:
                pid = self._about["pid"]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            while self.is_up and time.monotonic() < deadline:
                time.sleep(0.02)
        if self.is_up:
            raise VmError(f"machine {self.name} does not end even by SIGKILL; see {self.folder / 'about.json'}.")
        shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self) -> str:
        """The ends of the console's and of the process's own log, to go with an error."""
        found = []
        for path in (self.console, self.folder / "output.log"):
            if path.exists() and (lines := path.read_text(errors="replace").splitlines()):
                found += [f"\n--- the end of {path.name} ---", *lines[-40:]]
        return "\n".join(found)


@contextlib.contextmanager
def private_machine(boot: Boot) -> Iterator[Machine]:
    """A machine for this process alone: neither its process nor its folder outlives it."""
    sweep()
    machine = Machine(f"{PRIVATE}{os.getpid()}")
    process = None
    try:
        process = machine.start(boot, outlives_caller=False)
        yield machine
    finally:
        machine.stop()
        if process:
            process.wait()


def sweep() -> None:
    """Remove the folders of private machines whose owner was killed; their processes died with it."""
    for folder in state().glob(f"{PRIVATE}*"):
        owner = folder.name.removeprefix(PRIVATE)
        if not Path("/proc", owner).exists() and not Machine(folder.name).is_up:
            shutil.rmtree(folder, ignore_errors=True)


def running() -> list[Machine]:
    """The machines that `up` started, without private ones."""
    names = [folder.name for folder in sorted(state().iterdir()) if not folder.name.startswith(PRIVATE)]
    return [machine for name in names if (machine := Machine(name)).is_up]


def state() -> Path:
    """The folder of all machines' folders.

    Raises:
        VmError: It belongs to another user.
    """
    # A unix socket's path has room for 107 bytes, so this one is short.
    top = os.environ.get("XDG_RUNTIME_DIR") or "/tmp"  # noqa: S108 - the folder in it is private, as checked below
    folder = Path(top, f"gwsandbox-vm-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise VmError(f"{folder} belongs to another user; remove it, or set XDG_RUNTIME_DIR to a folder of yours.")
    return folder


def try_lock(fd: int) -> bool:
    """Take the lock if nobody holds it; whether that worked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def pack_agent() -> bytes:
    """The agent as a program in one file."""
    here = Path(__file__).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(here / "agent.py", "__main__.py")
        for name in ("__init__.py", "shared_folder.py", "wire.py"):
            archive.write(here / name, f"{here.name}/{name}")
    return packed.getvalue()
