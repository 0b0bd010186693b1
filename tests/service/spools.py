"""What the tests of the spool service share: a spool in a temporary folder, and the service as a process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import inotify_simple
from support import SLOW

FOLDERS = ("incoming", "work", "done", "quarantine")
HERE = Path(__file__).parent

FUNCTION = f'function = "spool_worker:work"\npath = ["{HERE}"]'
COMMAND = f'command = ["{sys.executable}", "{HERE}/spool_worker.py", "{{input}}", "{{output}}"]'


class SpoolFolder:
    """A spool's folders, seen as its users see them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "config.toml"
        self.database = root / "ledger.sqlite3"
        for name in FOLDERS:
            (root / name).mkdir(exist_ok=True)

    def configure(self, worker: str = FUNCTION, *, top: str = "", tables: str = "") -> Path:
        """Write the configuration; what is said first is fit for tests."""
        said = {"settle_seconds": "0", "retry_delay_seconds": "0", "memory_reserve": "0", "workers": "2"}
        said |= dict(line.split(" = ", 1) for line in top.splitlines())
        lines = [f'spool = "{self.root}"', *(f"{key} = {value}" for key, value in said.items())]
        self.config.write_text("\n".join([*lines, "", "[worker]", worker, "", tables, ""]))
        return self.config

    def put(self, name: str, data: bytes | str) -> None:
        """Deliver a file as producers should."""
        staged = self.root / "incoming" / ".staged"
        staged.write_bytes(data.encode() if isinstance(data, str) else data)
        staged.rename(self.root / "incoming" / name)

    def names(self, folder: str) -> set[str]:
        """What is in a folder and not hidden."""
        return {name for name in os.listdir(self.root / folder) if not name.startswith(".") and name != "trash"}

    def results(self) -> dict[str, set[str]]:
        """Which files are done, and which in quarantine."""
        rejected = {name for name in self.names("quarantine") if not name.endswith(".report.json")}
        return {"done": self.names("done"), "quarantine": rejected}

    def rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.database)) as database:
            return database.execute(query, values).fetchall()

    def outcomes(self, name: str) -> list[str]:
        """Of all attempts on a file, in their order."""
        query = "SELECT outcome FROM attempts JOIN jobs ON job = id WHERE name = ? ORDER BY job, number"
        return [outcome for (outcome,) in self.rows(query, os.fsencode(name))]

    def is_quiet(self) -> bool:
        """Whether there is nothing left to do."""
        return not self.names("incoming") and not self.names("work")

    def wait_until(self, condition: Callable[[], bool], *, seconds: float = 60) -> None:
        """Wait for something that goes with a change in the folders."""
        deadline = time.monotonic() + seconds * SLOW
        with contextlib.closing(inotify_simple.INotify()) as inotify:
            for name in FOLDERS:
                inotify.add_watch(self.root / name, inotify_simple.masks.MOVE | inotify_simple.flags.DELETE)
            while not condition():
                left = deadline - time.monotonic()
                assert left > 0, f"it did not come about: {self.tree()}"
                inotify.read(timeout=int(min(left, 1.0) * 1000))

    def tree(self) -> dict[str, list[str]]:
        return {name: sorted(os.listdir(self.root / name)) for name in FOLDERS}


class ServiceProcess:
    """``gwsandbox serve`` in a process of its own, with us as its service manager."""

    def __init__(self, spool: SpoolFolder, *, env: Mapping[str, str] | None = None, ready: bool = True) -> None:
        self.spool = spool
        self.heard: list[str] = []
        address = f"{spool.root}/notify"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self.log = spool.root / "log"
        path = os.pathsep.join(filter(None, sys.path))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gwsandbox", "serve", str(spool.config)],
                stdin=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path, "NOTIFY_SOCKET": address, **(env or {})},
            )
        if ready:
            try:
                self.wait_for("READY=1")
            except BaseException:
                self.__exit__()
                raise

    def wait_for(self, assignment: str, *, seconds: float = 60) -> str:
        """The next message that has a line that starts so."""
        deadline = time.monotonic() + seconds * SLOW
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while True:
                left = deadline - time.monotonic()
                ready, _, _ = select.select([self._socket.fileno(), pidfd], [], [], max(left, 0))
                assert ready, f"it did not say {assignment}, but {self.heard}; its log: {self.log_text()}"
                assert self._socket.fileno() in ready, f"it ended: {self.log_text()}"
                message = self._socket.recv(65536).decode()
                self.heard.append(message)
                if any(line.startswith(assignment) for line in message.splitlines()):
                    return message
        finally:
            os.close(pidfd)

    def log_text(self) -> str:
        """All that it wrote to stderr."""
        return self.log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self) -> int:
        """Ask it to stop, and wait for that."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(60 * SLOW)

    def kill(self) -> None:
        """End it at once, and nothing else: its supervisor sees that and follows."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self._socket.close()
        wait_for_lock(self.spool.root)


def wait_for_lock(root: Path) -> None:
    """Wait until nothing of a service lives: its supervisor holds the lock longest."""
    import fcntl

    with contextlib.suppress(FileNotFoundError), (root / "work" / ".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


@contextlib.contextmanager
def serving(spool: SpoolFolder, **options: Any) -> Iterator[ServiceProcess]:
    """A service that works until the block ends, and then stops in peace."""
    with ServiceProcess(spool, **options) as service:
        yield service
        if service.process.poll() is None:
            assert service.stop() == 0, service.log_text()
