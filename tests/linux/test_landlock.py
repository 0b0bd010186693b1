"""Landlock on the running kernel: what a ruleset takes, what it leaves, and the probe by effect."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gwsandbox.linux import confine, landlock

pytestmark = pytest.mark.landlock
ALL = landlock.file_rights(landlock.version()) if landlock.version() else 0


@contextlib.contextmanager
def ruleset(rules: dict[str, int], files: int = 0, network: int = 0, scopes: int = 0) -> Iterator[int]:
    fd = landlock.make_ruleset(rules, files=files & ALL, network=network, scopes=scopes)
    try:
        yield fd
    finally:
        os.close(fd)


def test_only_what_is_given_can_be_read(tmp_path: Path) -> None:
    for name in ("given", "kept"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("text")
    attempts: list[Callable[[], object]] = [
        lambda: (tmp_path / "given" / "file").read_text(),
        lambda: (tmp_path / "kept" / "file").read_text(),
        lambda: os.listdir(tmp_path / "given"),
        lambda: os.listdir(tmp_path / "kept"),
    ]
    with ruleset({str(tmp_path / "given"): landlock.READ}, files=landlock.READ) as fd:
        assert landlock.refused(fd, attempts) == [False, True, False, True]
    with ruleset({"/": landlock.READ}, files=landlock.READ) as fd:
        assert landlock.refused(fd, attempts) == [False] * 4


def test_everything_but_one_folder_can_be_written_to(tmp_path: Path) -> None:
    shut = tmp_path / "a" / "shut"
    shut.mkdir(parents=True)
    (tmp_path / "a" / "open").mkdir()
    (tmp_path / "link").symlink_to(shut)
    (shut / "file").write_text("before")
    rules = dict.fromkeys(landlock.all_but({str(shut)}), landlock.WRITE & ALL)
    attempts: list[Callable[[], object]] = [
        lambda: (shut / "file").write_text("after"),
        lambda: (tmp_path / "link" / "file").write_text("after"),
        lambda: (shut / "folder").mkdir(),
        lambda: (tmp_path / "a" / "open" / "file").write_text("after"),
        lambda: (tmp_path / "a" / "open" / "folder").mkdir(),
        lambda: os.rename(tmp_path / "a" / "open" / "file", tmp_path / "a" / "open" / "folder" / "moved"),
    ]
    with ruleset(rules, files=landlock.WRITE) as fd:
        assert landlock.refused(fd, attempts) == [True, True, True, False, False, False]
    assert (shut / "file").read_text() == "before"
    assert (tmp_path / "a" / "open" / "folder" / "moved").read_text() == "after"


def test_a_file_is_given_what_files_can_have(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    given = landlock.READ | landlock.WRITE & ALL
    with ruleset({str(tmp_path / "file"): given}, files=given) as fd:
        assert landlock.refused(fd, [(tmp_path / "file").read_text, lambda: os.listdir(tmp_path)]) == [False, True]


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    with ruleset({str(tmp_path / "missing"): landlock.READ}, files=landlock.READ) as fd:
        assert landlock.refused(fd, [lambda: os.listdir(tmp_path)]) == [True]


@pytest.mark.landlock_scopes
def test_signals_stay_inside() -> None:
    def signal_own_child() -> None:
        with subprocess.Popen(["/bin/sleep", "100"]) as program:
            program.terminate()

    attempts: list[Callable[[], object]] = [lambda: os.kill(os.getppid(), 0), signal_own_child]
    with ruleset({}, scopes=landlock.SCOPE_SIGNAL) as fd:
        assert landlock.refused(fd, attempts) == [True, False]
    with ruleset({}, scopes=landlock.SCOPE_ABSTRACT_UNIX_SOCKET) as fd:
        assert landlock.refused(fd, attempts) == [False, False]


@pytest.mark.landlock_scopes
def test_abstract_sockets_stay_inside() -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("")  # a name that the kernel chooses
        server.listen()
        attempts: list[Callable[[], object]] = [lambda: client.connect(server.getsockname())]
        with ruleset({}, scopes=landlock.SCOPE_ABSTRACT_UNIX_SOCKET) as fd:
            assert landlock.refused(fd, attempts) == [True]
        with ruleset({}, scopes=landlock.SCOPE_SIGNAL) as fd:
            assert landlock.refused(fd, attempts) == [False]


def test_another_domain_cannot_be_looked_into() -> None:
    """Nor one in no domain at all, as the engine is."""

    def look_at_neighbour(*, own_domains: bool) -> bool:
        reader, writer = os.pipe()
        with ruleset({"/": ALL & landlock.REFER}, files=landlock.MAKE_BLOCK | landlock.REFER) as fd:
            call = confine.prepare_landlock_restrict_self(fd)
            neighbour = os.fork()
            if neighbour == 0:
                with contextlib.suppress(BaseException):
                    confine.no_new_privs()
                    if own_domains:
                        confine.apply(call, "landlock_restrict_self")
                    os.write(writer, b"x")
                    signal.pause()  # until it is killed
                os._exit(0)
            os.read(reader, 1)
            try:
                return landlock.refused(fd, [lambda: open(f"/proc/{neighbour}/mem", "rb").close()])[0]
            finally:
                os.kill(neighbour, 9)
                os.waitpid(neighbour, 0)
                os.close(reader)
                os.close(writer)

    assert look_at_neighbour(own_domains=True)
    assert look_at_neighbour(own_domains=False)


def test_what_the_kernel_does_not_know_is_an_error_and_leaves_no_descriptor() -> None:
    with pytest.raises(OSError, match="landlock_create_ruleset: Invalid argument") as caught:
        landlock.make_ruleset({}, files=1 << 60)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="landlock_add_rule"):
        landlock.make_ruleset({"/": landlock.WRITE_FILE}, files=landlock.READ_FILE)


@pytest.mark.parametrize(
    ("number", "reason"),
    [(errno.ENOSYS, "no Landlock"), (errno.EOPNOTSUPP, "Landlock is off"), (errno.EPERM, "cannot be asked for: ")],
)
def test_a_kernel_without_it_says_why(number: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(attributes: bytes, flags: int) -> int:
        raise OSError(number, "landlock_create_ruleset")

    monkeypatch.setattr(confine, "landlock_create_ruleset", refuse)
    assert reason in (landlock.why_none() or "")
    assert landlock.version() == 0


def test_rights_grow_with_the_version() -> None:
    assert landlock.file_rights(0) == 0
    assert landlock.file_rights(1) == (1 << 13) - 1
    assert [landlock.file_rights(version).bit_count() for version in range(1, 11)] == [
        13,
        14,
        15,
        15,
        16,
        16,
        16,
        16,
        17,
        17,
    ]
