"""Strict hardening: nothing that a guest tries gets it anything, and all of it would without hardening.

All attempts of a backend are tasks of one run, beside a neighbour that lives on: a run begins with a clean interpreter,
which takes longer than an attempt. So do their controls, of a run without hardening.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import attempts
import pytest
import strict_attempts
from strict_attempts import MASK, World
from support import MARK, PACE, BackendName

from gwsandbox import Hardening, Limits, Outcome, ProcessManager, Task, TaskResult

KNOWN = {mark: secrets.token_hex(16) for mark in ("caller", "earlier", "environment")}
VARIABLE = "GWSANDBOX_TEST_SECRET"
# By permissions, as there is nothing, or as it cannot be changed.
REFUSED = {
    *(errno.EPERM, errno.EACCES, errno.ENOENT, errno.ESRCH, errno.EROFS, errno.ENOSYS, errno.ENXIO, errno.ENODEV),
    *(errno.ECONNREFUSED, errno.EXDEV, errno.ENOTDIR),
}
OFF = Hardening.off()
# The mark tells the tests' own processes apart, if one should be left behind.
KEPT = ("PATH", MARK)
STRICT = Hardening.strict(environment=KEPT)
EARLY = [variable.split("=")[0] for variable in Path("/proc/self/environ").read_text(errors="replace").split("\0")]
NAMES = [*strict_attempts.ATTEMPTS, *attempts.ATTEMPTS]


# --- in guests ------------------------------------------------------------------------------------------


def be_a_neighbour(path: str) -> str:
    """Until all attempts are over: its file is taken away then."""
    Path(path, "pid").write_text(str(os.getpid()), encoding="ascii")
    while os.path.exists(path + "/pid"):
        time.sleep(0.01)
    return "undisturbed"


def leave_something(secret: str) -> int:
    """What an earlier task may leave: in the folders for temporary files, and in memory."""
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        Path(tempfile.mkdtemp(prefix="gwsandbox-left-", dir=folder), "file").write_text(secret, encoding="ascii")
    return len(secret)


def try_it(name: str, world: World, meeting: str) -> str:
    while not (pid := Path(meeting, "pid").read_text(encoding="ascii") if os.path.exists(meeting + "/pid") else ""):
        time.sleep(0.005)
    if name in strict_attempts.ATTEMPTS:
        strict_attempts.ATTEMPTS[name].call(replace(world, neighbour=int(pid)))
    else:
        attempts.ATTEMPTS[name].call(world.caller, int(pid))
    return "escaped"


def end_the_neighbour(meeting: str) -> None:
    os.unlink(meeting + "/pid")


# --- in the caller --------------------------------------------------------------------------------------


def masked(text: str) -> tuple[bytes, bytes]:
    half = len(text) // 2
    return text[:half].encode(), bytes(byte ^ MASK for byte in text[half:].encode())


@contextlib.contextmanager
def _copy_of(fd: int) -> Iterator[int]:
    copy = os.dup(fd)
    try:
        yield copy
    finally:
        os.close(copy)


@contextlib.contextmanager
def world_in(folder: Path) -> Iterator[World]:
    """What guests are to reach, and not to reach."""
    given, kept = folder / "given", folder / "kept"
    for made in (given, kept, folder / "meeting"):
        made.mkdir(parents=True)
        (made / "file").write_text("text")
    for name in strict_attempts.CHANGES:
        (kept / name).write_text("text")
        (given / f"file-{name}").write_text("text")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port = server.getsockname()[1]
        stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("127.0.0.1", port))
        for kind, name in ((socket.SOCK_STREAM, "socket"), (socket.SOCK_DGRAM, "datagrams")):
            named = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            with contextlib.chdir(kept):  # a name of a socket has no more than 107 characters
                named.bind(name)
            abstract = stack.enter_context(socket.socket(socket.AF_UNIX, kind))
            abstract.bind(f"\0gwsandbox-test-{os.getpid()}{'-datagram' * (name == 'datagrams')}")
            if kind == socket.SOCK_STREAM:
                named.listen()
                abstract.listen()
        stack.callback(os.dup2, stack.enter_context(_copy_of(1)), 1)
        os.dup2(stack.enter_context(open(folder / "output", "ab")).fileno(), 1)  # as a caller writes to a log
        in_temporary = stack.enter_context(tempfile.NamedTemporaryFile(prefix="gwsandbox-caller-"))
        in_temporary.write(b"text")
        in_temporary.flush()
        yield World(
            caller=os.getpid(),
            neighbour=0,
            secret=f"{kept}/file",
            given=f"{given}/file",
            in_temporary=in_temporary.name,
            port=port,
            marks={name: masked(text) for name, text in KNOWN.items()},
            variable=VARIABLE,
            early_variable=next(name for name in EARLY if name not in KEPT),
            host=os.uname().nodename,
        )


def all_attempts(backend: BackendName, hardening: Hardening, folder: Path) -> Mapping[str, TaskResult]:
    """The result of each attempt, and that of the neighbour."""
    meeting = str(folder / "meeting")
    with world_in(folder) as world:
        if hardening.readable is not None:
            hardening = replace(hardening, readable=(str(folder / "given"),), writable=(meeting,))
        start_method = "forkserver" if hardening.needs_clean_interpreter else "fork"
        preload = ("attempts", "strict_attempts") if start_method == "forkserver" else ()
        with ProcessManager(
            2, worker_timeout_seconds=60 * PACE, backend=backend, hardening=hardening, preload=preload
        ) as manager:
            manager.queue_task(Task(be_a_neighbour, (meeting,), limits=Limits(wall_seconds=900 * PACE)))
            for _ in range(4):  # so that every slot is used
                manager.queue_task(Task(leave_something, (KNOWN["earlier"],)))
            for name in NAMES:
                manager.queue_task(Task(try_it, (name, world, meeting)))
            manager.queue_task(Task(end_the_neighbour, (meeting,)))
        return {
            result.task.args[0] if result.task.func is try_it else result.task.func.__name__: result  # type: ignore[union-attr]
            for result in manager.task_results
        }


def clear_up() -> None:
    for folder in ("/tmp", "/var/tmp", "/dev/shm"):
        for left in Path(folder).glob("gwsandbox-left-*"):
            (left / "file").unlink(missing_ok=True)
            left.rmdir()


Outcomes = Mapping[str, TaskResult]


@pytest.fixture(scope="module", params=["rlimit", pytest.param("cgroup", marks=pytest.mark.cgroup2)])
def outcomes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcomes, Outcomes]:
    """The results of all attempts: without hardening, and with strict hardening."""
    folder = tmp_path_factory.mktemp("strict")
    os.environ[VARIABLE] = KNOWN["environment"]
    try:
        off = all_attempts(request.param, OFF, folder / "off")
        strict = all_attempts(request.param, STRICT, folder / "strict")
    finally:
        del os.environ[VARIABLE]
        clear_up()
    return off, strict


@pytest.mark.strict
@pytest.mark.long  # the first of them, which waits for all
@pytest.mark.parametrize("name", NAMES)
def test_an_attempt_fails_and_would_not_without_hardening(outcomes: tuple[Outcomes, Outcomes], name: str) -> None:
    off, strict = outcomes
    tried = strict_attempts.ATTEMPTS.get(name) or attempts.ATTEMPTS[name]
    control = off[name]
    if control.result != "escaped":
        if isinstance(control.exception, OSError) or (tried.root and os.geteuid()):
            pytest.skip(f"not possible here without hardening either: {control.exception!r}")
        raise AssertionError(control)
    result = strict[name]
    assert result.outcome is Outcome.FAILED, result
    assert isinstance(result.exception, OSError), result
    assert result.exception.errno in REFUSED, result
    assert result.enforcement.hardening[tried.mechanism] == "enforced"


@pytest.mark.strict
def test_a_neighbour_is_undisturbed_and_everything_is_enforced(outcomes: tuple[Outcomes, Outcomes]) -> None:
    for results in outcomes:
        assert results["be_a_neighbour"].result == "undisturbed", results["be_a_neighbour"]
    held = outcomes[1]["be_a_neighbour"].enforcement.hardening
    assert set(held) == Hardening.strict().mechanisms()
    assert set(held.values()) == {"enforced"}, held
