"""Every attempt of a guest's to get at what is not its own: with standard hardening it fails, and without it does not.

An attempt whose mechanism does not hold on this kernel is one that ``Enforcement`` names.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attempts import ATTEMPTS, Attempt
from support import BackendName

from gwsandbox import Hardening, ProcessManager, Task, TaskResult

pytestmark = pytest.mark.stock_kernel  # a guest of User-mode Linux is not kept from its kernel

REFUSED = {errno.EPERM, errno.EACCES}
OFF, STANDARD = Hardening.off(), Hardening.standard()


@pytest.fixture(scope="module")
def _listener() -> Iterator[None]:
    """What a program of the caller's has open for other programs of its own."""
    with contextlib.ExitStack() as stack:
        for kind, suffix in ((socket.SOCK_STREAM, ""), (socket.SOCK_DGRAM, "-datagram")):
            server = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            server.bind(f"\0gwsandbox-test-{os.getpid()}{suffix}")
            if kind == socket.SOCK_STREAM:
                server.listen()
        yield


def be_a_neighbour(path: str) -> str:
    """Until the attempt is over: its file is taken away then."""
    Path(path, "pid").write_text(str(os.getpid()), encoding="ascii")
    while os.path.exists(path + "/pid"):
        time.sleep(0.005)
    return "undisturbed"


def try_it(name: str, caller: int, path: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        while not (pid := Path(path, "pid").read_text(encoding="ascii") if os.path.exists(path + "/pid") else ""):
            time.sleep(0.005)
    try:
        ATTEMPTS[name].call(caller, int(pid))
    finally:
        os.unlink(path + "/pid")
    return "escaped"


def outcome(backend: BackendName, tried: Attempt, hardening: Hardening, path: Path) -> TaskResult:
    path.mkdir()
    with ProcessManager(2, worker_timeout_seconds=60, backend=backend, hardening=hardening) as manager:
        manager.queue_task(Task(be_a_neighbour, (str(path),)))
        manager.queue_task(Task(try_it, (tried.name, os.getpid(), str(path))))
    neighbour, result = sorted(manager.task_results, key=lambda result: result.task.func is try_it)  # type: ignore[union-attr]
    assert neighbour.result == "undisturbed", neighbour
    return result


@pytest.mark.usefixtures("_listener")
@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_attempt_fails_and_would_not_without_hardening(backend: BackendName, name: str, tmp_path: Path) -> None:
    tried = ATTEMPTS[name]
    control = outcome(backend, tried, OFF, tmp_path / "off")
    assert control.enforcement.hardening == {}
    if control.result != "escaped":
        if isinstance(control.exception, OSError) or (tried.root and os.geteuid()):
            pytest.skip(f"not possible here without hardening either: {control.exception!r}")
        raise AssertionError(control)
    result = outcome(backend, tried, STANDARD, tmp_path / "standard")
    held = result.enforcement.hardening[tried.mechanism]
    if held != "enforced":
        pytest.skip(f"{tried.mechanism}: {held}")
    assert isinstance(result.exception, OSError), result
    assert result.exception.errno in {*REFUSED, *tried.also}, result
