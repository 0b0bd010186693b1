"""Files go through the spool service while it is killed again and again: each ends once, and whole, in one place."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import inotify_simple

from faultlab import driver, process_tree
from faultlab.options import Options
from faultlab.process_tree import ROLES, Role
from faultlab.tally import Finding, Kind, Round, Tally
from gwsandbox.linux import syscalls

_FOLDERS = ("incoming", "work", "done", "quarantine")
_INPUTS = 20  # of a round
_QUIET_AFTER = 60.0  # seconds after the last kill
_STOPPED_AFTER = 30.0  # seconds after SIGTERM
_LONGEST_PAUSE = 0.4  # seconds between two disturbances
_WORKER = """read sort rest < "$1"
case $sort in
bad) exit 1 ;;
eating) rm "$1"; exit 1 ;;
slow) sleep 0.1 ;;
esac
cp "$1" "$2"
"""
_SORTS = ("good", "good", "good", "slow", "bad", "eating")


@dataclass(slots=True)
class Spool:
    """The folders of one round, and the service over them."""

    root: str
    rng: random.Random
    backend: str
    contents: dict[str, bytes] = field(default_factory=dict)
    kills: list[str] = field(default_factory=list)
    service: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make the folders and the configuration."""
        for name in _FOLDERS:
            os.mkdir(f"{self.root}/{name}")
        script = f"{self.root}/worker.sh"
        with open(script, "w", encoding="ascii") as file:
            file.write(_WORKER)
        command = ["/bin/sh", script, "{input}", "{output}"]
        lines = [
            f'spool = "{self.root}"',
            "settle_seconds = 0.2",
            "retry_delay_seconds = 0",
            "drain_seconds = 10",
            "workers = 2",
            f'backend = "{self.backend}"',
            "[worker]",
            f"command = {command!r}".replace("'", '"'),
        ]
        with open(f"{self.root}/config.toml", "w", encoding="ascii") as file:
            file.write("\n".join(lines) + "\n")

    # --- the service ----------------------------------------------------------------------------

    def start(self) -> None:
        """Start a service."""
        self.launch([sys.executable, "-m", "gwsandbox", "serve", f"{self.root}/config.toml"])

    def launch(self, words: Sequence[str]) -> None:
        """Start a service by a command of its own."""
        path = os.pathsep.join(filter(None, sys.path))
        with open(f"{self.root}/log", "ab") as log:
            self.service = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stderr=log, env={**os.environ, "PYTHONPATH": path}
            )

    def keep_running(self) -> None:
        """As a service manager that restarts what has ended."""
        if self.service is None or self.service.poll() is not None:
            self.start()

    def disturb(self) -> None:
        """One signal to one process of the service, or SIGKILL to all of them at once."""
        assert self.service is not None
        target = self.rng.choice((*ROLES, "all", "service", Role.CALLER))
        if target == "service":
            self.kills.append("SIGTERM to service")
            self.service.terminate()
            return
        found = process_tree.find(self.service.pid)
        pids = [pid for role in ROLES for pid in found[role]] if target == "all" else list(found[Role(target)][:1])
        self.kills.append(f"SIGKILL to {target}")
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self) -> bool:
        """Whether it ended when it was asked to."""
        assert self.service is not None
        self.service.terminate()
        try:
            self.service.wait(_STOPPED_AFTER)
        except subprocess.TimeoutExpired:
            self.service.kill()
            self.service.wait()
            return False
        return True

    # --- inputs ---------------------------------------------------------------------------------

    def deliver(self, number: int) -> None:
        """One file, in one of the ways in which producers deliver."""
        name = f"{number}.txt"
        line = f"{self.rng.choice(_SORTS)} input {number}\n".encode()
        self.contents[name] = line + self.rng.randbytes(self.rng.choice((0, 10, 1000, 100_000)))
        way = self.rng.choice((_by_rename, _by_link, _by_writing, _by_anonymous_file))
        way(f"{self.root}/incoming", name, self.contents[name])

    def names(self, folder: str) -> list[str]:
        """What is in a folder and not hidden."""
        return [name for name in os.listdir(f"{self.root}/{folder}") if not name.startswith(".") and name != "trash"]

    def is_quiet(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.names("incoming") and not self.names("work")

    def await_quiet(self, seconds: float = _QUIET_AFTER, *, restart: bool = True) -> bool:
        """Whether nothing is left to do, after a while; a service that ends is started again where ``restart``."""
        give_up_at = time.monotonic() + seconds
        with contextlib.closing(inotify_simple.INotify()) as inotify:
            for name in _FOLDERS:
                inotify.add_watch(f"{self.root}/{name}", inotify_simple.masks.MOVE | inotify_simple.flags.DELETE)
            while not self.is_quiet():
                if time.monotonic() > give_up_at:
                    return False
                if restart:
                    self.keep_running()
                elif self.service is None or self.service.poll() is not None:
                    return False
                inotify.read(timeout=500)
        return True

    # --- what came of it ------------------------------------------------------------------------

    def places(self) -> dict[str, list[str]]:
        """Where each input is, by its content; what is none of them is named by its path."""
        by_content = {content: name for name, content in self.contents.items()}
        found: dict[str, list[str]] = {name: [] for name in self.contents}
        for folder in ("incoming", "done", "quarantine"):
            for name in self.names(folder):
                if name.endswith(".report.json"):
                    continue
                with open(f"{self.root}/{folder}/{name}", "rb") as file:
                    known = by_content.get(file.read())
                found.setdefault(known or f"{folder}/{name}", []).append(folder)
        return found

    def finished(self, what: str) -> Iterator[Finding]:
        """Let a service finish the rest, and see that each input is in one place, and whole."""
        if not self.await_quiet():
            text = f"not done: {self.names('incoming')}, {self.names('work')} {what}"
            yield Finding(Kind.HUNG, text, self.log())
        if not self.stop():
            yield Finding(Kind.HUNG, f"it does not stop {what}", self.log())
        for left in driver.wait_for_children():
            yield Finding(Kind.LEFT, f"{left} {what}", self.log())
        for name, places in self.places().items():
            if name not in self.contents:
                yield Finding(Kind.WRONG, f"{name} holds what nobody delivered {what}", self.log())
            elif len(places) != 1:
                yield Finding(Kind.LOST, f"{name} ({self._sort(name)}) is in {places} {what}", self.log())
            elif places == ["done"] and self._sort(name) in {"bad", "eating"}:
                yield Finding(Kind.WRONG, f"{name} ({self._sort(name)}) is in done {what}", self.log())

    def _sort(self, name: str) -> str:
        return self.contents[name].split(b" ", 1)[0].decode()

    def log(self) -> str:
        """The end of what the services have written to stderr."""
        with open(f"{self.root}/log", encoding="utf-8", errors="replace") as file:
            return file.read()[-8000:]


def _by_rename(folder: str, name: str, content: bytes) -> None:
    with open(f"{folder}/.{name}", "wb") as file:
        file.write(content)
    os.rename(f"{folder}/.{name}", f"{folder}/{name}")


def _by_link(folder: str, name: str, content: bytes) -> None:
    with open(f"{folder}/.{name}", "wb") as file:
        file.write(content)
    os.link(f"{folder}/.{name}", f"{folder}/{name}")
    os.unlink(f"{folder}/.{name}")


def _by_writing(folder: str, name: str, content: bytes) -> None:
    """Slowly, in its place."""
    with open(f"{folder}/{name}", "wb", buffering=0) as file:
        half = len(content) // 2
        file.write(content[:half])
        select.select([], [], [], 0.05)
        file.write(content[half:])


def _by_anonymous_file(folder: str, name: str, content: bytes) -> None:
    fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o644)
    try:
        os.write(fd, content)
        # With a descriptor of a folder it is linkat(2), which follows the link in /proc.
        os.link(f"/proc/self/fd/{fd}", f"{folder}/{name}", src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)


# --- a disk that loses its power -------------------------------------------------------------------------

_FS_IOC_SHUTDOWN = 0x8004587D  # include/uapi/linux/fs.h
_NOLOGFLUSH = struct.pack("=I", 2)  # include/uapi/linux/ext4.h: what is not on the disk is lost
_IMAGE_BYTES = 64 << 20


class _Disk:
    """A file system of its own, mounted at a folder. Needs root."""

    def __init__(self, folder: str) -> None:
        self.root = f"{folder}/root"
        self._image = f"{folder}/image"
        os.mkdir(self.root)
        with open(self._image, "wb") as image:
            image.truncate(_IMAGE_BYTES)
        _run("mkfs.ext4", "-q", "-F", self._image)

    def mount(self) -> None:
        _run("mount", "-o", "loop", self._image, self.root)

    def umount(self) -> None:
        _run("umount", self.root)

    def cut_power(self) -> None:
        """What was not written to the disk by now is lost, and nothing more is.

        From then on it is another disk with what is on this one: who has a mount namespace of its own may keep this one
        mounted.
        """
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, _NOLOGFLUSH)
        finally:
            os.close(fd)
        later = f"{self._image}-later"
        shutil.copyfile(self._image, later)
        self._image = later


def _run(*words: str) -> None:
    """A command for root, which may not be on the path of others."""
    subprocess.run(words, check=True, env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"})


def _power_cut_round(options: Options, seed: int) -> tuple[Round, int]:
    """Files go through a service whose disk loses its power, and whose processes die; then through another one."""
    folder = tempfile.mkdtemp(prefix="faultlab-")
    disk = _Disk(folder)
    spool = Spool(disk.root, random.Random(seed), options.backend)
    disk.mount()
    try:
        spool.prepare()
        spool.start()
        for number in range(_INPUTS):
            spool.deliver(number)
        os.sync()  # a producer that wants its files to survive sees to that
        select.select([], [], [], spool.rng.uniform(0, 4 * _LONGEST_PAUSE))
        disk.cut_power()
        driver.clear_up()
        disk.umount()
        disk.mount()
        spool.start()
        findings = tuple(spool.finished("after a power cut"))
        command = options.repeat("spool", seed, "--power-cut")
        return Round(len(spool.contents), findings, command), 1
    finally:
        driver.clear_up()
        disk.umount()
        shutil.rmtree(folder)


# --- rounds ----------------------------------------------------------------------------------------------


def run(options: Options) -> Tally:
    """All rounds."""
    tally = Tally("spool", unit="inputs")
    kills = 0
    syscalls.be_subreaper()
    for seed in options.seeds():
        done, count = _power_cut_round(options, seed) if options.power_cut else one_round(options, seed)
        kills += count
        tally.add(done)
    tally.notes.append(f"{kills} kills")
    return tally


def one_round(options: Options, seed: int) -> tuple[Round, int]:
    """The round of a seed, and how many kills it had."""
    root = tempfile.mkdtemp(prefix="faultlab-")
    spool = Spool(root, random.Random(seed), options.backend)
    try:
        spool.prepare()
        findings = tuple(_disturbed(spool))
        return Round(len(spool.contents), findings, options.repeat("spool", seed)), len(spool.kills)
    finally:
        driver.clear_up()
        shutil.rmtree(root)


def _disturbed(spool: Spool) -> Iterator[Finding]:
    rng = spool.rng
    spool.start()
    remaining = list(range(_INPUTS))
    while remaining:
        for _ in range(min(rng.randint(1, 5), len(remaining))):
            spool.deliver(remaining.pop(0))
        select.select([], [], [], rng.uniform(0, _LONGEST_PAUSE))
        spool.disturb()
        spool.keep_running()
    yield from spool.finished(f"after {', '.join(spool.kills)}")
