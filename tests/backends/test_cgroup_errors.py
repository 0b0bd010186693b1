"""Every refusal that the kernel or systemd can give the cgroup backend, given for real: what is said of it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_support import HANG_AFTER, environment
from groups import make_group
from support import Program

from gwsandbox import CgroupError, Limits
from gwsandbox.backends.cgroup import files, run_group, subtree
from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.backends.cgroup.delegation import DelegatedRoot
from gwsandbox.linux import procfs, systemd_scope

pytestmark = pytest.mark.cgroup2

NEEDED = frozenset({"memory", "pids"})
NO_PROCESS = 4194304  # one above the highest pid_max
ASKS_FOR_A_SCOPE = """
import os
from gwsandbox import CgroupError
from gwsandbox.linux import procfs, systemd_scope
try:
    systemd_scope.start_scope()
except CgroupError as error:
    print(error)
"""


@pytest.fixture
def group() -> Iterator[str]:
    """A group of our own, with the controllers."""
    path = make_group("errors")
    yield path
    run_group.destroy(path)


@pytest.fixture
def inmate(group: str) -> Iterator[Program]:
    """A program that lives in the group."""
    with Program("print('up', flush=True); input()") as program:
        assert program.line() == "up"
        put(group, "cgroup.procs", str(program.pid))
        yield program


@pytest.fixture
def threaded(group: str) -> str:
    """A group that is not for whole processes."""
    path = f"{group}/threaded"
    os.mkdir(path)
    put(path, "cgroup.type", "threaded")
    return path


def remove(path: str) -> None:
    above = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        subtree.remove(os.path.basename(path), above, path)
    finally:
        os.close(above)


def put(path: str, name: str, value: str) -> None:
    Path(path, name).write_text(value, encoding="ascii")


@pytest.fixture
def folder(group: str) -> Iterator[int]:
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def ends(error: CgroupError, number: int) -> bool:
    assert error.errno == number
    return str(error).endswith(f": {os.strerror(number)} [errno {number}]")


# --- the kernel ------------------------------------------------------------------------------------------


def test_a_value_that_the_kernel_refuses(group: str, folder: int) -> None:
    with pytest.raises(CgroupError) as caught:
        files.write("pids.max", "8388608", folder, "write limit", group)
    assert str(caught.value).startswith(f"write limit: {group}/pids.max ('8388608'): ")
    assert ends(caught.value, errno.EINVAL)


def test_a_file_that_cannot_be_written(group: str, folder: int) -> None:
    with pytest.raises(CgroupError) as caught:
        files.write("cgroup.events", "1", folder, "kill", group)
    assert str(caught.value).startswith(f"kill: {group}/cgroup.events ('1'): ")
    # An ordinary user may not open it; root may, but not write.
    assert ends(caught.value, errno.EACCES if os.geteuid() else errno.EINVAL)


def test_no_room_for_a_run_group(group: str) -> None:
    put(group, "cgroup.max.descendants", "0")
    with pytest.raises(CgroupError, match=f"open run group: {group}/gwsandbox-") as caught:
        CgroupBackend(DelegatedRoot(group, NEEDED)).prepare()
    assert ends(caught.value, errno.EAGAIN)


def test_no_room_for_a_leaf(group: str) -> None:
    backend = CgroupBackend(DelegatedRoot(group, NEEDED))
    backend.prepare()
    put(group, "cgroup.max.descendants", "1")
    with pytest.raises(CgroupError, match=f"open leaf: {group}/gwsandbox-.*/task-1") as caught:
        backend.open(Limits(memory="1GiB"))
    assert ends(caught.value, errno.EAGAIN)
    backend.destroy()


def test_a_leaf_whose_limits_the_kernel_refuses_leaves_nothing(group: str) -> None:
    backend = CgroupBackend(DelegatedRoot(group, NEEDED))
    backend.prepare()
    limits = Limits()
    object.__setattr__(limits, "pids", 8388608)  # which a user's would refuse
    before = os.listdir("/proc/self/fd")
    with pytest.raises(CgroupError, match=f"write limit: {group}/gwsandbox-.*/task-1/pids.max"):
        backend.open(limits)
    assert os.listdir("/proc/self/fd") == before
    assert not list(Path(group).glob("*/task-1"))
    backend.destroy()


def test_a_leaf_that_somebody_else_removed(group: str) -> None:
    backend = CgroupBackend(DelegatedRoot(group, NEEDED))
    backend.prepare()
    leaf = backend.open(Limits())
    os.rmdir(leaf.path)
    leaf.kill()
    assert leaf.remaining() is None
    leaf.close()
    backend.destroy()


def test_controllers_that_are_not_there(group: str) -> None:
    inner = f"{group}/inner"
    os.mkdir(inner)
    with pytest.raises(CgroupError) as caught:
        run_group.open_run_group(DelegatedRoot(inner, NEEDED))
    assert str(caught.value).startswith(f"enable controllers: {inner}/cgroup.subtree_control ('+memory +pids'): ")
    assert ends(caught.value, errno.ENOENT)


@pytest.mark.usefixtures("threaded")
def test_a_process_that_cannot_step_aside(group: str, folder: int, inmate: Program) -> None:
    with pytest.raises(CgroupError) as caught:
        run_group._move_processes(folder, group)
    assert str(caught.value).startswith(f"step aside: {group}/supervisor/cgroup.procs ('{inmate.pid}'): ")
    assert ends(caught.value, errno.EOPNOTSUPP)


def test_a_group_that_cannot_be_killed(threaded: str) -> None:
    fd = os.open(threaded, os.O_RDONLY | os.O_DIRECTORY)
    has_kill = os.path.exists(f"{threaded}/cgroup.kill")  # since Linux 5.14
    with pytest.raises(CgroupError) as caught:
        run_group.kill(fd, threaded)
    os.close(fd)
    file = "cgroup.kill ('1')" if has_kill else "cgroup.procs"
    assert str(caught.value).startswith(f"kill: {threaded}/{file}: ")
    assert ends(caught.value, errno.EOPNOTSUPP)


def test_what_lives_in_a_threaded_group_is_killed_from_above(
    group: str, threaded: str, folder: int, inmate: Program
) -> None:
    put(threaded, "cgroup.threads", str(inmate.pid))
    run_group.kill(folder, group)
    assert inmate.wait() == -signal.SIGKILL


@pytest.mark.usefixtures("inmate")
def test_a_group_in_which_something_lives(group: str) -> None:
    with pytest.raises(CgroupError, match=f"remove cgroup: {group}") as caught:
        remove(group)
    assert ends(caught.value, errno.EBUSY)


# --- systemd, which removes the groups of a scope that has ended, while we do ----------------------------


def test_a_group_that_is_gone_before_it_is_removed(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rmdir = os.rmdir

    def busy_and_then_empty(name: str, *, dir_fd: int) -> None:
        try:
            rmdir(name, dir_fd=dir_fd)
        except OSError:
            rmdir(f"{name}/below", dir_fd=dir_fd)
            raise

    monkeypatch.setattr(os, "rmdir", busy_and_then_empty)
    os.makedirs(f"{group}/outer/below")
    remove(f"{group}/outer")
    assert not os.path.exists(f"{group}/outer")
    remove(f"{group}/outer")
    run_group.destroy(f"{group}/outer")


def test_a_group_that_is_gone_before_it_is_read(group: str, folder: int, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.read

    def gone_when_read(fd: int, size: int) -> bytes:
        os.rmdir(group)
        return read(fd, size)

    monkeypatch.setattr(os, "read", gone_when_read)
    assert not run_group.is_populated(folder)
    assert not os.path.exists(group)


def test_groups_below_that_are_gone_before_they_are_entered_or_read(group: str, folder: int) -> None:
    """Before Linux 5.14; a guest, too, may remove its groups."""
    os.makedirs(f"{group}/outer/inner")
    os.mkdir(f"{group}/other")
    came = []
    for below, left in subtree.walk(folder):
        came.append(left or "in")
        if len(came) == 2:  # in the first of the two
            for path in ("outer/inner", "outer", "other"):
                os.rmdir(f"{group}/{path}")
            assert subtree.processes(below, group, is_top=False) == []
    assert came in (["in", "in", "outer"], ["in", "in", "other"])


def test_a_group_that_is_gone_before_it_is_killed(group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    with Program("print('up', flush=True); input()") as program:
        assert program.line() == "up"
        put(group, "cgroup.procs", str(program.pid))

        def gone_when_written(fd: int, data: bytes) -> int:
            program.process.kill()
            program.wait()
            while os.path.exists(group):
                with contextlib.suppress(OSError):  # EBUSY until the dead has left it
                    os.rmdir(group)
            return write(fd, data)

        monkeypatch.setattr(os, "write", gone_when_written)
        run_group.destroy(group)
    assert not os.path.exists(group)


# --- systemd ---------------------------------------------------------------------------------------------

has_systemd = pytest.mark.skipif(systemd_scope.why_none() is not None, reason="no systemd to ask")


def refused_scope(*before: str, env: dict[str, str] | None = None, options: tuple[str, ...] = ()) -> str:
    """The error where systemd gives no scope."""
    done = subprocess.run(
        [*before, sys.executable, *options, "-c", ASKS_FOR_A_SCOPE],
        env=env or environment(),
        capture_output=True,
        text=True,
        timeout=HANG_AFTER,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.rstrip("\n")


@has_systemd
def test_systemd_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd_scope, "_SENDER", NO_PROCESS)
    with pytest.raises(CgroupError) as caught:
        systemd_scope.start_scope()
    assert caught.value.step.startswith("start scope: systemd said org.freedesktop.")
    assert caught.value.path == systemd_scope.bus_path()
    assert caught.value.value.startswith(f"gwsandbox-{os.getpid()}-")
    assert caught.value.remedy == "see systemctl status, or start under: systemd-run --scope -p Delegate=yes -- COMMAND"


@has_systemd
def test_a_scope_that_holds_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    with Program("print('up', flush=True); input()") as program:
        assert program.line() == "up"
        monkeypatch.setattr(systemd_scope, "_SENDER", program.pid)
        with pytest.raises(CgroupError, match="start scope: systemd has put another process into it"):
            systemd_scope.start_scope()


@pytest.mark.vm
def test_a_scope_whose_job_fails() -> None:
    """For the slice that it is to be in cannot be started."""
    above = [part for part in (procfs.own_cgroup() or "").split("/") if part.endswith(".slice")][-1]
    name = f"{above.removesuffix('.slice')}-gwsandbox.slice"
    drop_in = Path(f"/run/systemd/system/{name}.d/test.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Unit]\nAssertPathExists=/none-such\n", encoding="ascii")
    try:
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        subprocess.run(["systemctl", "stop", name], check=False)  # it may not be there
        assert refused_scope().startswith("start scope: its job ended as 'dependency': /run/dbus/system_bus_socket (")
    finally:
        shutil.rmtree(drop_in.parent)
        subprocess.run(["systemctl", "daemon-reload"], check=True)


@pytest.mark.vm
def test_a_bus_that_nobody_listens_on(tmp_path: Path) -> None:
    dead = tmp_path / "bus"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(dead))
    hide = f'mount --bind {dead} /run/dbus/system_bus_socket; exec "$@"'
    text = refused_scope("unshare", "--mount", "sh", "-ec", hide, "sh")
    assert text.startswith("start scope: [Errno 111] Connection refused: /run/dbus/system_bus_socket ('gwsandbox-")
    assert text.endswith("; see systemctl status, or start under: systemd-run --scope -p Delegate=yes -- COMMAND")


@has_systemd
def test_without_jeepney(tmp_path: Path) -> None:
    """In an environment that has everything else."""
    for folder in map(Path, filter(None, sys.path)):
        if folder.name == "site-packages":
            for entry in folder.iterdir():
                if not entry.name.startswith("jeepney") and not (tmp_path / entry.name).exists():
                    (tmp_path / entry.name).symlink_to(entry)
    ours = str(Path(systemd_scope.__file__).parents[2])
    text = refused_scope(env={**environment(), "PYTHONPATH": f"{tmp_path}{os.pathsep}{ours}"}, options=("-S",))
    assert text.startswith("start scope: jeepney is missing ('gwsandbox-")
    assert text.endswith("; pip install jeepney")
