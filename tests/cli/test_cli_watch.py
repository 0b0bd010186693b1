"""``gwsandbox top``, ``ps`` and ``kill``: the tasks that run on this host."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_support import Running, Terminal, cli, running, wait_until
from support import BackendName
from test_cli_map import fill

from gwsandbox.backends import marks
from gwsandbox.cli.watch import command
from gwsandbox.cli.watch.guests import guest_of, running_guests

SCRIPT = "sh -c 'echo $$ >$1.pid; sleep 600 & wait' sh {}"


def listed(place: Path, words: tuple[str, ...] = ("ps", "--json")) -> dict[str, dict[str, Any]]:
    """The tasks of this test, by their last word."""
    tasks = json.loads(cli(*words).stdout)["tasks"]
    own = [task for task in tasks if task["manager_command"][-1:] == [str(place / "in")]]
    return {os.path.basename(task["command"][-1]): task for task in own if task["state"] != "waits"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    fill(tmp_path / "in", a="a", b="b")
    return tmp_path


@pytest.fixture
def run(backend: BackendName, place: Path) -> Iterator[Running]:
    """A map whose two tasks run until they are ended."""
    words = ["--workers", "2", "--memory", "200MiB", "--timeout", "300s", "--command", SCRIPT, str(place / "in")]
    with running("map", "--backend", backend, *words) as started:
        wait_until(lambda: all((place / "in" / f"{name}.pid").exists() for name in "ab"))
        yield started
        if started.process.poll() is None:
            started.send(signal.SIGINT)
            started.end()


def test_tasks_are_listed_with_their_limits(run: Running, backend: BackendName, place: Path) -> None:
    found = listed(place)
    assert found.keys() == {"a", "b"}
    for name, task in found.items():
        assert task["pid"] == int((place / "in" / f"{name}.pid").read_text())
        assert task["pid"] in task["processes"]
        assert task["command"][:2] == ["sh", "-c"]
        assert (task["memory_limit_bytes"], task["wall_limit_seconds"]) == (200 << 20, 300.0)
        assert (task["manager"], task["backend"], task["state"]) == (run.process.pid, backend, "runs")
        assert 0 < task["memory_bytes"] < 200 << 20
        assert 0 <= task["cpu_seconds"] <= task["age_seconds"] + 1
    assert listed(place, ("top", "--once", "--json")).keys() == found.keys()


def test_the_table_names_each_manager_once_and_fits(run: Running, place: Path) -> None:
    lines = cli("ps").stdout.splitlines()
    assert lines[0].split() == ["PID", "STATE", "AGE", "OF", "CPU", "MEMORY", "OF", "PROCS", "COMMAND"]
    (head,) = [line for line in lines if line.startswith(f"{run.process.pid} ")]
    assert "gwsandbox map" in head
    own = [line for line in lines if line.endswith((f"sh {place}/in/a", f"sh {place}/in/b"))]
    assert len(own) == 2
    assert all(" 300 s " in line and " 200 MiB " in line for line in own)
    assert max(map(len, lines)) <= 200


def test_top_at_a_terminal_goes_on_until_ctrl_c(run: Running, place: Path) -> None:
    assert run.process.poll() is None
    with Terminal("top", "--interval", "0.1", cwd=place, COLUMNS="300", LINES="60") as terminal:
        terminal.until("Ctrl-C ends it")
        terminal.until(f"{run.process.pid} ")
        terminal.type("\x03")
        assert terminal.end() == 0


def test_one_task_is_ended_and_the_others_go_on(run: Running, place: Path) -> None:
    task = listed(place)["a"]
    done = cli("kill", str(task["pid"]))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"sent SIGKILL to {task['pid']}: sh -c ")
    wait_until(lambda: listed(place).keys() == {"b"})
    # By any of its processes, with another signal.
    other = listed(place)["b"]
    done = cli("kill", "--signal", "TERM", str(max(other["processes"])))
    assert done.stdout.startswith(f"sent SIGTERM to {other['pid']}: ")
    code, _, stderr = run.end()
    assert code == 1
    assert f"KILLED {place}/in/a: ended by SIGKILL" in stderr
    assert f"KILLED {place}/in/b: ended by SIGTERM" in stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([str(os.getpid())], 1, f"gwsandbox kill: {os.getpid()} is no process of a task; `gwsandbox ps` lists them"),
        (["--signal", "LOUD", "1"], 2, "'LOUD' is no signal; write for example TERM or 15"),
        (["--signal", "99", "1"], 2, "'99' is no signal"),
        (["0"], 2, "Invalid value for 'PID': 0"),
    ],
)
def test_what_is_no_task_is_not_signalled(words: list[str], code: int, message: str) -> None:
    done = cli("kill", *words)
    assert done.returncode == code
    assert message in done.stderr


def test_functions_are_listed_and_what_waits_is_told_from_what_runs(backend: BackendName, place: Path) -> None:
    fill(place, **{"work.py": "import os, signal\ndef work(path):\n    open(path + '.on', 'w')\n    signal.pause()\n"})
    words = ["map", "--backend", backend, "--workers", "1", "work:work", "in"]
    with running(*words, cwd=place) as started:
        wait_until(lambda: (place / "in" / "a.on").exists())

        def states() -> list[str]:
            return sorted(guest.state for guest in running_guests() if guest.manager == started.process.pid)

        wait_until(lambda: states() == ["runs", "waits"])
        started.send(signal.SIGINT)
        started.end()
    assert not [guest for guest in running_guests() if guest.manager == started.process.pid]


def test_this_process_is_no_guest() -> None:
    assert guest_of(os.getpid()) is None


def test_names_of_guests_reach_the_terminal_escaped(backend: BackendName, place: Path) -> None:
    words = ["run", "--backend", backend, "--", "sh", "-c", "echo on; while :; do sleep 0.05; done", "\x1b[2J"]
    with running(*words, cwd=place) as started:
        assert started.line() == "on"
        shown = cli("ps").stdout
        assert "\x1b" not in shown
        assert r"\x1b[2J" in shown
        started.send(signal.SIGTERM)
        started.end()


@pytest.mark.parametrize(
    ("text", "mark"),
    [
        (b"Max file locks            unlimited            unlimited            locks\n", None),
        (b"Max file locks            0                    4611686018427387903  locks\n", (2**62 - 1, None, None)),
        (b"Max file locks            100                  200                  locks\n", None),
        (b"Max file locks            lots                 4611686018427387903  locks\n", (2**62 - 1, None, None)),
        (b"no such line\n", None),
    ],
)
def test_marks_in_the_text_of_proc(text: bytes, mark: tuple[int, None, None] | None) -> None:
    assert marks.read(text) == mark


def test_a_mark_carries_two_limits() -> None:
    said = marks.pack({"memory": 300 << 20, "wall_seconds": 1.5, "pids": 3})
    line = f"Max file locks            {said}   {2**62 - 7}  locks\n".encode()
    assert marks.read(line) == (2**62 - 7, 300 << 20, 1.5)
    most = marks.pack({"memory": 2**60, "wall_seconds": 1e9})
    assert most < 2**61


def test_a_task_that_ends_or_is_another_users_is_said(
    run: Running, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.process.poll() is None
    pid = listed(place)["a"]["pid"]
    found = guest_of(pid)
    answers = [found, None]
    monkeypatch.setattr(command, "guest_of", lambda _: answers.pop(0))
    assert command.kill_task(pid, signal.SIGKILL) == 1
    assert capsys.readouterr().err == f"gwsandbox kill: the task of process {pid} has ended meanwhile\n"

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(command, "guest_of", lambda _: found)
    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    assert command.kill_task(pid, signal.SIGKILL) == 125
    assert f"process {pid} cannot be signalled: Operation not permitted; try it as the user" in capsys.readouterr().err
