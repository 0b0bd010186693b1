"""Errors say where, why and what helps, and survive the way between processes."""

from __future__ import annotations

import errno
import pickle

import pytest

import gwsandbox
from gwsandbox import CgroupError, RemoteError, RemoteTraceback, SandboxError, TransferError

OURS = [SandboxError, CgroupError, gwsandbox.GuestSetupError]
THEIRS = [
    gwsandbox.GuestError,
    *(gwsandbox.GuestFailed, gwsandbox.GuestCrashed, gwsandbox.GuestKilled),
    *(gwsandbox.CpuTimeExceeded, gwsandbox.OutputExceeded, gwsandbox.InitializerFailed),
    gwsandbox.TaskCancelled,
    TransferError,
]


def test_the_text_names_step_path_value_errno_and_remedy() -> None:
    error = CgroupError("write limit", path="/x/memory.max", value="5", errno=errno.EACCES, remedy="do this")
    assert str(error) == "write limit: /x/memory.max ('5'): Permission denied [errno 13]; do this"
    assert (error.step, error.path, error.value, error.errno, error.remedy) == (
        "write limit",
        "/x/memory.max",
        "5",
        13,
        "do this",
    )
    assert str(SandboxError("alone")) == "alone"


@pytest.mark.parametrize("kind", OURS)
def test_ours_pickle_whole(kind: type[SandboxError]) -> None:
    error = kind("step", path="p", value="v", errno=5, remedy="r")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert vars(again) == vars(error)
    assert str(again) == str(error)


@pytest.mark.parametrize("kind", THEIRS)
def test_the_guests_pickle_whole_and_are_never_ours(kind: type[gwsandbox.GuestError]) -> None:
    error = kind("text")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (kind, "text")
    assert not isinstance(error, SandboxError)
    assert isinstance(error, gwsandbox.GuestError)


def test_a_remote_error_says_the_class_and_text_of_what_it_stands_for() -> None:
    error = RemoteError("module.Theirs", "said so", "no such module")
    again = pickle.loads(pickle.dumps(error))
    assert (again.type_name, again.text, again.reason) == ("module.Theirs", "said so", "no such module")
    assert str(again) == "module.Theirs: said so (the exception itself cannot be sent back: no such module)"
    assert str(RemoteError("module.Theirs", "said so")) == "module.Theirs: said so"
    assert isinstance(again, TransferError)


def test_a_remote_traceback_is_shown_as_text() -> None:
    assert str(RemoteTraceback("Traceback …")) == '\n"""\nTraceback …"""'
    assert pickle.loads(pickle.dumps(RemoteTraceback("x"))).tb == "x"


# --- the package -----------------------------------------------------------------------------------------

CONTRACT = {
    "ProcessManager",
    "GlasswallProcessManager",
    "Task",
    "Command",
    "CommandOutput",
    "OutputChunk",
    "TaskResult",
    "Limits",
    "Outcome",
    "Usage",
    "Enforcement",
    "DegradedWarning",
    "Hardening",
    "SandboxExecutor",
    "progress",
    "run",
    "memory_usage",
}
ERRORS = {kind.__name__ for kind in [*OURS, *THEIRS, RemoteError, RemoteTraceback]}


def test_the_package_exports_what_the_contract_says() -> None:
    from gwsandbox import memory_usage

    assert set(gwsandbox.__all__) | {"memory_usage"} == (CONTRACT | ERRORS)
    assert {
        "get_available_memory_bytes",
        "get_available_memory_gib",
        "get_total_memory_usage_in_gib",
        "bytes_to_gigibytes",
    } <= set(dir(memory_usage))


def test_all_is_sorted_and_true() -> None:
    assert gwsandbox.__all__ == sorted(gwsandbox.__all__)
    assert all(hasattr(gwsandbox, name) for name in gwsandbox.__all__)
