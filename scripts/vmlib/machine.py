"""Boots images under QEMU and keeps the books on which machine runs under which name.

A machine's folder holds a lock file whose lock is QEMU's: handed down as an open descriptor, it is held exactly
as long as that process lives. So whether a machine is up, and whether the noted pid is still QEMU's, is never
a guess.
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
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmlib import VmError, recipe, say
from vmlib.image import SYSTEM_PATH, Image
from vmlib.wire import Channel, Gone, Late

BOOT_SECONDS = 600.0
PRIVATE = "private-"
# Debian's cloud kernels have NVMe and ext4 built in: a boot without an initrd is six seconds shorter. One disk only,
# since the kernel numbers several in any order.
# lsm: Debian's own list less bpf, whose program for RestrictFileSystems= takes systemd three seconds to load.
KERNEL_WORDS = (
    "console=ttyS0 root=/dev/nvme0n1 rw panic=-1 quiet mitigations=off lsm=lockdown,capability,landlock,yama,apparmor"
)


@dataclass(frozen=True)
class Boot:
    """How to start a machine.

    `append` is more words for the kernel; `login` puts a shell of that user on our terminal instead of logging the
    console.
    """

    image: Image
    memory: str = "6G"
    cpus: int = 2
    append: str = ""
    login: str | None = None


class Machine:
    """One machine under its name, running or not."""

    def __init__(self, name: str) -> None:
        if not name or "/" in name or name.startswith("."):
            raise VmError(f"--name {name!r}: not a name; use letters, digits and dashes.")
        self.name = name
        self.folder = state() / name
        self.socket = self.folder / "agent.sock"
        self.console = self.folder / "console.log"

    @property
    def is_up(self) -> bool:
        try:
            with (self.folder / "lock").open("r+") as lock:
                return not try_lock(lock.fileno())
        except FileNotFoundError:
            return False

    @property
    def suite(self) -> str:
        return str(json.loads((self.folder / "about.json").read_text())["suite"])

    def start(self, boot: Boot, *, outlive_us: bool) -> "subprocess.Popen[bytes]":
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            if not try_lock(lock.fileno()):
                raise VmError(f"a machine named {self.name} is up already: use `exec`, or `down --name {self.name}`.")
            self.socket.unlink(missing_ok=True)
            self.console.unlink(missing_ok=True)
            (self.folder / "agent.pyz").write_bytes(pack_agent())
            process = subprocess.Popen(
                [*([] if outlive_us else ["setpriv", "--pdeathsig", "KILL"]), *self.qemu(boot)],
                stdin=None if boot.login else subprocess.DEVNULL,
                stdout=None if boot.login else subprocess.DEVNULL,
                stderr=None if boot.login else (self.folder / "qemu.log").open("wb"),
                pass_fds=[lock.fileno()],
                start_new_session=boot.login is None,
                env={**os.environ, "PATH": SYSTEM_PATH},
            )
        about = {"pid": process.pid, "suite": boot.image.suite}
        (self.folder / "about.json").write_text(json.dumps(about))
        return process

    def qemu(self, boot: Boot) -> list[str]:
        if boot.login:
            serial = ["-serial", "mon:stdio"]
            boot_words = f"systemd.setenv=GWSANDBOX_LOGIN={boot.login} systemd.setenv=GWSANDBOX_TERM={terminal()}"
        else:
            serial = ["-serial", f"file:{self.console}"]
            boot_words = "systemd.mask=serial-getty@ttyS0.service"
        return [
            *(*program(boot.image.qemu), *acceleration(), "-smp", str(boot.cpus), "-m", boot.memory),
            *("-nodefaults", "-display", "none", "-no-reboot", "-nic", "none", *serial),
            *("-kernel", str(boot.image.kernel), "-append", f"{KERNEL_WORDS} {boot_words} {boot.append}"),
            *("-drive", f"id=disk,file={boot.image.disk},if=none,format=raw,cache=unsafe,snapshot=on"),
            *("-device", "nvme,drive=disk,serial=disk"),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial"),
            *("-chardev", f"socket,id=agent,path={self.socket},server=on,wait=off"),
            *("-device", "virtserialport,chardev=agent,name=gwsandbox.agent"),
            *("-fw_cfg", f"name=opt/gwsandbox/agent,file={self.folder / 'agent.pyz'}"),
        ]

    @contextlib.contextmanager
    def channel(self, deadline: float) -> Iterator[Channel]:
        """A greeted connection to the agent; waits for our turn, and for the machine to come up."""
        with (self.folder / "turn").open("w") as turn, socket.socket(socket.AF_UNIX) as link:
            if not try_lock(turn.fileno()):
                say(f"machine {self.name} is busy; waiting for our turn …")
                fcntl.flock(turn, fcntl.LOCK_EX)
                deadline = time.monotonic() + BOOT_SECONDS
            try:
                self.connect(link, deadline)
                channel = Channel(link.fileno())
                channel.greet(os.urandom(16).hex().encode(), deadline)
            except Gone as error:
                raise VmError(f"machine {self.name} ended before it was up.{self.last_words()}") from error
            except Late as error:
                raise VmError(f"machine {self.name} did not answer in time.{self.last_words()}") from error
            yield channel

    def connect(self, link: socket.socket, deadline: float) -> None:
        while True:
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return link.connect(str(self.socket))
            # QEMU makes the socket in its first tenths of a second, and nothing of it tells when.
            if not self.is_up:
                raise Gone
            if time.monotonic() > deadline:
                raise Late
            time.sleep(0.02)

    def wait(self) -> None:
        """Until QEMU ends by itself."""
        with (self.folder / "lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)

    def stop(self) -> None:
        """End QEMU, if it runs, and remove the folder."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 10
            if self.is_up:
                pid = json.loads((self.folder / "about.json").read_text())["pid"]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            while self.is_up and time.monotonic() < deadline:
                time.sleep(0.02)
        if self.is_up:
            raise VmError(f"machine {self.name} does not end even by SIGKILL; see {self.folder / 'about.json'}.")
        shutil.rmtree(self.folder, ignore_errors=True)

    def last_words(self) -> str:
        """The ends of the console's and of QEMU's own log, to go with an error."""
        found = []
        for log in (self.console, self.folder / "qemu.log"):
            if log.exists() and (lines := log.read_text(errors="replace").splitlines()):
                found += [f"\n--- the end of {log.name} ---", *lines[-40:]]
        return "\n".join(found)


@contextlib.contextmanager
def private_machine(boot: Boot) -> Iterator[Machine]:
    """A machine for this process alone: neither its QEMU nor its folder outlives it."""
    sweep()
    machine = Machine(f"{PRIVATE}{os.getpid()}")
    process = None
    try:
        process = machine.start(boot, outlive_us=False)
        yield machine
    finally:
        machine.stop()
        if process:
            process.wait()


def sweep() -> None:
    """Remove the folders of private machines whose owner was killed; their QEMU died with it."""
    for folder in state().glob(f"{PRIVATE}*"):
        owner = folder.name.removeprefix(PRIVATE)
        if not Path("/proc", owner).exists() and not Machine(folder.name).is_up:
            shutil.rmtree(folder, ignore_errors=True)


def running() -> list[Machine]:
    """The machines that `up` started; a private one is its owner's business."""
    names = [folder.name for folder in sorted(state().iterdir()) if not folder.name.startswith(PRIVATE)]
    return [machine for name in names if (machine := Machine(name)).is_up]


def state() -> Path:
    # Short on purpose: a unix socket's path has room for 107 bytes.
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or "/tmp", f"gwsandbox-vm-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise VmError(f"{folder} belongs to another user; remove it, or set XDG_RUNTIME_DIR to a folder of yours.")
    return folder


def try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def program(tree: Path) -> list[str]:
    """QEMU by its own loader and libraries, so that it runs on a host of any release."""
    libraries = tree / recipe.QEMU_LIBRARIES
    firmware = [word for path in recipe.QEMU_FIRMWARE for word in ("-L", str(tree / path))]
    loader = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    return [*loader, str(tree / recipe.QEMU_PROGRAM), *firmware]


def acceleration() -> list[str]:
    chosen = os.environ.get("GWSANDBOX_VM_ACCEL") or "tcg"
    if chosen == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    if chosen == "tcg":
        # Four levels of page tables instead of five are walked faster.
        return ["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,la57=off"]
    raise VmError(f"GWSANDBOX_VM_ACCEL={chosen!r}: use tcg (the default) or kvm.")


def terminal() -> str:
    return os.environ.get("TERM", "vt220") if sys.stdin.isatty() else "dumb"


def pack_agent() -> bytes:
    """The agent as a program in one file."""
    here = Path(__file__).parent
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.write(here / "agent.py", "__main__.py")
        for name in ("__init__.py", "wire.py"):
            archive.write(here / name, f"{here.name}/{name}")
    return packed.getvalue()
