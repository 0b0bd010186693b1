"""Views of mounts and capabilities, in a child that gives them up."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from gwsandbox.linux import confine, namespaces


def in_child(work: Callable[[], object]) -> str:
    """What ``work`` gives, or the exception that it raises, as text."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = str(work())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def test_the_mounts_are_those_of_the_kernel() -> None:
    found = {mount.path: mount.kind for mount in namespaces.mounts()}
    assert found["/proc"] == "proc"
    assert "/" in found


def test_a_path_with_blanks_is_read_as_it_is() -> None:
    assert namespaces._unescape(rb"/a\040b\011c\012d\134e") == "/a b\tc\nd\\e"


def capabilities() -> list[int]:
    """Inheritable, permitted, effective, bounding, ambient."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return [int(line.split()[1], 16) for line in text.splitlines() if line.startswith("Cap")]


@pytest.mark.root
def test_root_keeps_the_capabilities_that_are_named_and_no_program_brings_others_back() -> None:
    kept = namespaces.numbers(["chown", "setuid"])

    def give_up() -> object:
        namespaces.keep_capabilities(kept)
        return capabilities()

    assert in_child(give_up) == str([0, kept, kept, kept, 0])

    def give_up_and_become_a_program() -> object:
        namespaces.keep_capabilities(kept)
        with os.popen("grep ^Cap /proc/self/status") as program:
            return [int(line.split()[1], 16) for line in program]

    assert in_child(give_up_and_become_a_program) == str([0, kept, kept, kept, 0])


@pytest.mark.ordinary_user
def test_an_ordinary_user_has_none_to_give_up() -> None:
    def give_up() -> object:
        namespaces.keep_capabilities(0)
        return capabilities()[:3]

    assert in_child(give_up) == str([0, 0, 0])


@pytest.mark.root
def test_what_is_made_read_only_cannot_be_written_to_and_is_elsewhere_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "a" / "below").mkdir(parents=True)

    def write() -> object:
        namespaces.private_mounts()
        confine.mount("none", str(tmp_path / "a" / "below"), "tmpfs", confine.MS_NOSUID)
        namespaces.make_read_only(str(tmp_path / "a"))
        return [os.access(path, os.W_OK) for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "below")]

    assert in_child(write) == str([True, False, False])
    (tmp_path / "a" / "file").write_text("x")
    assert not os.path.ismount(tmp_path / "a" / "below")


@pytest.mark.root
def test_system_files_can_be_made_read_only() -> None:
    def write() -> object:
        namespaces.private_mounts()
        namespaces.make_read_only("/sys")
        namespaces.make_read_only("/proc/sys")
        control = [mount.path for mount in namespaces.mounts() if mount.kind.startswith("cgroup")]
        return [os.access(path, os.W_OK) for path in ("/proc/sys/kernel/core_pattern", "/proc/self/comm", *control)]

    refused, allowed, *control = eval(in_child(write))
    assert (refused, allowed) == (False, True)
    assert not any(control)


@pytest.mark.root
def test_what_is_hidden_is_empty_or_cannot_be_connected_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("x")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()

        def look() -> object:
            namespaces.private_mounts()
            namespaces.hide(str(tmp_path / "folder"))
            namespaces.hide(str(tmp_path / "socket"))
            assert os.listdir(tmp_path / "folder") == []
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(tmp_path / "socket"))
            return "connected"

        assert in_child(look).startswith("ConnectionRefusedError")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "socket"))
    with pytest.raises(OSError, match="mount: No such file"):
        namespaces.hide(str(tmp_path / "missing"))
