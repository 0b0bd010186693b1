"""``gwsandbox serve`` as a process, over real folders: every file ends in one place, whatever is done to it."""

from __future__ import annotations

import ast
import json
import os
import socket
from pathlib import Path

import pytest
from spools import COMMAND, FUNCTION, ServiceProcess, SpoolFolder, serving
from support import BEAT, BackendName

SHELL = 'command = ["/bin/sh", "-c", \'{}\', "sh", "{{input}}", "{{output}}"]'
OPEN = '[hardening]\nlevel = "off"\n'  # for workers whose attack is to succeed
LIMITS = '[limits]\nmemory = "300MiB"\n'


@pytest.fixture
def spool(tmp_path: Path) -> SpoolFolder:
    return SpoolFolder(tmp_path)


def report(spool: SpoolFolder, name: str) -> dict[str, object]:
    found: dict[str, object] = json.loads((spool.root / "quarantine" / f"{name}.report.json").read_text())
    return found


# --- the way of a file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("worker", [FUNCTION, COMMAND], ids=["function", "command"])
def test_each_ends_where_it_should(spool: SpoolFolder, backend: BackendName, worker: str) -> None:
    spool.configure(worker, top=f'backend = "{backend}"', tables=f"{LIMITS}wall_seconds = {BEAT}")
    bad = {
        "oom": ["OUT_OF_MEMORY"] * 3,
        "hang": ["TIMED_OUT"] * 3,
        "crash": ["CRASHED"] * 3,
        "exit": ["FAILED"],
        "raise": ["FAILED"],
        "nothing": ["FAILED"],
        "link": ["FAILED"],
        "folder": ["FAILED"],
        "pair": ["FAILED"],
    }
    spool.put("before.txt", "was there before")
    for word in bad:
        spool.put(f"{word}.pdf", word)
    with serving(spool) as service:
        spool.put("after.txt", "came later")
        spool.put("litter", "litter and more")
        spool.wait_until(spool.is_quiet)
        service.wait_for("STATUS=0 in work, 0 to take, 0 to try again")
        spool.wait_until(lambda: not spool.names("work/trash"))
    assert spool.results() == {
        "done": {"before.txt", "after.txt", "litter"},
        "quarantine": {f"{word}.pdf" for word in bad},
    }
    assert (spool.root / "done" / "before.txt").read_text() == "WAS THERE BEFORE"
    assert {word: spool.outcomes(f"{word}.pdf") for word in bad} == bad
    assert spool.outcomes("after.txt") == ["SUCCEEDED"]
    assert {state for (state,) in spool.rows("SELECT state FROM jobs")} == {"DONE", "QUARANTINED"}
    for word in bad:
        assert (spool.root / "quarantine" / f"{word}.pdf").read_text() == word
    found = report(spool, "raise.pdf")
    assert "not a good file \\udcff\\x1b[31m" in str(found["detail"] if worker is FUNCTION else found["stderr"])
    assert report(spool, "hang.pdf")["timed_out"]
    assert len(report(spool, "crash.pdf")["attempts"]) == 3  # type: ignore[arg-type]
    enforcement = report(spool, "hang.pdf")["enforcement"]
    assert isinstance(enforcement, dict)
    assert enforcement["backend"] == backend


def test_names_from_strangers(spool: SpoolFolder) -> None:
    spool.configure()
    names = [
        "-rf",
        "two\nlines.pdf",
        os.fsdecode(b"not utf-8 \xff\xfe.doc"),
        "x" * 255,
        "ä" * 127,
        "{output}",
        "$(reboot); `reboot` %s %n",
        " ",
        "a.report.json",
        "~1",
        "input.pdf",
        "\x1b[31mred",
    ]
    for name in names:
        spool.put(name, "content")
        spool.put(f"{name[:100]}-bad", "raise")
    with serving(spool) as service:
        spool.wait_until(spool.is_quiet)
        assert "\x1b" not in service.log_text()
    assert spool.names("done") == set(names)
    rejected = spool.results()["quarantine"]
    assert len(rejected) == len(names) == len({os.fsencode(name) for name in rejected})
    assert all(spool.outcomes(name) == ["SUCCEEDED"] for name in names)
    for name in rejected:
        assert report(spool, name)["outcome"] == "FAILED"


def test_what_is_no_plain_file_is_refused_and_not_followed(spool: SpoolFolder, tmp_path: Path) -> None:
    spool.configure()
    incoming = spool.root / "incoming"
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (incoming / "link").symlink_to(secret)
    (incoming / "loop").symlink_to("loop")
    os.mkfifo(incoming / "fifo")
    os.link(secret, incoming / "hard")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(incoming / "socket"))
    (incoming / "folder").mkdir()
    (incoming / "folder" / "inside").touch()
    (incoming / ".hidden").touch()
    (incoming / "unfinished.part").touch()
    with serving(spool):
        spool.wait_until(lambda: len(spool.names("quarantine")) == 10)
        os.mkfifo(incoming / "late fifo")
        (incoming / "late link").symlink_to(secret)
        spool.wait_until(lambda: len(spool.names("quarantine")) == 14)
    assert spool.names("done") == set()
    assert spool.names("incoming") == {"folder", "unfinished.part"}
    assert spool.outcomes("hard") == ["REFUSED"]
    assert "2 names" in str(report(spool, "hard")["detail"])
    assert (spool.root / "quarantine" / "link").is_symlink()
    assert secret.read_text() == "secret"


def test_a_file_is_not_taken_while_it_is_written(spool: SpoolFolder) -> None:
    spool.configure()
    with serving(spool), (spool.root / "incoming" / "big").open("w") as file:
        file.write("first")
        file.flush()
        spool.put("other", "content")
        spool.wait_until(lambda: spool.names("done") == {"other"})
        file.write(" and second")
        file.close()
        spool.wait_until(lambda: spool.names("done") == {"other", "big"})
    assert (spool.root / "done" / "big").read_text() == "FIRST AND SECOND"


@pytest.mark.parametrize("kind", ["function", "command"])
def test_workers_get_a_minimal_environment(spool: SpoolFolder, backend: BackendName, kind: str) -> None:
    worker = FUNCTION if kind == "function" else SHELL.format('env -0 > "$2"')
    spool.configure(f'{worker}\nenvironment = ["ASKED", "NOT_SET"]', top=f'backend = "{backend}"')
    spool.put("a", "variables")
    variables = {"SECRET": "x", "ASKED": "y", "LANG": "C.UTF-8", "HOME": "/root", "PATH": os.defpath}
    with serving(spool, env=variables):
        spool.wait_until(spool.is_quiet)
    found = dict(line.split("=", 1) for line in (spool.root / "done" / "a").read_text().rstrip("\0").split("\0"))
    scratch = str(spool.root / "work" / "1" / "try")
    expected = {"ASKED": "y", "LANG": "C.UTF-8", "HOME": scratch, "TMPDIR": scratch, "PATH": os.defpath}
    for name in ("PWD", "SHLVL", "_", "OLDPWD"):  # the shell's own
        found.pop(name, None)
    assert found == expected


def test_guests_hold_nothing_of_the_service(spool: SpoolFolder, backend: BackendName) -> None:
    spool.configure(top=f'backend = "{backend}"')
    spool.put("a", "environment")
    with serving(spool, env={"WATCHDOG_USEC": "60000000"}):
        spool.wait_until(spool.is_quiet)
    cwd, tmpdir, variables, wakeup, *descriptors = ast.literal_eval((spool.root / "seen").read_text())
    assert cwd == tmpdir == str(spool.root / "work" / "1" / "try")
    assert variables == []
    assert wakeup == -1
    files = [path for path in descriptors if str(spool.root) in path and not path.endswith(("/seen", "/log"))]
    assert files == []
    assert not any("inotify" in path for path in descriptors)


def test_input_that_the_worker_removes(spool: SpoolFolder) -> None:
    spool.configure()
    spool.put("a", "eat-input")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    assert spool.results() == {"done": {"a"}, "quarantine": set()}


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ('rm "$1"; exit 1', "FAILED"),
        (': > "$1"; exit 1', "FAILED"),
        ('echo other > "$1"; chmod 0 "$1"; kill -ABRT $$', "CRASHED"),
        ('mv "$1" "$2"; sleep 600', "TIMED_OUT"),
        ('rm -rf "$(dirname "$1")"', "FAILED"),
        ('rm "$1"; ln -s /etc/passwd "$1"; exit 1', "FAILED"),
    ],
)
def test_a_worker_that_fails_cannot_harm_its_input(spool: SpoolFolder, script: str, outcome: str) -> None:
    spool.configure(SHELL.format(script), top="attempts = 2", tables=f"[limits]\nwall_seconds = {BEAT}")
    spool.put("a.txt", "precious")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    assert spool.results() == {"done": set(), "quarantine": {"a.txt"}}
    assert (spool.root / "quarantine" / "a.txt").read_text() == "precious"
    assert spool.outcomes("a.txt") == [outcome] * (1 if outcome == "FAILED" else 2)


def test_the_copy_is_like_the_original(spool: SpoolFolder) -> None:
    spool.configure(SHELL.format('stat --format "%Y %s" "$1" > "$2"; basename "$1" >> "$2"'))
    spool.put("a.pdf", "x" * 10**7)
    os.utime(spool.root / "incoming" / "a.pdf", (5, 1234567))
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    assert (spool.root / "done" / "a.pdf").read_text() == "1234567 10000000\ninput.pdf\n"


def test_a_file_that_its_producer_changes_during_the_attempt(spool: SpoolFolder) -> None:
    """The producer's rename looked like its end; what it wrote later is not lost, and no half is published."""
    spool.configure(SHELL.format(': > "$2.begun"; cat "$1" > "$2"; while [ -e ../../../hold ]; do sleep 0.05; done'))
    (spool.root / "hold").touch()
    with serving(spool) as service:
        spool.put("a", "first")
        service.wait_for("STATUS=1 in work")
        (work,) = (spool.root / "work").glob("*/input")
        with work.open("a") as file:
            file.write(" and second")
        (spool.root / "hold").unlink()
        spool.wait_until(spool.is_quiet)
    assert (spool.root / "done" / "a").read_text() == "first and second"
    assert spool.outcomes("a") == ["CHANGED", "SUCCEEDED"]
    assert spool.names("done") == {"a"}


def test_a_folder_in_incoming_is_reported_once(spool: SpoolFolder) -> None:
    spool.configure()
    (spool.root / "incoming" / "old").mkdir()
    with serving(spool) as service:
        (spool.root / "incoming" / "new").mkdir()
        service.wait_for("STATUS=0 in work, 0 to take, 0 to try again, folders in incoming, which are not taken: 2")
        (spool.root / "incoming" / "new" / "inside").touch()
        spool.put("a", "content")
        spool.wait_until(lambda: spool.names("done") == {"a"})
        lines = [line for line in service.log_text().splitlines() if "folders in incoming are not taken" in line]
        assert sorted(", ".join(line.rpartition(": ")[2] for line in lines).split(", ")) == ["new", "old"]
        (spool.root / "incoming" / "new" / "inside").unlink()
        (spool.root / "incoming" / "new").rmdir()
        service.wait_for("STATUS=0 in work, 0 to take, 0 to try again, folders in incoming, which are not taken: 1")


@pytest.mark.parametrize("way", ["rename", "link", "no name"])
def test_a_file_is_not_taken_while_it_is_written_however_it_came(spool: SpoolFolder, way: str) -> None:
    spool.configure()
    target = spool.root / "incoming" / "late"
    with serving(spool):
        fd = os.open(spool.root, os.O_TMPFILE | os.O_WRONLY) if way == "no name" else _staged(spool)
        with open(fd, "w", encoding="ascii") as file:
            file.write("first")
            file.flush()
            _deliver(spool, way, file.fileno())
            for n in range(3):
                spool.put(f"{n}", "content")
                spool.wait_until(lambda n=n: f"{n}" in spool.names("done"))  # type: ignore[misc]
                target.read_text()
            file.write(" and second")
        spool.wait_until(spool.is_quiet)
    assert (spool.root / "done" / "late").read_text() == "FIRST AND SECOND"


def _staged(spool: SpoolFolder) -> int:
    return os.open(spool.root / "staged", os.O_CREAT | os.O_WRONLY)


def _deliver(spool: SpoolFolder, way: str, fd: int) -> None:
    target = spool.root / "incoming" / "late"
    match way:
        case "rename":
            (spool.root / "staged").rename(target)
        case "link":
            os.link(spool.root / "staged", target)
            (spool.root / "staged").unlink()
        case _:
            descriptors = os.open("/proc/self/fd", os.O_RDONLY)
            os.link(str(fd), target, src_dir_fd=descriptors, follow_symlinks=True)
            os.close(descriptors)


def test_a_guest_that_kills_its_supervisor(spool: SpoolFolder, backend: BackendName) -> None:
    """It takes others with it, but no file is tried for ever, and the service goes on."""
    spool.configure(top=f'workers = 1\ninterruptions = 2\nbackend = "{backend}"', tables=OPEN)
    spool.put("bad", "kill-parent")
    spool.put("good", "content")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
        spool.put("later", "content")
        spool.wait_until(spool.is_quiet)
    assert spool.results() == {"done": {"good", "later"}, "quarantine": {"bad"}}
    assert spool.outcomes("bad") == ["SANDBOX_ERROR"] * 2


@pytest.mark.landlock_scopes
def test_a_guest_cannot_kill_its_supervisor(spool: SpoolFolder, backend: BackendName) -> None:
    spool.configure(top=f'workers = 1\nbackend = "{backend}"')
    spool.put("bad", "kill-parent")
    spool.put("good", "content")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    assert spool.results() == {"done": {"good"}, "quarantine": {"bad"}}
    assert spool.outcomes("bad") == ["FAILED"]


def test_the_service_ends_when_no_sandbox_works(spool: SpoolFolder) -> None:
    """Rather than put everything into quarantine for no fault of its own."""
    worker = FUNCTION.replace("spool_worker:work", "broken_sandbox:work")
    spool.configure(worker, top='workers = 1\nbackend = "rlimit"', tables="[limits]\nopen_files = 64\n")
    for n in range(20):
        spool.put(f"{n}", "content")
    with ServiceProcess(spool) as service:
        assert service.wait() == 125
        assert "in a row, then for an empty task; see gwsandbox doctor" in service.log_text()
    assert spool.results()["quarantine"] == set()
    assert len(spool.names("incoming")) + len(spool.names("work")) == 20


def test_guests_that_break_their_sandbox_do_not_end_the_service(spool: SpoolFolder, backend: BackendName) -> None:
    spool.configure(top=f'workers = 1\ninterruptions = 2\nbackend = "{backend}"', tables=OPEN)
    for n in range(8):
        spool.put(f"bad-{n}", "kill-parent")
    with serving(spool) as service:
        spool.put("good", "content")
        spool.wait_until(spool.is_quiet)
        assert "but an empty task works" in service.log_text()
    assert spool.results() == {"done": {"good"}, "quarantine": {f"bad-{n}" for n in range(8)}}
