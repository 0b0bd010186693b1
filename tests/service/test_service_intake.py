"""Which files are taken, and when: what the kernel tells, what has settled, and what is left alone."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gwsandbox import SandboxError
from gwsandbox.service.spool import incoming as intake_module
from gwsandbox.service.spool.incoming import Intake

SETTLE = 0.2


@contextlib.contextmanager
def watching(folder: Path, await_births: float = 3600) -> Iterator[Intake]:
    with contextlib.closing(Intake(str(folder), await_births)) as intake:
        intake.look()
        yield intake


def ready(intake: Intake) -> list[str]:
    intake.read_events()
    intake.look()
    found = []
    while (name := intake.pop()) is not None:
        found.append(name)
    return found


def wait_and_look(intake: Intake) -> list[str]:
    """As the loop does: until the kernel tells something, or it is time."""
    select.select([intake.fileno()], [], [], intake.seconds_to_wait())
    return ready(intake)


def test_taken_when_closed_after_writing(tmp_path: Path) -> None:
    with watching(tmp_path) as intake:
        with (tmp_path / "a").open("w") as file:
            file.write("x")
            file.flush()
            assert ready(intake) == []
            intake.scan()
            assert ready(intake) == []  # nor by a scan: it is known to be open
        assert ready(intake) == ["a"]
        assert ready(intake) == []


def test_taken_when_moved_here(tmp_path: Path) -> None:
    name = os.fsdecode(b"-\xff\n" + b"x" * 250)
    (tmp_path / "in").mkdir()
    with watching(tmp_path / "in") as intake:
        (tmp_path / "x").touch()
        (tmp_path / "x").rename(tmp_path / "in" / name)
        assert ready(intake) == [name]


def test_producers_own_names_and_folders_are_left(tmp_path: Path) -> None:
    with watching(tmp_path, await_births=0) as intake:
        (tmp_path / ".a").touch()
        (tmp_path / "a.part").touch()
        (tmp_path / "folder").mkdir()
        assert ready(intake) == []
        intake.scan()
        assert ready(intake) == []
        (tmp_path / "a.part").rename(tmp_path / "a")
        assert ready(intake) == ["a"]


def test_made_without_being_written(tmp_path: Path) -> None:
    with watching(tmp_path) as intake:
        fd = os.open(tmp_path / "a", os.O_CREAT | os.O_RDONLY)
        assert ready(intake) == []
        os.close(fd)
        assert ready(intake) == ["a"]


def test_what_is_no_file_is_ready_to_be_refused(tmp_path: Path) -> None:
    with watching(tmp_path) as intake:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "link").symlink_to("fifo")
        assert ready(intake) == ["fifo", "link"]


def test_removed_before_it_was_taken(tmp_path: Path) -> None:
    with watching(tmp_path) as intake:
        (tmp_path / "a").touch()
        (tmp_path / "a").unlink()
        (tmp_path / "b").touch()
        (tmp_path / "b").rename(tmp_path / ".b")
        assert ready(intake) == []


# --- what nobody was seen to finish ----------------------------------------------------------------------


def test_old_files_are_taken_at_once_and_in_order(tmp_path: Path) -> None:
    for n, name in enumerate(["b", "a", "c"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(n, n))
    with watching(tmp_path, await_births=0) as intake:
        assert ready(intake) == ["b", "a", "c"]


def test_fresh_files_have_to_settle(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.utime(tmp_path / "a", (0, 0))  # as cp -p does: its mtime says nothing
    began = time.monotonic()
    with watching(tmp_path, await_births=SETTLE) as intake:
        assert ready(intake) == []
        assert 0 < intake.seconds_to_wait() <= SETTLE
        assert wait_and_look(intake) == ["a"]
    assert time.monotonic() - began >= SETTLE - 0.05


def test_what_goes_on_changing_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with (tmp_path / "a").open("w") as file, watching(tmp_path, await_births=10) as intake:
        now += 9
        assert ready(intake) == []
        for _ in range(3):
            before = os.fstat(file.fileno()).st_ctime_ns
            while os.fstat(file.fileno()).st_ctime_ns == before:  # the kernel's clock for files is coarse
                file.write("more")
                file.flush()
            now += 2
            assert ready(intake) == []
            now += 8
            assert ready(intake) == []
        now += 3
        assert ready(intake) == ["a"]


def test_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with watching(tmp_path, await_births=SETTLE) as intake:
        assert ready(intake) == []
        assert wait_and_look(intake) == ["a"]


def test_made_by_a_second_name(tmp_path: Path) -> None:
    """As a maildir is delivered to: link, then unlink the first name."""
    (tmp_path / "in").mkdir()
    (tmp_path / "x").touch()
    with watching(tmp_path / "in", await_births=SETTLE) as intake:
        os.link(tmp_path / "x", tmp_path / "in" / "a")
        assert ready(intake) == []
        (tmp_path / "x").unlink()
        found = wait_and_look(intake)
        while not found:
            found = wait_and_look(intake)
        assert found == ["a"]


def test_what_cannot_be_taken_is_told_of_once(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with watching(tmp_path, await_births=0) as intake:
        assert ready(intake) == ["a"]
        assert intake.leave("a")
        assert not intake.leave("a")
        intake.scan()
        assert ready(intake) == []
        with (tmp_path / "a").open("a") as file:
            file.write("changed")
        assert ready(intake) == ["a"]
        assert not intake.leave("none")


def test_a_flood_is_taken_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake_module, "_MOST_READY", 10)
    for n in range(25):
        (tmp_path / f"old-{n}").touch()
    with watching(tmp_path, await_births=0) as intake:
        assert len(intake) == 10
        for n in range(25):
            (tmp_path / f"new-{n}").touch()
        intake.read_events()
        assert len(intake) == 10
        taken = set()
        while (name := intake.pop()) is not None:
            taken.add(name)
            (tmp_path / name).unlink()
    assert len(taken) == 50


def test_events_that_were_lost(tmp_path: Path) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        most = int(file.read())
    with watching(tmp_path, await_births=0) as intake:
        for n in range(most // 3 + 10):  # three events each
            (tmp_path / str(n % 50)).touch()
        (tmp_path / "last").touch()
        assert len(ready(intake)) == 51


def test_folder_that_goes_away(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with watching(tmp_path / "in") as intake:
        (tmp_path / "in").rename(tmp_path / "away")
        with pytest.raises(SandboxError, match="watch incoming"):
            intake.read_events()


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=r"watch incoming: .*none: No such file"):
        Intake(str(tmp_path / "none"), 1)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inotify_simple", None)
    with pytest.raises(SandboxError, match=r"pip install 'gwsandbox\[service\]'"):
        Intake(str(tmp_path), 1)
