"""Only some files: what a guest was given it reads and writes, and nothing else; and folders of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import BackendName, run_all, run_task

from gwsandbox import Command, Hardening, ProcessManager, SandboxError, Task, TaskResult

pytestmark = pytest.mark.stock_kernel  # a guest of User-mode Linux is not kept from its kernel

NOTHING_REQUIRED: frozenset[str] = frozenset()


def read(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return file.read()


def write(path: str, text: str = "written") -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)


def use_libraries() -> list[str]:
    import decimal
    import json
    import sqlite3
    import ssl
    import zoneinfo

    ssl.create_default_context()
    done = subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, check=True)
    return [
        str(decimal.Decimal(1)),
        json.dumps(1),
        str(sqlite3.sqlite_version_info[0]),
        done.stdout.decode(),
        str(zoneinfo.ZoneInfo("UTC")),
    ]


def needs_files(result: TaskResult) -> None:
    if result.enforcement.hardening["files"].startswith("not"):
        pytest.skip(result.enforcement.hardening["files"])


@pytest.mark.landlock
def test_only_what_is_given_is_read_and_written(backend: BackendName, tmp_path: Path) -> None:
    for name in ("given", "kept", "work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    hardening = Hardening.standard(
        readable=(tmp_path / "given",), writable=(tmp_path / "work",), require=NOTHING_REQUIRED
    )
    tasks = [
        Task(read, (str(tmp_path / "given" / "file"),)),
        Task(read, (str(tmp_path / "work" / "file"),)),
        Task(read, (str(tmp_path / "kept" / "file"),)),
        Task(write, (str(tmp_path / "work" / "new"),)),
        Task(write, (str(tmp_path / "given" / "file"),)),
        Task(write, (str(tmp_path / "kept" / "new"),)),
        Command(["/bin/cat", str(tmp_path / "given" / "file")]),
        Command(["/bin/cat", str(tmp_path / "kept" / "file")]),
        Task(use_libraries),
    ]
    results = run_all(backend, tasks, workers=1, hardening=hardening)
    assert [result.success for result in results] == [True, True, False, True, False, False, True, False, True], results
    held = results[0].enforcement.hardening
    # By a root folder of the run's own, or else by Landlock, which leaves names to be seen.
    assert held["files"] == "enforced" if held["processes"] == "enforced" else held["files"].startswith("partly: ")
    assert (results[0].result, (tmp_path / "work" / "new").read_text()) == ("given", "written")
    assert (tmp_path / "given" / "file").read_text() == "given"
    assert not (tmp_path / "kept" / "new").exists()
    control = run_all(backend, tasks, workers=1, hardening=Hardening.off())
    assert all(result.success for result in control), control


@pytest.mark.landlock
def test_everything_can_be_read_and_little_written(backend: BackendName, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "file").write_text("text")
    hardening = Hardening.standard(writable=(tmp_path / "work",))
    with ProcessManager(1, backend=backend, hardening=hardening) as manager:
        assert manager.start_method == "fork"
        for task in (
            Task(read, (str(tmp_path / "file"),)),
            Task(write, (str(tmp_path / "work" / "x"),)),
            Task(write, (str(tmp_path / "x"),)),
        ):
            manager.queue_task(task)
    assert [result.success for result in manager.task_results] == [True, True, False], manager.task_results


def list_temporary() -> list[str]:
    Path("/tmp/gwsandbox-left").write_text("x")
    return sorted(os.listdir("/tmp"))


def fill_temporary() -> None:
    with open("/tmp/gwsandbox-full", "wb") as file:
        file.write(bytes(1 << 21))


@pytest.mark.root
def test_a_temporary_folder_of_its_own(backend: BackendName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")  # or the current folder is seen there
    (tmp_path / "file").write_text("text")
    hardening = Hardening.standard(temporary="1MiB", readable=(tmp_path,))
    tasks = [Task(list_temporary), Task(read, (str(tmp_path / "file"),)), Task(fill_temporary)]
    seen, given, full = run_all(backend, tasks, workers=1, hardening=hardening)
    if seen.enforcement.hardening["temporary"].startswith("not"):
        pytest.skip(seen.enforcement.hardening["temporary"])
    # What was given, and the folder of this checkout where that lies there: the guest's own modules are in it.
    given_names = {tmp_path.parts[2], Path(__file__).resolve().parts[2]}
    assert "gwsandbox-left" in seen.result, seen
    assert set(seen.result) - given_names == {"gwsandbox-left"}, seen
    assert given.result == "text", given
    assert "No space left on device" in str(full.exception)
    assert not os.path.exists("/tmp/gwsandbox-left")


def test_strict_is_refused_with_what_is_missing(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    hardening = Hardening.strict(user="slot")
    if os.geteuid() == 0:
        hardening = Hardening.strict(readable=("/",))
    with ProcessManager(1, backend=backend, hardening=hardening) as manager:
        assert manager.start_method == "forkserver"
        manager.queue_task(Task(abs, (-1,)))
        with pytest.raises(
            SandboxError, match=r"harden run .*files \((partly|not): .*temporary \(.*Hardening\(require"
        ):
            manager.start_tasks()
        manager.cancel()


REFUSED_AND_RELAXED = """
from gwsandbox import Hardening, SandboxError, run

print(run(abs, (-1,), hardening=Hardening.strict(require=()), backend="rlimit").result)
try:
    run(abs, (-1,), hardening=Hardening.strict(), backend="rlimit")
except SandboxError as error:
    print(error)
"""


@pytest.mark.mount_namespace
def test_where_no_namespaces_are_permitted_strict_says_what_permits_them() -> None:
    """As in a container: nothing may be unshared, and guests are known by the numbers that all have."""
    none = "echo 0 >/proc/sys/user/max_user_namespaces; exec setpriv --bounding-set=-all --inh-caps=-all"
    words = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{none} "$@"', "sh"]
    words += [sys.executable, "-W", "ignore", "-c", REFUSED_AND_RELAXED]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    relaxed, refused = done.stdout.splitlines()
    assert relaxed == "1", done
    assert "processes (not: no PID namespace" in refused
    assert "sysctl user.max_user_namespaces=65536 permits it" in refused


@pytest.mark.landlock
def test_strict_runs_where_little_is_required(backend: BackendName) -> None:
    hardening = Hardening.strict(require={"network", "clean_interpreter", "system_calls"})
    result = run_task(backend, Task(os.getcwd), hardening=hardening)
    assert result.success, result
    assert result.enforcement.hardening["network"] == "enforced"
    assert result.enforcement.hardening["clean_interpreter"] == "enforced"
    listed = run_task(backend, Task(os.listdir, ("/",)), hardening=hardening)
    assert not listed.success or set(os.listdir("/")) - set(listed.result), listed
