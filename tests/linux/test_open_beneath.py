"""A file is opened below a folder by both ways, and no link leads anywhere."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwsandbox.linux import syscalls
from gwsandbox.linux.lease import has_leases, is_open_for_writing
from gwsandbox.linux.open_beneath import open_beneath


@pytest.fixture(params=["openat2", "step by step"])
def folder(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The descriptor of a folder, for each of the two ways."""
    if request.param != "openat2":

        def refuse(*_: object, **__: object) -> int:
            raise OSError(errno.ENOSYS, "an older kernel")

        monkeypatch.setattr(syscalls, "openat2", refuse)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("content")
    (tmp_path / "outside").write_text("secret")
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    yield fd
    os.close(fd)


def test_a_file_in_a_folder_in_the_folder(folder: int) -> None:
    fd = open_beneath(folder, "b/file", os.O_RDONLY)
    assert os.read(fd, 100) == b"content"
    assert not os.get_inheritable(fd)
    os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_beneath(folder, "b/none", os.O_RDONLY)
    with pytest.raises(NotADirectoryError):
        open_beneath(folder, "b/file/none", os.O_RDONLY)


def errno_of(folder: int, path: str) -> int | None:
    """Why a path cannot be opened."""
    try:
        os.close(open_beneath(folder, path, os.O_RDONLY))
    except OSError as error:
        return error.errno
    return None


@pytest.mark.parametrize("target", ["..", "../outside", "/etc"])
def test_links_are_not_followed(folder: int, tmp_path: Path, target: str) -> None:
    (tmp_path / "a" / "link").symlink_to(target)
    for path in ("link", "link/outside", "link/passwd"):
        assert errno_of(folder, path) in {errno.ELOOP, errno.ENOTDIR, errno.EXDEV}
    fd = open_beneath(folder, "link", os.O_PATH)
    assert stat.S_ISLNK(os.fstat(fd).st_mode)
    os.close(fd)


@pytest.mark.parametrize("path", ["../outside", "b/../../outside", "/etc/passwd"])
def test_no_way_out(folder: int, path: str) -> None:
    assert errno_of(folder, path) == errno.EXDEV


# --- leases ----------------------------------------------------------------------------------------------


def test_who_has_a_file_open_for_writing(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("w") as writer, path.open() as reader:
        assert is_open_for_writing(reader.fileno()) is True
        assert not has_leases(str(path))
        writer.close()
        assert is_open_for_writing(reader.fileno()) is False
        with path.open():  # another reader
            assert is_open_for_writing(reader.fileno()) is False
        assert has_leases(str(path))
        with path.open("a"):  # the lease is given back: nobody waits for it
            pass


@pytest.mark.root
def test_a_file_of_another_user(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    tmp_path.chmod(0o755)
    os.chown(path, 12345, 12345)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fd = os.open(path, os.O_RDONLY)
            os.setresuid(54321, 54321, 54321)
            code = 0 if is_open_for_writing(fd) is None else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
