"""The record is written into its own descriptor and into no other file, whatever the task did to its descriptors."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import BackendName

from gwsandbox import GuestFailed, Outcome, run

TEXT = b"precious user data " * 4
KEPT: list[Any] = []
LOST = (
    "the function is done, and what it gave is lost: the task had closed or replaced the descriptor of its result; "
    "let it close only what it has opened"
)


def result_descriptor() -> int:
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if "gwsandbox-result" in os.readlink(f"/proc/self/fd/{fd}"):
                return fd
        except FileNotFoundError:
            continue
    raise AssertionError("no result descriptor")


def replace_by_a_file(path: str, value: object) -> object:
    """As helpers of daemons do: close all, and open what is needed."""
    os.closerange(3, 256)
    KEPT.extend(open(path, "r+b") for _ in range(8))  # noqa: SIM115 - it stays open
    KEPT[0].write(TEXT)
    KEPT[0].flush()
    if isinstance(value, Exception):
        raise value
    return value


@pytest.mark.parametrize(
    "value",
    [None, 42, b"bytes", [1, 2], bytes(200_000), {"large": "x" * 200_000}, ValueError("raised"), id],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
def test_a_file_in_its_place_is_not_written_to(
    backend: BackendName, start_method: Any, tmp_path: Path, value: object
) -> None:
    path = tmp_path / "precious"
    path.write_bytes(TEXT)
    result = run(replace_by_a_file, (str(path), value), backend=backend, start_method=start_method)
    assert path.read_bytes() == TEXT
    assert (result.outcome, result.result, result.detail) == (Outcome.FAILED, None, LOST)
    assert isinstance(result.exception, GuestFailed)


def close_it() -> None:
    os.close(result_descriptor())


def put_a_pipe_there() -> None:
    os.dup2(os.pipe()[1], result_descriptor())


def put_a_temporary_file_there() -> None:
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), result_descriptor())


def put_another_memfd_there() -> None:
    os.dup2(os.memfd_create("of the task", os.MFD_ALLOW_SEALING), result_descriptor())


def seal_it() -> None:
    fcntl.fcntl(result_descriptor(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)


@pytest.mark.parametrize("func", [close_it, put_a_pipe_there, put_a_temporary_file_there, put_another_memfd_there])
def test_a_result_that_cannot_be_written_is_a_failure_that_says_so(
    backend: BackendName, func: Callable[[], None]
) -> None:
    result = run(func, backend=backend)
    assert (result.outcome, result.detail) == (Outcome.FAILED, LOST)


def seal_its_length() -> bytes:
    """It can be written, and not be taken over."""
    fd = result_descriptor()
    os.ftruncate(fd, 300_000)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return bytes(200_000)


@pytest.mark.parametrize("func", [seal_it, seal_its_length])
def test_a_result_that_the_task_has_sealed_is_a_failure_with_its_errno(
    backend: BackendName, func: Callable[[], Any]
) -> None:
    result = run(func, backend=backend)
    assert result.outcome is Outcome.FAILED
    assert result.detail.startswith("the function is done, and what it gave is lost: Operation not permitted [errno 1]")


def close_it_later() -> str:
    import atexit

    atexit.register(replace_by_a_file, KEPT[0], None)
    return "value"


def test_nor_is_what_is_left_noted_in_a_file_in_its_place(backend: BackendName, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_bytes(TEXT)
    KEPT[:] = [str(path)]
    try:
        result = run(close_it_later, backend=backend)
    finally:
        KEPT.clear()
    assert path.read_bytes() == TEXT
    assert (result.outcome, result.result) == (Outcome.SUCCEEDED, "value")


def fork_and_return(what: object) -> tuple[str, int]:
    """Both come back from here; the child first, as its parent waits."""
    pid = os.fork()
    if pid == 0:
        print("of the fork")
        if isinstance(what, BaseException):
            raise what
        return "of the fork", 0
    return "of the task", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("what", "code"), [(None, 0), (ValueError("of the fork"), 1), (SystemExit(7), 7)])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_fork_that_returns_from_the_function_leaves_no_record(backend: BackendName, what: object, code: int) -> None:
    assert run(fork_and_return, (what,), backend=backend).result == ("of the task", code)


def die_after_a_fork_returned() -> str:
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        os._exit(3)
    return "of the fork"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nor_is_what_it_returned_the_tasks_value(backend: BackendName) -> None:
    result = run(die_after_a_fork_returned, backend=backend)
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, 3)
    assert result.result is None
