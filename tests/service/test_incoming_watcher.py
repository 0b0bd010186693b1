"""Which files are taken, and when: what the kernel announces, what has settled, and what is left alone."""

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
from gwsandbox.service.spool import incoming
from gwsandbox.service.spool.incoming import IncomingWatcher

SETTLE = 0.2


@contextlib.contextmanager
def watching(folder: Path, settle_seconds: float = 3600, *, has_leases: bool = True) -> Iterator[IncomingWatcher]:
    with contextlib.closing(IncomingWatcher(str(folder), settle_seconds, has_leases=has_leases)) as watcher:
        watcher.look()
        yield watcher


def ready(watcher: IncomingWatcher) -> list[str]:
    watcher.read_events()
    watcher.look()
    found = []
    while (name := watcher.pop()) is not None:
        found.append(name)
    return found


def wait_and_look(watcher: IncomingWatcher) -> list[str]:
    """As the loop does: until the kernel announces something, or it is time."""
    select.select([watcher.fileno()], [], [], watcher.seconds_to_wait())
    return ready(watcher)


def until_ready(watcher: IncomingWatcher) -> list[str]:
    """Look, as the loop does, until something is ready."""
    while not (found := wait_and_look(watcher)):
        pass
    return found


def test_taken_when_closed_after_writing(tmp_path: Path) -> None:
    with watching(tmp_path) as watcher:
        with (tmp_path / "a").open("w") as file:
            file.write("x")
            file.flush()
            assert ready(watcher) == []
            watcher.scan()
            assert ready(watcher) == []  # nor by a scan: it is known to be open
        assert ready(watcher) == ["a"]
        assert ready(watcher) == []


def test_taken_when_moved_here(tmp_path: Path) -> None:
    name = os.fsdecode(b"-\xff\n" + b"x" * 250)
    (tmp_path / "in").mkdir()
    with watching(tmp_path / "in") as watcher:
        (tmp_path / "x").touch()
        (tmp_path / "x").rename(tmp_path / "in" / name)
        assert ready(watcher) == [name]


def test_producers_own_names_and_folders_are_left(tmp_path: Path) -> None:
    with watching(tmp_path, settle_seconds=0) as watcher:
        (tmp_path / ".a").touch()
        (tmp_path / "a.part").touch()
        (tmp_path / "folder").mkdir()
        assert ready(watcher) == []
        watcher.scan()
        assert ready(watcher) == []
        (tmp_path / "a.part").rename(tmp_path / "a")
        assert ready(watcher) == ["a"]


def test_made_without_being_written(tmp_path: Path) -> None:
    with watching(tmp_path) as watcher:
        fd = os.open(tmp_path / "a", os.O_CREAT | os.O_RDONLY)
        assert ready(watcher) == []
        os.close(fd)
        assert ready(watcher) == ["a"]


# --- files that somebody still writes --------------------------------------------------------------------

LEASES = pytest.mark.parametrize("has_leases", [True, False], ids=["leases", "no leases"])


@LEASES
def test_a_readers_close_does_not_make_a_half_file_whole(tmp_path: Path, has_leases: bool) -> None:
    with watching(tmp_path, settle_seconds=0, has_leases=has_leases) as watcher:
        with (tmp_path / "a").open("w") as file:
            assert ready(watcher) == []
            for _ in range(3):
                file.write("half")
                file.flush()
                (tmp_path / "a").read_text()
                assert ready(watcher) == []
                watcher.scan()
                assert ready(watcher) == []
        assert ready(watcher) == ["a"]


@LEASES
def test_a_reader_of_a_file_that_is_still_empty(tmp_path: Path, has_leases: bool) -> None:
    with watching(tmp_path, settle_seconds=0, has_leases=has_leases) as watcher:
        with (tmp_path / "a").open("w"):
            assert ready(watcher) == []
            (tmp_path / "a").read_text()
            assert ready(watcher) == []
        assert ready(watcher) == ["a"]


def test_a_reader_that_comes_before_the_watcher_has_looked(tmp_path: Path) -> None:
    """The kernel merges both opens into one event, and no lease can be asked for."""
    with watching(tmp_path, settle_seconds=0, has_leases=False) as watcher:
        with (tmp_path / "a").open("w") as file, (tmp_path / "a").open() as reader:
            assert ready(watcher) == []
            file.write("half")
            file.flush()
            reader.close()
            assert ready(watcher) == []
        assert ready(watcher) == ["a"]


@LEASES
def test_a_reader_that_stays_does_not_keep_a_file_away(tmp_path: Path, has_leases: bool) -> None:
    with watching(tmp_path, settle_seconds=SETTLE, has_leases=has_leases) as watcher:
        with (tmp_path / "a").open("w") as file:
            assert ready(watcher) == []
            file.write("x")
            reader = (tmp_path / "a").open()
        with reader:
            if has_leases:
                assert ready(watcher) == ["a"]
            else:
                assert ready(watcher) == []
                assert until_ready(watcher) == ["a"]


def test_the_close_of_one_of_two_writers(tmp_path: Path) -> None:
    with watching(tmp_path, settle_seconds=0) as watcher:
        with (tmp_path / "a").open("w"):
            with (tmp_path / "a").open("a"):
                pass
            assert ready(watcher) == []
        assert until_ready(watcher) == ["a"]


@LEASES
def test_renamed_here_while_it_is_written(tmp_path: Path, has_leases: bool) -> None:
    with watching(tmp_path, settle_seconds=0, has_leases=has_leases) as watcher:
        with (tmp_path / ".a").open("w") as file:
            file.write("half")
            file.flush()
            assert ready(watcher) == []
            (tmp_path / ".a").rename(tmp_path / "a")
            assert ready(watcher) == []
            (tmp_path / "a").rename(tmp_path / "b.part")
            assert ready(watcher) == []
            (tmp_path / "b.part").rename(tmp_path / "b")
            assert ready(watcher) == []
        assert until_ready(watcher) == ["b"]


def test_renamed_before_the_watcher_has_looked(tmp_path: Path) -> None:
    with watching(tmp_path, settle_seconds=0, has_leases=False) as watcher:
        with (tmp_path / ".a").open("w") as file:
            (tmp_path / ".a").rename(tmp_path / "a")
            file.write("half")
            file.flush()
            assert ready(watcher) == []
        assert ready(watcher) == ["a"]


@pytest.mark.parametrize("way", ["rename", "link", "link and unlink"])
def test_delivered_from_elsewhere_while_it_is_written(tmp_path: Path, way: str) -> None:
    (tmp_path / "in").mkdir()
    with watching(tmp_path / "in", settle_seconds=0) as watcher:
        with (tmp_path / "x").open("w") as file:
            if way == "rename":
                (tmp_path / "x").rename(tmp_path / "in" / "a")
            else:
                os.link(tmp_path / "x", tmp_path / "in" / "a")
            if way == "link and unlink":
                (tmp_path / "x").unlink()
            assert ready(watcher) == []
            for _ in range(3):
                assert wait_and_look(watcher) == []  # each time it asks whether there is a writer
                file.write("more")
                file.flush()
        if way == "link":
            (tmp_path / "x").unlink()
        assert until_ready(watcher) == ["a"]


def name_it(fd: int, path: Path) -> None:
    """linkat(2) with AT_SYMLINK_FOLLOW, which Python uses only where a folder's descriptor is given."""
    folder = os.open("/proc/self/fd", os.O_RDONLY)
    try:
        os.link(str(fd), path, src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


@LEASES
@pytest.mark.parametrize("is_written_later", [False, True])
def test_a_file_that_had_no_name(tmp_path: Path, has_leases: bool, is_written_later: bool) -> None:
    """Made by O_TMPFILE, and linked here: its close bears no name of the folder."""
    with watching(tmp_path, settle_seconds=SETTLE, has_leases=has_leases) as watcher:
        fd = os.open(tmp_path, os.O_TMPFILE | os.O_WRONLY, 0o600)
        try:
            os.write(fd, b"first")
            name_it(fd, tmp_path / "a")
            assert ready(watcher) == []
            if is_written_later and has_leases:
                for _ in range(5):
                    os.write(fd, b"more")
                    assert wait_and_look(watcher) == []
        finally:
            os.close(fd)
        assert until_ready(watcher) == ["a"]


def test_written_since_before_the_watcher(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as file:
        file.write("half")
        file.flush()
        with watching(tmp_path, settle_seconds=0) as watcher:
            for _ in range(3):
                assert wait_and_look(watcher) == []
            file.write("rest")
            file.close()
            assert until_ready(watcher) == ["a"]


def test_a_file_that_the_service_gave_back_settles_again(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    (tmp_path / "in").mkdir()
    with watching(tmp_path / "in", settle_seconds=0) as watcher:
        (tmp_path / "x").rename(tmp_path / "in" / "a")
        watcher.settle("a")
        assert ready(watcher) == []
        assert watcher.seconds_to_wait() > 1
        assert until_ready(watcher) == ["a"]


def test_folders_are_reported_once(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / ".hidden").mkdir()
    with watching(tmp_path, settle_seconds=0) as watcher:
        assert watcher.new_folders() == ["old"]
        (tmp_path / "new").mkdir()
        (tmp_path / "old" / "inside").touch()
        assert ready(watcher) == []
        watcher.scan()
        assert watcher.new_folders() == ["new"]
        assert watcher.folders == {"old", "new"}
        (tmp_path / "new").rmdir()
        assert ready(watcher) == []
        assert watcher.folders == {"old"}
        assert watcher.new_folders() == []


def test_what_is_no_file_is_ready_to_be_refused(tmp_path: Path) -> None:
    with watching(tmp_path) as watcher:
        os.mkfifo(tmp_path / "fifo")
        (tmp_path / "link").symlink_to("fifo")
        assert ready(watcher) == ["fifo", "link"]


def test_removed_before_it_was_taken(tmp_path: Path) -> None:
    with watching(tmp_path) as watcher:
        (tmp_path / "a").touch()
        (tmp_path / "a").unlink()
        (tmp_path / "b").touch()
        (tmp_path / "b").rename(tmp_path / ".b")
        assert ready(watcher) == []


# --- what nobody was seen to finish ----------------------------------------------------------------------


def test_old_files_are_taken_at_once_and_in_order(tmp_path: Path) -> None:
    for n, name in enumerate(["b", "a", "c"]):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(n, n))
    with watching(tmp_path, settle_seconds=0) as watcher:
        assert ready(watcher) == ["b", "a", "c"]


def test_fresh_files_have_to_settle(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.utime(tmp_path / "a", (0, 0))  # as cp -p does: its mtime says nothing
    began = time.monotonic()
    with watching(tmp_path, settle_seconds=SETTLE) as watcher:
        assert ready(watcher) == []
        assert 0 < watcher.seconds_to_wait() <= SETTLE
        assert wait_and_look(watcher) == ["a"]
    assert time.monotonic() - began >= SETTLE - 0.05


def test_what_goes_on_changing_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "time", lambda: 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with (tmp_path / "a").open("w") as file, watching(tmp_path, 10, has_leases=False) as watcher:
        now += 9
        assert ready(watcher) == []
        for _ in range(3):
            before = os.fstat(file.fileno()).st_ctime_ns
            while os.fstat(file.fileno()).st_ctime_ns == before:  # the kernel's clock for files is coarse
                file.write("more")
                file.flush()
            now += 2
            assert ready(watcher) == []
            now += 8
            assert ready(watcher) == []
        now += 3
        assert ready(watcher) == ["a"]


def test_a_clock_that_was_set_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    with watching(tmp_path, settle_seconds=SETTLE) as watcher:
        assert ready(watcher) == []
        assert wait_and_look(watcher) == ["a"]


@pytest.mark.parametrize("settle_seconds", [0, SETTLE])
def test_made_by_a_second_name(tmp_path: Path, settle_seconds: float) -> None:
    """As a maildir is delivered to: link, then unlink the first name."""
    (tmp_path / "in").mkdir()
    (tmp_path / "x").touch()
    with watching(tmp_path / "in", settle_seconds=settle_seconds) as watcher:
        os.link(tmp_path / "x", tmp_path / "in" / "a")
        assert ready(watcher) == []
        assert wait_and_look(watcher) == []
        (tmp_path / "x").unlink()
        assert until_ready(watcher) == ["a"]


def test_what_cannot_be_taken_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with watching(tmp_path, settle_seconds=0) as watcher:
        assert ready(watcher) == ["a"]
        assert watcher.skip("a")
        assert not watcher.skip("a")
        watcher.scan()
        assert ready(watcher) == []
        with (tmp_path / "a").open("a") as file:
            file.write("changed")
        assert ready(watcher) == ["a"]
        assert not watcher.skip("none")


def test_a_flood_is_taken_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "_MOST_READY", 10)
    for n in range(25):
        (tmp_path / f"old-{n}").touch()
    with watching(tmp_path, settle_seconds=0) as watcher:
        assert len(watcher) == 10
        for n in range(25):
            (tmp_path / f"new-{n}").touch()
        watcher.read_events()
        assert len(watcher) == 10
        taken = set()
        while (name := watcher.pop()) is not None:
            taken.add(name)
            (tmp_path / name).unlink()
    assert len(taken) == 50


def test_events_that_were_lost(tmp_path: Path) -> None:
    with open("/proc/sys/fs/inotify/max_queued_events", encoding="ascii") as file:
        most = int(file.read())
    with watching(tmp_path, settle_seconds=0) as watcher:
        for n in range(most // 3 + 10):  # three events each
            (tmp_path / str(n % 50)).touch()
        (tmp_path / "last").touch()
        assert len(ready(watcher)) == 51


def test_folder_that_goes_away(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with watching(tmp_path / "in") as watcher:
        (tmp_path / "in").rename(tmp_path / "away")
        with pytest.raises(SandboxError, match="watch incoming"):
            watcher.read_events()


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match=r"watch incoming: .*none: No such file"):
        IncomingWatcher(str(tmp_path / "none"), 1)


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inotify_simple", None)
    with pytest.raises(SandboxError, match=r"pip install 'gwsandbox\[service\]'"):
        IncomingWatcher(str(tmp_path), 1)
