"""What holds for a guest that sees only what it is given, and what it still can: its work, its end, its slot."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Callable
from pathlib import Path

import cloudpickle
import pytest
import test_kept
from support import MARK, PACE, BackendName, run_all, run_task

from gwsandbox import Command, Hardening, Limits, Outcome, ProcessManager, SandboxError, Task
from gwsandbox.guest import reach
from gwsandbox.linux import procfs

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests" / "corpus"
NAMES = ("PATH", "LANG", MARK)
STRICT = Hardening.strict(environment=NAMES)

pytestmark = [pytest.mark.strict, pytest.mark.thorough]


# --- what a guest can -----------------------------------------------------------------------------------


def disarm(folder: str, source: str, target: str) -> str:
    sys.path.insert(0, folder)
    from disarm import disarm_file

    try:
        disarm_file(Path(source), Path(target))
    except Exception as error:
        return type(error).__name__
    # The name that is made up for each PDF is another each time.
    came_out = re.sub(rb"/ID ?\[ ?<[0-9a-fA-F]*> ?<[0-9a-fA-F]*> ?\]", b"", Path(target).read_bytes())
    return hashlib.sha256(came_out).hexdigest()


@pytest.mark.long
def test_documents_come_out_byte_by_byte_as_without_hardening(backend: BackendName, tmp_path: Path) -> None:
    examples = ROOT / "scripts" / "examples"
    by_kind = {path.suffix: path for path in sorted(CORPUS.rglob("*")) if path.is_file() and path.suffix != ".md"}
    documents = [*by_kind.values()]  # one of each
    came_out = []
    for hardening, name in (
        (Hardening.off(results="plain"), "off"),
        (Hardening.strict(environment=NAMES, readable=(examples, CORPUS), writable=(tmp_path / "strict",)), "strict"),
    ):
        (tmp_path / name).mkdir()
        tasks = [
            Task(disarm, (str(examples), str(path), str(tmp_path / name / f"{number}{path.suffix}")))
            for number, path in enumerate(documents)
        ]
        with ProcessManager(2, worker_timeout_seconds=60 * PACE, backend=backend, hardening=hardening) as manager:
            manager.queue_tasks(tasks)
        came_out.append({result.task.args[1]: result.result for result in manager.task_results})  # type: ignore[union-attr]
    assert came_out[0] == came_out[1]
    assert len(came_out[0]) == len(documents)
    assert sum(result is not None and len(result) == 64 for result in came_out[0].values()) > len(documents) // 2


@pytest.mark.parametrize(
    "deed",
    [
        test_kept.start_threads_and_programs,
        test_kept.share_work_with_processes,
        test_kept.signal_its_own,
    ],
)
def test_a_program_that_works_can(backend: BackendName, deed: Callable[[], None]) -> None:
    result = run_task(backend, Task(deed), hardening=STRICT, limits=Limits(wall_seconds=60 * PACE))
    assert result.success, result


def use_temporary_files() -> list[str]:
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        Path(folder, "file").write_text("text")
        os.rename(f"{folder}/file", f"{folder}/other")
        return [Path(folder, "other").read_text(), str(os.path.exists(file.name)), os.getcwd()]


def test_temporary_files_and_a_folder_to_work_in(backend: BackendName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CORPUS)  # which guests do not see
    result = run_task(backend, Task(use_temporary_files), hardening=STRICT)
    assert result.result == ["text", "True", "/tmp"], result


def reach_itself() -> list[str]:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        return [name for _, name in socket.if_nameindex()]


def test_a_network_that_leads_nowhere(backend: BackendName) -> None:
    hardening = Hardening.strict(environment=NAMES, network="loopback")
    assert run_task(backend, Task(reach_itself), hardening=hardening).result == ["lo"]


# --- its slot -------------------------------------------------------------------------------------------


def leave_and_shut() -> list[str]:
    """Leave files and shut the folder, and say what was there before."""
    found = [*os.listdir("/tmp"), *os.listdir("/dev/shm")]
    Path("/tmp/left").write_text("x")
    with contextlib.suppress(OSError):
        os.setxattr("/tmp", "user.left", b"x")
    with contextlib.suppress(OSError):
        os.chmod("/tmp", 0)
    return found


def test_what_a_task_leaves_is_gone_before_the_next(backend: BackendName) -> None:
    results = run_all(backend, [Task(leave_and_shut)] * 6, workers=1, hardening=STRICT)
    seen = (*reach.interpreter(), *reach.loaded_modules())  # a checkout, or what a test has made and imported
    given = {Path(path).parts[2] for path in seen if Path(path).is_relative_to("/tmp")}
    assert [set(result.result) - given for result in results] == [set()] * 6, results


def fill_the_folder() -> None:
    Path("/tmp/full").write_bytes(bytes(2 << 20))


def test_a_full_folder_is_the_tasks_own(backend: BackendName) -> None:
    hardening = Hardening.strict(environment=NAMES, temporary="1MiB")
    full, after = run_all(backend, [Task(fill_the_folder), Task(use_temporary_files)], workers=1, hardening=hardening)
    assert "No space left on device" in str(full.exception), full
    assert after.success, after


def who() -> tuple[int, list[int]]:
    time.sleep(0)
    return os.getuid(), os.getgroups()


@pytest.mark.root
def test_each_slot_has_a_user_of_its_own(backend: BackendName) -> None:
    hardening = Hardening.strict(environment=NAMES, user="slot")
    results = run_all(backend, [Task(who)] * 6, workers=1, hardening=hardening)
    users = [result.result[0] for result in results]
    assert len(set(users)) == 2  # one is ready while the other works
    assert all(user >= 0x7000_0000 and result.result[1] == [] for user, result in zip(users, results, strict=True))
    assert {result.enforcement.hardening["user"] for result in results} == {"enforced"}


@pytest.mark.ordinary_user
def test_only_root_has_users_to_give(backend: BackendName) -> None:
    with pytest.raises(SandboxError, match=r"harden run .*user \(not: .*only root may"):
        run_task(backend, Task(who), hardening=Hardening.strict(environment=NAMES, user="slot"))


# --- its end --------------------------------------------------------------------------------------------


def end_by(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGKILL, signal.SIGTERM])
def test_a_signal_of_its_own_ends_it_as_elsewhere(backend: BackendName, number: int) -> None:
    result = run_task(backend, Task(end_by, (number,)), hardening=STRICT)
    assert result.exit_code == -number, result


def kill_all_that_it_sees(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.005)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        os.kill(-1, number)
        for pid in range(1, 100):
            if pid != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
    os.unlink(path)


def wait_undisturbed(path: str) -> str:
    Path(path).touch()
    while os.path.exists(path):
        time.sleep(0.005)
    return "undisturbed"


def test_a_guest_kills_nobody_else(backend: BackendName, tmp_path: Path) -> None:
    path = str(tmp_path / "there")
    hardening = Hardening.strict(environment=NAMES, writable=(tmp_path,))
    tasks = [Task(wait_undisturbed, (path,)), Task(kill_all_that_it_sees, (path,)), Task(abs, (-1,))]
    results = run_all(backend, tasks, hardening=hardening, limits=Limits(wall_seconds=30 * PACE))
    assert {str(result.result) for result in results} == {"undisturbed", "None", "1"}, results


def leave_a_daemon() -> int:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1000)
        os.write(writer, b"x")
        os._exit(0)
    os.read(reader, 1)
    os.wait()
    return len([name for name in os.listdir("/proc") if name.isdigit()])


def test_what_it_leaves_dies_with_it(backend: BackendName) -> None:
    """As an orphan it comes to the first process of the namespace, and not to the supervisor."""
    with ProcessManager(1, backend=backend, hardening=STRICT) as manager:
        manager.queue_tasks([Task(leave_a_daemon), Task(os.listdir, ("/proc",))])
        found = []
        for result in manager.as_completed():
            found.append(result.result)
            if len(found) == 1:
                assert _sleepers() == []
    assert found[0] == 2


def _sleepers() -> list[int]:
    """Grandchildren of the first processes of namespaces, which are children of the supervisor."""
    reapers = [pid for pid in procfs.children(os.getpid()) if not procfs.is_zombie(pid)]
    inits = [pid for reaper in reapers for supervisor in procfs.children(reaper) for pid in procfs.children(supervisor)]
    return [pid for init in inits for pid in procfs.children(init) if not procfs.is_zombie(pid)]


def test_limits_hold(backend: BackendName) -> None:
    late = Task(time.sleep, (100,), limits=Limits(wall_seconds=0.2))
    assert run_task(backend, late, hardening=STRICT).outcome is Outcome.TIMED_OUT
    large = Task(bytearray, (1 << 30,), limits=Limits(memory="64MiB", wall_seconds=60 * PACE))
    assert run_task(backend, large, hardening=STRICT).outcome is Outcome.OUT_OF_MEMORY


def kill_the_supervisor_once(path: str, seen: list[int]) -> None:
    while not os.path.exists(path):
        time.sleep(0.005)
    (reaper,) = procfs.children(os.getpid())
    (supervisor,) = procfs.children(reaper)
    seen += [supervisor, *procfs.tree(supervisor)]
    os.kill(supervisor, signal.SIGKILL)


def test_when_the_supervisor_is_killed_all_of_the_run_ends(backend: BackendName, tmp_path: Path) -> None:
    path, seen = str(tmp_path / "there"), list[int]()
    killer = threading.Thread(target=kill_the_supervisor_once, args=(path, seen))
    killer.start()
    hardening = Hardening.strict(environment=NAMES, writable=(tmp_path,))
    result = run_task(backend, Task(wait_undisturbed, (path,)), hardening=hardening)
    killer.join()
    assert result.outcome is Outcome.SANDBOX_ERROR, result
    assert len(seen) >= 4  # with the first process of the namespace, the zygote and the guest
    assert [pid for pid in seen if not procfs.is_zombie(pid)] == []


def test_a_command_sees_no_more(backend: BackendName, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    shown, hidden = run_all(
        backend,
        [Command(["cat", str(tmp_path / "file")]), Command(["cat", f"{ROOT}/README.md"])],
        hardening=Hardening.strict(environment=NAMES, readable=(tmp_path,)),
        workers=1,
    )
    assert shown.result.stdout == b"text", shown
    assert hidden.exit_code == 1, hidden
    assert subprocess.run(["cat", f"{ROOT}/README.md"], capture_output=True, check=True).stdout


@pytest.mark.strict
def test_an_interpreter_below_a_folder_for_temporary_files_is_seen(tmp_path: Path) -> None:
    venv.create(tmp_path / "own", symlinks=True)
    (own,) = (tmp_path / "own").glob("lib/python*/site-packages")
    (own / "late.py").write_text("VALUE = 7\n")
    source = """
from gwsandbox import Hardening, run
result = run(exec, ("import late; assert late.VALUE == 7",), hardening=Hardening.strict(), backend="rlimit")
print(result.outcome.name, result.detail)
"""
    packages = os.path.dirname(os.path.dirname(cloudpickle.__file__))
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{packages}", "PYTHONWARNINGS": "ignore"}
    words = [str(tmp_path / "own" / "bin" / "python"), "-c", source]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60 * PACE, check=False)
    assert done.stdout == "SUCCEEDED \n", done.stderr
