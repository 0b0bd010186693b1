"""Names from strangers, moves that replace nothing, and removal that follows nothing and has no depth."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import time
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gwsandbox import SandboxError
from gwsandbox.linux import syscalls
from gwsandbox.service.spool import files, folders, names
from gwsandbox.service.spool.trash import Trash

NAMES = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name).map(os.fsdecode)


@given(NAMES, st.integers(1, 10**12), st.sampled_from([0, len(".report.json")]))
def test_names_fit_and_differ(name: str, number: int, room: int) -> None:
    found = list(islice(names.names_like(name, number, room=room), 4))
    assert all(0 < len(os.fsencode(candidate)) <= 255 - room for candidate in found)
    assert len(set(found)) == 4
    assert all("/" not in candidate and candidate not in {".", ".."} for candidate in found[1:])
    if len(os.fsencode(name)) <= 255 - room:
        assert found[0] == name
    assert all(candidate.endswith(names.suffix(name)) for candidate in found)


@given(NAMES)
def test_suffix_is_harmless(name: str) -> None:
    end = names.suffix(name)
    assert name.endswith(end)
    assert end == "" or (end[0] == "." and end[1:].isalnum() and end.isascii() and len(end) <= 17)
    assert end != name


@pytest.mark.parametrize(
    ("name", "end"),
    [("a.pdf", ".pdf"), ("a.tar.gz", ".gz"), (".pdf", ""), ("a.", ""), ("a", ""), ("a.p f", ""), ("a.pdf\n", "")],
)
def test_suffix(name: str, end: str) -> None:
    assert names.suffix(name) == end


def test_producers_own_names() -> None:
    assert not names.is_for_us(".hidden")
    assert not names.is_for_us("big.pdf.part")
    assert names.is_for_us("-rf *\n;part")


@pytest.mark.parametrize("has_renameat2", [True, False])
def test_move_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_renameat2: bool) -> None:
    if not has_renameat2:

        def refuse(*_: object) -> None:
            raise OSError(errno.EINVAL, "not on this file system")

        monkeypatch.setattr(syscalls, "renameat2", refuse)
    source, target = tmp_path / os.fsdecode(b"-a\xff\n"), tmp_path / "b"
    source.write_text("new")
    target.symlink_to("nowhere")
    with pytest.raises(FileExistsError):
        files.move(str(source), str(target))
    assert source.read_text() == "new"
    target.unlink()
    files.move(str(source), str(target))
    assert target.read_text() == "new"
    assert not source.exists()
    target.unlink()
    with pytest.raises(FileNotFoundError):
        files.move(str(source), str(target))


def test_what_no_guest_is_given(tmp_path: Path) -> None:
    path = tmp_path / "x"

    def refused() -> str:
        why = files.why_refused(os.lstat(path))
        path.unlink()
        return why

    path.write_text("fine")
    assert refused() == ""
    path.symlink_to("/etc/passwd")
    assert "symbolic link" in refused()
    os.mkfifo(path)
    assert "named pipe" in refused()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert "socket" in refused()
    path.write_text("two names")
    os.link(path, tmp_path / "y")
    assert "2 names" in refused()


# --- the folders -----------------------------------------------------------------------------------------


def paths(tmp_path: Path) -> dict[str, str]:
    return {name: str(tmp_path / name) for name in ("work", "incoming", "done", "quarantine")}


def test_folders_are_made_and_left_clean(tmp_path: Path) -> None:
    folders.prepare(paths(tmp_path))
    assert stat.S_IMODE((tmp_path / "work").stat().st_mode) == 0o700
    assert all(os.listdir(path) == [] for path in paths(tmp_path).values())


def test_folders_must_be_on_one_file_system(tmp_path: Path) -> None:
    other = Path("/dev/shm") / f"gwsandbox-test-{os.getpid()}"
    try:
        if os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
            pytest.fail("the folder for temporary files is in /dev/shm itself")
        with pytest.raises(SandboxError, match=r"move files to done.*one file system"):
            folders.prepare(paths(tmp_path) | {"done": str(other)})
    finally:
        other.rmdir()


@pytest.mark.mount_namespace
def test_a_bind_mount_of_the_same_file_system_is_seen(tmp_path: Path) -> None:
    """Its device number is the same, and still nothing can be renamed across it."""
    folders.prepare(paths(tmp_path))
    source = f"""
from gwsandbox.service.spool import files, folders, names
from gwsandbox.service.spool.trash import Trash
from gwsandbox import SandboxError
try:
    folders.prepare({paths(tmp_path)!r})
except SandboxError as error:
    print(error)
"""
    done = tmp_path / "done"
    script = 'mount --bind "$1" "$1" && exec "$2" -c "$3"'
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", str(done)]
    import sys

    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    found = subprocess.run([*argv, sys.executable, source], capture_output=True, text=True, check=True, env=env)
    assert "move files to done" in found.stdout
    assert "one file system" in found.stdout


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "done").write_text("a file")
    with pytest.raises(SandboxError, match="make folder done"):
        folders.prepare(paths(tmp_path))


def test_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_LOCK_SECONDS", 0.1)
    fd = folders.lock(str(tmp_path))
    with pytest.raises(SandboxError, match="another gwsandbox serve"):
        folders.lock(str(tmp_path))
    os.close(fd)
    os.close(folders.lock(str(tmp_path)))


# --- trash -----------------------------------------------------------------------------------------------


def emptied(trash: Trash) -> None:
    while not trash.is_empty:
        trash.empty(10)


def test_trash_of_any_depth_and_mode(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    left = tmp_path / "left"
    left.mkdir()
    here = os.getcwd()
    try:
        os.chdir(left)
        os.symlink(outside, "link")
        os.mkfifo("fifo")
        for n in range(1500):  # more than the longest path, and than Python's own recursion
            os.mkdir("d")
            os.chdir("d")
            if n % 50 == 0:
                Path("0").write_text("a name that trash itself uses")
                os.mkdir("closed")
                os.chmod("closed", 0)
    finally:
        os.chdir(here)
    trash = Trash(str(tmp_path / "trash"))
    trash.add(str(left))
    trash.add(str(tmp_path / "never was"))
    assert not trash.is_empty
    emptied(trash)
    assert os.listdir(tmp_path / "trash") == []
    assert (outside / "kept").read_text() == "kept"


def test_trash_is_emptied_bit_by_bit_and_resumed(tmp_path: Path) -> None:
    left = tmp_path / "left"
    left.mkdir()
    for n in range(3000):
        (left / str(n)).touch()
    trash = Trash(str(tmp_path / "trash"))
    trash.add(str(left))
    trash.empty(0)
    assert not trash.is_empty
    began = time.monotonic()
    trash.empty(0.001)
    assert time.monotonic() - began < 1
    trash.close()
    emptied(Trash(str(tmp_path / "trash")))
    assert os.listdir(tmp_path / "trash") == []


def test_trash_that_cannot_be_removed_is_reported_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "x").touch()
    trash = Trash(str(tmp_path / "trash"))
    trash.add(str(tmp_path / "left"))

    def refuse(path: str, **_: object) -> None:
        raise PermissionError(errno.EPERM, "immutable", path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        with pytest.raises(PermissionError):
            trash.empty(1)
    assert trash.is_empty
    (tmp_path / "more").mkdir()
    trash.add(str(tmp_path / "more"))
    emptied(trash)
    assert os.listdir(tmp_path / "trash") == []
