"""``gwsandbox map``: outputs, reports, resuming, interruption, what is shown, bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from cli_support import CLI, HANG_AFTER, Running, Terminal, cli, environment, rows, running, wait_until
from support import PACE, SLOW, BackendName, Watched, is_running, run_all

from gwsandbox import TaskResult
from gwsandbox.backends.cgroup.delegation import MOUNT
from gwsandbox.cli.map.target import FunctionTarget

WORKER = '''
import asyncio, ctypes, os, signal, sys, time

def convert(path, output):
    """Does what the input says."""
    with open(path, "rb") as file:
        text = file.read().decode()
    with open(output, "w") as file:
        file.write(text.upper())
    obey(text)

def obey(text):
    if text.startswith("fail"):
        raise ValueError("a bad document:\\nof two lines \\x1b[2J")
    if text.startswith("hang"):
        signal.pause()
    if text.startswith("gorge"):
        filled = []
        while True:
            filled.append(b"x" * 2**20)
    if text.startswith("crash"):
        os.kill(os.getpid(), signal.SIGSEGV)
    if text.startswith("wait"):  # until the test says go on, by making a file
        with open(f"{os.environ['SIGNS']}/{os.getpid()}", "w"):
            pass
        while not os.path.exists(f"{os.environ['SIGNS']}/go"):
            time.sleep(0.01)

def read(path):
    with open(path) as file:
        obey(file.read())
    return object()

def write_nothing(path, output):
    pass

def write_link(path, output):
    os.symlink("/etc/passwd", output)

def show_descriptors(path):
    raise ValueError([os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if int(fd) > 2
                      and os.path.exists(f"/proc/self/fd/{fd}")])

def generate(path):
    yield path

async def generate_async(path):
    yield path

class Generator:
    def __call__(self, path):
        yield path

generator = Generator()

async def wait_and_read(path):
    await asyncio.sleep(0)
    return read(path)

def give(path):
    return eval(open(path).read())

def say(path):
    print("a guest says \\x1b[31mred", flush=True)
    os.system(r"printf 'a program says \\033[2J\\rtwo lines\\n' >&2")

class Steps:
    @staticmethod
    def convert(path, output):
        convert(path, output)

number = 5
'''


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a worker in it, and signs beside it that a test and its tasks give each other."""
    (tmp_path / "signs").mkdir()
    monkeypatch.setenv("SIGNS", str(tmp_path / "signs"))
    folder = tmp_path / "place"
    folder.mkdir()
    (folder / "worker.py").write_text(WORKER)
    return folder


def fill(folder: Path, **texts: str) -> None:
    """Make files of these texts; ``__`` in a name is a slash."""
    for name, text in texts.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def tree(folder: Path) -> dict[str, str]:
    """All files below a folder and what is in them, but for what Python compiles of them."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    return {str(path.relative_to(folder)): path.read_text() for path in files}


def convert(place: Path, *words: str, backend: BackendName = "rlimit", **options: Any) -> tuple[int, str, str]:
    """``gwsandbox map … worker:convert in --output-dir out``."""
    done = cli("map", "--backend", backend, "--output-dir", "out", *words, "worker:convert", "in", cwd=place, **options)
    return done.returncode, done.stdout, done.stderr


def summary(stderr: str) -> str:
    """The last line without its time."""
    return re.sub(r" in \d+\.\d s", "", stderr.splitlines()[-1])


# --- outputs ---------------------------------------------------------------------------------------------


def test_outputs_are_named_as_their_inputs(backend: BackendName, place: Path) -> None:
    fill(place / "in", b="b", a="a", deep__er__c="c")
    code, stdout, stderr = convert(place, backend=backend)
    assert (code, stdout, summary(stderr)) == (0, "", "gwsandbox map: 3 succeeded")
    assert stderr.count("\n") == 1
    assert tree(place / "out") == {"a": "A", "b": "B", "deep/er/c": "C"}


def test_plain_files_and_folders_none_twice(place: Path) -> None:
    fill(place, in__a="a", in__b="b", other__c="c")
    words = ["in/b", "in", "./in/../in/a", str(place / "other" / "c")]
    done = cli(
        "map", "--backend", "rlimit", "--output-dir", "out", "worker:convert", *words, "--report", "r", cwd=place
    )
    assert summary(done.stderr) == "gwsandbox map: 3 succeeded"
    assert {row["input"] for row in rows(place / "r")} == {"in/b", "in/a", str(place / "other" / "c")}
    assert tree(place / "out") == {"a": "A", "b": "B", "c": "C"}


def test_output_folder_and_report_inside_of_the_input_are_no_inputs(place: Path) -> None:
    fill(place, a="a", b="b")
    words = ["--report", "r.jsonl", "--output-dir", "out", "worker:convert", "."]
    os.rename(place / "worker.py", place.parent / "worker.py")
    paths = os.pathsep.join([str(place.parent), *filter(None, sys.path)])
    for expected in ("2 succeeded", "0 succeeded, 2 skipped"):
        done = cli("map", "--backend", "rlimit", *words, cwd=place, env=environment(PYTHONPATH=paths))
        assert summary(done.stderr) == f"gwsandbox map: {expected}"
    assert tree(place / "out") == {"a": "A", "b": "B"}
    assert sorted(row["input"] for row in rows(place / "r.jsonl")) == ["a", "b"]


def test_each_end_is_told_apart(backend: BackendName, place: Path) -> None:
    fill(place / "in", crash="crash", fail="fail", good="good", gorge="gorge", hang="hang")
    code, _, stderr = convert(
        place, "--memory", "24MiB", "--timeout", "5s", "--report", "r.jsonl", "--workers", "2", backend=backend
    )
    assert code == 1
    assert sorted(stderr.splitlines()[:-1]) == [
        "CRASHED in/crash: crashed with SIGSEGV",
        r"FAILED in/fail: the function raised: ValueError: a bad document: of two lines \x1b[2J",
        *(line for line in stderr.splitlines() if line.startswith("OUT_OF_MEMORY in/gorge: memory limit of 24 MiB")),
        "TIMED_OUT in/hang: wall-clock limit of 5 s reached; raise --timeout (wall_seconds) if the work needs longer",
    ]
    assert "OUT_OF_MEMORY in/gorge" in stderr
    assert summary(stderr) == "gwsandbox map: 1 succeeded, 1 failed, 1 timed out, 1 out of memory, 1 crashed"
    assert tree(place / "out") == {"good": "GOOD"}  # what the others had written by then is nobody's
    outcomes = {row["input"]: row["outcome"] for row in rows(place / "r.jsonl")}
    assert outcomes == {
        "in/crash": "CRASHED",
        "in/fail": "FAILED",
        "in/good": "SUCCEEDED",
        "in/gorge": "OUT_OF_MEMORY",
        "in/hang": "TIMED_OUT",
    }


def test_an_output_that_was_not_written_is_a_failure(place: Path) -> None:
    fill(place / "in", a="a", b="b")
    done = cli("map", "--backend", "rlimit", "--output-dir", "out", "worker:write_nothing", "in", cwd=place)
    assert done.returncode == 1
    assert "FAILED in/a: it succeeded, but wrote no output file" in done.stderr.splitlines()
    assert not os.listdir(place / "out")


def test_an_output_that_is_no_file_is_a_failure(place: Path) -> None:
    fill(place / "in", a="a")
    done = cli("map", "--backend", "rlimit", "--output-dir", "out", "worker:write_link", "in", cwd=place)
    assert done.returncode == 1
    assert done.stderr.startswith("FAILED in/a: it succeeded, but what it wrote is not a regular file\n")
    assert not os.listdir(place / "out")


def test_without_output_folder_the_function_gets_the_input_alone(backend: BackendName, place: Path) -> None:
    fill(place / "in", a="a", b="fail")
    done = cli("map", "--backend", backend, "worker:read", "in", cwd=place)
    assert (done.returncode, summary(done.stderr)) == (1, "gwsandbox map: 1 succeeded, 1 failed")


def test_functions_inside_of_classes(place: Path) -> None:
    fill(place / "in", a="a")
    done = cli("map", "--backend", "rlimit", "--output-dir", "out", "worker:Steps.convert", "in", cwd=place)
    assert done.returncode == 0, done.stderr
    assert tree(place / "out") == {"a": "A"}


def test_guests_do_not_have_the_report_open(place: Path) -> None:
    fill(place / "in", a="a")
    cli("map", "--backend", "rlimit", "--report", "r.jsonl", "worker:show_descriptors", "in", cwd=place)
    message = rows(place / "r.jsonl")[0]["exception"]["message"]
    assert "r.jsonl" not in message


def test_command(backend: BackendName, place: Path) -> None:
    fill(place / "in", **{"with space": "text", "{output}": "braces", "-n": "dash"})
    template = 'sh -c \'tr a-z A-Z <"$1" >"$2"\' name {input} {output}'
    words = ["--backend", backend, "--output-dir", "out", "--report", "r.jsonl", "--command", template]
    done = cli("map", *words, "in", cwd=place)
    assert (done.returncode, summary(done.stderr)) == (0, "gwsandbox map: 3 succeeded")
    assert tree(place / "out") == {"with space": "TEXT", "{output}": "BRACES", "-n": "DASH"}
    tasks = [row["task"] for row in rows(place / "r.jsonl")]
    assert ["sh", "-c", 'tr a-z A-Z <"$1" >"$2"', "name", "in/with space", "out/with space"] in tasks


def test_a_path_that_begins_with_a_dash_is_no_option(place: Path) -> None:
    fill(place, **{"-n": "text"})
    (place / "worker.py").unlink()
    done = cli("map", "--backend", "rlimit", "--command", "cat {input}", "--", "-n", cwd=place)
    assert done.returncode == 0, done.stderr


def test_a_failing_commands_last_words_are_shown(place: Path) -> None:
    fill(place / "in", a="a")
    script = "sh -c 'echo first >&2; echo the reason >&2; exit 3' name {input}"
    done = cli("map", "--backend", "rlimit", "--report", "r", "--command", script, "in", cwd=place)
    assert done.returncode == 1
    assert done.stderr.startswith("FAILED in/a: exit code 3: the reason\n")
    assert rows(place / "r")[0]["detail"] == "exit code 3: the reason"


# --- report and resuming ---------------------------------------------------------------------------------


def test_rows_have_the_input_and_the_fields_of_a_result(backend: BackendName, place: Path) -> None:
    fill(place / "in", a="abc")
    convert(place, "--report", "r.jsonl", backend=backend)
    (row,) = rows(place / "r.jsonl")
    own = ["input", "output", "input_size", "input_mtime_ns", "output_size"]
    of_result = [field.name for field in fields(TaskResult) if field.name != "result"]
    assert list(row) == [*own, *of_result, "limits", "folder", "repeat", "report"]
    words = ["--fresh", "--output-dir", "out", "--", "worker:convert", "in/a"]
    assert (row["limits"], row["folder"], row["repeat"]) == ({}, str(place), ["gwsandbox", "map", *words])
    assert (row["input"], row["output"], row["input_size"]) == ("in/a", "out/a", 3)
    assert row["input_mtime_ns"] == (place / "in" / "a").stat().st_mtime_ns
    assert row["task"] == ["worker:convert", "in/a", "out/a"]
    assert (row["outcome"], row["exception"], row["enforcement"]["backend"]) == ("SUCCEEDED", None, backend)


def test_the_same_command_again_does_nothing(place: Path) -> None:
    fill(place / "in", a="a", b="fail", c="c")
    assert convert(place, "--report", "r.jsonl")[0] == 1
    before = (place / "r.jsonl").read_bytes()
    code, _, stderr = convert(place, "--report", "r.jsonl")
    assert code == 1  # not all of the inputs succeeded, though it was an earlier run's
    assert summary(stderr) == (
        "gwsandbox map: 0 succeeded, 3 skipped; 1 of the skipped did not succeed: --retry-failed does them again"
    )
    assert (place / "r.jsonl").read_bytes() == before


def test_changed_and_new_inputs_and_lost_outputs_are_done_again(place: Path) -> None:
    fill(place / "in", a="a", b="b", c="c")
    convert(place, "--report", "r.jsonl")
    fill(place / "in", b="other", d="d")
    (place / "out" / "c").unlink()
    code, _, stderr = convert(place, "--report", "r.jsonl")
    assert (code, summary(stderr)) == (0, "gwsandbox map: 3 succeeded, 1 skipped")
    assert tree(place / "out") == {"a": "A", "b": "OTHER", "c": "C", "d": "D"}


def test_retry_failed(place: Path) -> None:
    fill(place / "in", a="a", b="fail")
    convert(place, "--report", "r.jsonl")
    code, _, stderr = convert(place, "--report", "r.jsonl", "--retry-failed")
    assert (code, summary(stderr)) == (1, "gwsandbox map: 0 succeeded, 1 failed, 1 skipped")
    assert [row["input"] for row in rows(place / "r.jsonl")].count("in/b") == 2


def test_fresh_starts_the_report_anew(place: Path) -> None:
    fill(place / "in", a="a", b="fail")
    convert(place, "--report", "r.jsonl")
    code, _, stderr = convert(place, "--report", "r.jsonl", "--fresh")
    assert (code, summary(stderr)) == (1, "gwsandbox map: 1 succeeded, 1 failed")
    assert len(rows(place / "r.jsonl")) == 2


def test_cancelled_and_failed_by_us_is_not_final(place: Path) -> None:
    fill(place / "in", a="a", b="b", c="c")
    convert(place, "--report", "r.jsonl")
    lines = [
        json.dumps({**row, "outcome": outcome}) + "\n"
        for row, outcome in zip(rows(place / "r.jsonl"), ["CANCELLED", "SANDBOX_ERROR", "SUCCEEDED"], strict=True)
    ]
    (place / "r.jsonl").write_text("".join(lines))
    assert summary(convert(place, "--report", "r.jsonl")[2]) == "gwsandbox map: 2 succeeded, 1 skipped"


def test_a_torn_last_row_is_cut_off(place: Path) -> None:
    fill(place / "in", a="a", b="b", c="c")
    convert(place, "--report", "r.jsonl")
    whole = (place / "r.jsonl").read_bytes()
    (place / "r.jsonl").write_bytes(whole[:-20])
    code, _, stderr = convert(place, "--report", "r.jsonl")
    assert (code, summary(stderr)) == (0, "gwsandbox map: 1 succeeded, 2 skipped")
    assert sorted(row["input"] for row in rows(place / "r.jsonl")) == ["in/a", "in/b", "in/c"]
    assert (place / "r.jsonl").read_bytes().endswith(b"\n")


def test_a_report_of_one_torn_row(place: Path) -> None:
    fill(place / "in", a="a")
    (place / "r.jsonl").write_text('{"inp')
    assert convert(place, "--report", "r.jsonl")[0] == 0
    assert len(rows(place / "r.jsonl")) == 1


def test_without_report_outputs_that_are_not_older_are_skipped(place: Path) -> None:
    fill(place / "in", a="a", b="fail", c="c")
    convert(place)
    fill(place / "in", c="changed")
    os.utime(place / "in" / "c", (time.time() + 60, time.time() + 60))
    code, _, stderr = convert(place)
    assert (code, summary(stderr)) == (1, "gwsandbox map: 1 succeeded, 1 failed, 1 skipped")
    assert tree(place / "out") == {"a": "A", "c": "CHANGED"}
    assert summary(convert(place, "--fresh")[2]) == "gwsandbox map: 2 succeeded, 1 failed"


def test_file_names_that_are_no_text(place: Path) -> None:
    fill(place / "in", a="fail")
    name = os.fsencode(place / "in") + b"/\xff\x1b[2J\n"
    os.rename(place / "in" / "a", name)
    code, stdout, stderr = convert(place, "--report", "r.jsonl", "--table")
    assert code == 1
    assert r"FAILED in/\udcff\x1b[2J : the function raised" in stderr
    assert "\x1b" not in stdout + stderr
    assert os.fsencode(rows(place / "r.jsonl")[0]["input"]) == b"in/\xff\x1b[2J\n"
    assert "1 skipped" in convert(place, "--report", "r.jsonl")[2]


# --- interruption ----------------------------------------------------------------------------------------


def signs(place: Path) -> list[int]:
    """Pids of the tasks that wait for the test."""
    return [int(name) for name in os.listdir(place.parent / "signs") if name.isdigit()]


@pytest.fixture
def interrupted(backend: BackendName, place: Path) -> Iterator[tuple[Running, Path]]:
    """A run that has done four of its nine inputs, and whose two workers are busy with the next two."""
    fill(place / "in", **{f"{number}": "quick" if number <= 4 else "wait" for number in range(1, 10)})
    words = ["--backend", backend, "--workers", "2", "--output-dir", "out", "--report", "r.jsonl"]
    with running("map", *words, "worker:convert", "in", cwd=place) as command:
        wait_until(lambda: len(rows(place / "r.jsonl")) == 4 and len(signs(place)) == 2)
        yield command, place


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_in_the_middle(
    interrupted: tuple[Running, Path], backend: BackendName, number: signal.Signals
) -> None:
    command, place = interrupted
    with Watched(*signs(place)) as tasks:
        command.send(number)
        code, stdout, stderr = command.end()
        assert not any(map(is_running, tasks.pids))
    assert (code, stdout) == (128 + number, "")
    assert stderr == (
        "gwsandbox map: interrupted with 4 of 9 inputs done; the rest was ended and cleaned up; "
        "the same command does the rest\n"
    )
    assert sorted(os.listdir(place / "out")) == ["1", "2", "3", "4"]  # and no staging folder
    (place.parent / "signs" / "go").touch()
    code, _, stderr = convert(place, "--report", "r.jsonl", "--workers", "2", backend=backend)
    assert (code, summary(stderr)) == (0, "gwsandbox map: 5 succeeded, 4 skipped")
    assert sorted(row["input"] for row in rows(place / "r.jsonl")) == [f"in/{name}" for name in range(1, 10)]
    assert sorted(os.listdir(place / "out")) == [str(name) for name in range(1, 10)]


def test_impatience_does_not_leave_anything_behind(interrupted: tuple[Running, Path]) -> None:
    """A second Ctrl-C, and a third, while the first is being cleaned up after."""
    command, place = interrupted
    with Watched(*signs(place)) as tasks:
        for _ in range(3):
            command.send(signal.SIGINT)
        code, _, stderr = command.end()
        assert not any(map(is_running, tasks.pids))
    assert code == 130
    assert stderr.count("\n") == 1
    assert sorted(os.listdir(place / "out")) == ["1", "2", "3", "4"]


def test_after_sigkill_the_same_command_does_the_rest(interrupted: tuple[Running, Path], backend: BackendName) -> None:
    command, place = interrupted
    with Watched(*signs(place)) as tasks:
        command.send(signal.SIGKILL)
        command.end()
        assert not tasks.living_after(30)
    left = [name for name in os.listdir(place / "out") if name.startswith(".gwsandbox-")]
    assert len(left) == 1
    (place.parent / "signs" / "go").touch()
    code, _, stderr = convert(place, "--report", "r.jsonl", backend=backend)
    assert (code, summary(stderr)) == (0, "gwsandbox map: 5 succeeded, 4 skipped")
    assert sorted(os.listdir(place / "out")) == [str(name) for name in range(1, 10)]


def test_another_runs_staging_folder_and_report_are_left_alone(interrupted: tuple[Running, Path]) -> None:
    command, place = interrupted
    fill(place / "more", x="x")
    words = ["--backend", "rlimit", "--output-dir", "out", "worker:convert", "more"]
    done = cli("map", *words, "--report", "r.jsonl", cwd=place)
    assert done.returncode == 125
    assert done.stderr == (
        "gwsandbox map: the report r.jsonl is being written by another run; "
        "wait for that, or choose another one by --report\n"
    )
    assert cli("map", *words, cwd=place).returncode == 0
    (place.parent / "signs" / "go").touch()
    code, _, stderr = command.end()
    assert (code, summary(stderr)) == (0, "gwsandbox map: 9 succeeded")
    assert sorted(os.listdir(place / "out")) == [*(str(name) for name in range(1, 10)), "x"]


def test_interrupted_without_anything_that_remembers(place: Path) -> None:
    fill(place / "in", a="wait")
    with running("map", "--backend", "rlimit", "worker:read", "in", cwd=place) as command:
        wait_until(lambda: signs(place))
        command.send(signal.SIGINT)
        code, _, stderr = command.end()
    assert code == 130
    assert stderr.endswith("the same command starts from the first again (with --report FILE it goes on from here)\n")


def test_interrupted_before_anything_started(place: Path) -> None:
    fill(place / "in", a="a")
    (place / "slow_to_import.py").write_text(
        "import os, signal\nprint('importing', flush=True)\nsignal.pause()\ndef work(path): pass\n"
    )
    with running("map", "--backend", "rlimit", "slow_to_import:work", "in", cwd=place) as command:
        assert command.line() == "importing"
        command.send(signal.SIGINT)
        assert command.end() == (130, "", "gwsandbox map: interrupted before anything was started\n")


# --- what is shown ---------------------------------------------------------------------------------------


def test_table(backend: BackendName, place: Path) -> None:
    fill(place / "in", a="a", b="fail", c="c")
    _, stdout, _ = convert(place, "--table", backend=backend)
    lines = stdout.splitlines()
    assert re.fullmatch(r"OUTCOME +TIME +PEAK MEMORY +FILE", lines[0])
    assert [line.split()[0] for line in lines[1:]] == ["SUCCEEDED", "FAILED", "SUCCEEDED"]
    assert [line.split()[-1] for line in lines[1:]] == ["in/a", "in/b", "in/c"]
    assert all(re.search(r"\d\.\d\d s +[\d.]+ [KM]iB  in/", line) for line in lines[1:])


def test_progress_bar_at_a_terminal_only(place: Path) -> None:
    fill(place / "in", a="a", b="fail", c="c")
    words = ["map", "--backend", "rlimit", "--output-dir", "out", "worker:convert", "in"]
    with Terminal(*words, cwd=place) as terminal:
        assert terminal.end() == 1
        assert "3/3" in terminal.shown
        assert "FAILED in/b: the function raised" in terminal.shown
        assert "gwsandbox map: 2 succeeded, 1 failed in" in terminal.shown
    with Terminal(*words, "--fresh", cwd=place, TERM="dumb") as terminal:
        terminal.end()
        assert "3/3" not in terminal.shown


def test_ctrl_c_at_a_terminal(place: Path) -> None:
    fill(place / "in", a="a", b="wait")
    words = ["map", "--backend", "rlimit", "--report", "r.jsonl", "worker:read", "in"]
    with Terminal(*words, cwd=place) as terminal:
        wait_until(lambda: signs(place) and rows(place / "r.jsonl"))
        terminal.type("\x03")
        assert terminal.end() == 130
        assert "interrupted with 1 of 2 inputs done" in terminal.shown
        assert "Traceback" not in terminal.shown


def test_what_is_not_held_is_said_once(place: Path) -> None:
    fill(place / "in", a="a", b="b", c="c")
    _, _, stderr = convert(place, "--cpus", "0.5")
    assert stderr.count("gwsandbox map: warning: cpus was not limited: ") == 1


def test_no_inputs_is_no_error(place: Path) -> None:
    (place / "in").mkdir()
    code, _, stderr = convert(place)
    assert (code, summary(stderr)) == (0, "gwsandbox map: 0 succeeded")


# --- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["worker", "in"], "'worker' is not MODULE:FUNCTION; write worker:convert for example, or --command"),
        (["nowhere:work", "in"], "there is no module 'nowhere' in "),
        (["worker:nothing", "in"], "has no 'nothing'; check the name"),
        (["worker:number", "in"], "'worker:number' cannot be called: it is of type int; name a function"),
        (["worker:convert", "in"], "cannot be called as function(input): missing a required argument: 'output'"),
        (["--output-dir", "out", "worker:read", "in"], "cannot be called as function(input, output): too many"),
        (["broken:work", "in"], "module 'broken' cannot be imported: "),
        (["broken:work", "in"], "broken.py, line 2: NameError: name 'missing' is not defined"),
        (["half:work", "in"], "half.py, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        (["leaves:work", "in"], "leaves.py, line 1: SystemExit: 3"),
        (["--command", "cat", "in"], "--command 'cat' has no {input}; write it where the input's path goes"),
        (["--command", "cat '{input}", "in"], "No closing quotation; check its quotes"),
        (["--command", "cp {input} {output}", "in"], "has an {output}; say --output-dir DIR, or take it out"),
        (["--command", "cat {input}", "--output-dir", "out", "in"], "has no {output}; add it, or leave out"),
        (["worker:read", "in", "gone"], "1 input cannot be read, so nothing was started: gone: No such file"),
        (["worker:read", "in", "gone", "/dev/null"], "2 inputs cannot be read, so nothing was started: gone: "),
        (
            ["worker:read", "broken-link"],
            "1 input cannot be read, so nothing was started: broken-link/link: No such file",
        ),
        (["worker.py:read", "in"], "'worker.py:read' is not MODULE:FUNCTION; write worker:read"),
        (["./deep/worker.py:read", "in"], "is not MODULE:FUNCTION; write deep.worker:read"),
        (["worker.read", "in"], "'worker.read' is not MODULE:FUNCTION; write worker:read, or --command"),
        (["worker.py", "in"], "'worker.py' is not MODULE:FUNCTION; write worker:FUNCTION, or --command"),
        (["worker:convrt", "in"], "has no 'convrt'; check the name (did you mean 'convert'?)"),
        (["worker:generate", "in"], "'worker:generate' is a generator function: a call runs nothing of it; name a"),
        (["worker:generate_async", "in"], "'worker:generate_async' is a generator function: a call runs nothing"),
        (["worker:generator", "in"], "'worker:generator' is a generator function: a call runs nothing of it"),
        (["--command", "cat {input} > copy", "in"], "has '>', and no shell reads it; write sh -c "),
        (["--command", "cat {input} 2>&1", "in"], "has '2>&', and no shell reads it; write sh -c "),
        (["--command", "cat {input}|wc", "in"], "has '|', and no shell reads it; write sh -c "),
        (["--command", "cat {input}; true", "in"], "has ';', and no shell reads it; write sh -c "),
        (["--command", "true && cat {input}", "in"], "has '&&', and no shell reads it; write sh -c "),
        (["--command", "cat {input} $(date)", "in"], "has '$(', and no shell reads it; write sh -c "),
        (["--command", "cat {input} {Input}", "in"], "has {Input}; did you mean {input}?"),
        (["--command", "cp {input} {outptu}", "in"], "has {outptu}; did you mean {output}?"),
        (
            ["--command", "no-such {input}", "in"],
            ": no-such is not found in any folder of PATH, so nothing was started",
        ),
        (["--command", "./no-such {input}", "in"], ": ./no-such is not found, so nothing was started"),
        (["--command", "./worker.py {input}", "in"], ": ./worker.py cannot be executed, so nothing was started; check"),
        (["--output-dir", "in/a/out", "worker:convert", "in"], "the output folder in/a/out cannot be written: "),
        (["--output-dir", "in", "worker:convert", "in"], "the output of in/a would replace in/a"),
        (["--output-dir", "out", "worker:convert", "in", "more/a"], "more/a and in/a both give a"),
        (["--output-dir", "out", "worker:convert", "in", "deep"], "deep/a/x needs a folder where in/a gives a file"),
        (["--output-dir", ".", "--report", "a", "worker:convert", "in"], "the output of in/a would replace ./a"),
        (["--report", "no/r.jsonl", "worker:read", "in"], "the report no/r.jsonl cannot be written: No such file"),
        (["--report", "in", "worker:read", "in"], "the report in cannot be written: Is a directory"),
        (["--report", "/dev/null", "worker:read", "in"], "the report /dev/null is not a regular file"),
        (["--report", "worker.py", "worker:read", "in"], "worker.py is not a report of gwsandbox map (line 1)"),
        (["--report", "deep.jsonl", "worker:read", "in"], "deep.jsonl is not a report of gwsandbox map (line 1)"),
    ],
)
def test_bad_input_is_one_line_before_anything_starts(place: Path, words: list[str], message: str) -> None:
    fill(place, in__a="wait", more__a="wait", deep__a__x="wait")
    fill(place, **{"broken.py": "x = 1\nmissing\n", "half.py": "import nowhere\n", "leaves.py": "exit(3)\n"})
    (place / "deep.jsonl").write_text("[" * 100_000 + "\n")
    (place / "broken-link").mkdir()
    (place / "broken-link" / "link").symlink_to("nowhere")
    before = tree(place)
    done = cli("map", "--backend", "rlimit", *words, cwd=place)
    assert (done.returncode, done.stdout) == (125, ""), done.stderr
    assert done.stderr.startswith("gwsandbox map: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert tree(place) == before
    assert not signs(place)


@pytest.mark.ordinary_user
def test_unreadable_inputs_are_named(place: Path) -> None:
    fill(place / "in", a="a", secret="x", closed__b="b")
    (place / "in" / "secret").chmod(0)
    (place / "in" / "closed").chmod(0)
    done = cli("map", "--backend", "rlimit", "worker:read", "in", cwd=place)
    named = cli("map", "--backend", "rlimit", "worker:read", "in", "in/closed", "in/secret", cwd=place)
    (place / "in" / "closed").chmod(0o700)
    what = "in/closed: Permission denied; in/secret: Permission denied\n"
    assert done.returncode == 1
    assert done.stderr.startswith(f"gwsandbox map: warning: 2 inputs cannot be read and are left out: {what}")
    assert summary(done.stderr) == "gwsandbox map: 1 succeeded, 2 not readable"
    assert named.returncode == 125
    assert named.stderr == f"gwsandbox map: 2 inputs cannot be read, so nothing was started: {what}"


def test_links_that_lead_nowhere_in_a_folder_are_left_out(place: Path) -> None:
    """As editors and browsers make them; one that is named on the command line is refused."""
    fill(place / "in", a="a")
    (place / "in" / ".#lock").symlink_to("nowhere")
    (place / "in" / "loop").symlink_to("loop")
    done = cli("map", "--backend", "rlimit", "worker:read", "in", cwd=place)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "gwsandbox map: warning: 2 inputs cannot be read and are left out: in/.#lock: No such file or directory; "
        "in/loop: Too many levels of symbolic links\n"
    )
    assert summary(done.stderr) == "gwsandbox map: 1 succeeded, 2 not readable"


def test_a_folder_without_a_file_is_said(place: Path) -> None:
    (place / "in").mkdir()
    done = cli("map", "--backend", "rlimit", "worker:read", "in", cwd=place)
    assert done.returncode == 0
    assert done.stderr.startswith("gwsandbox map: warning: there is no file in in\n")


@pytest.mark.ordinary_user
def test_an_output_folder_that_cannot_be_written(place: Path) -> None:
    fill(place / "in", a="a")
    (place / "out").mkdir(mode=0o500)
    code, _, stderr = convert(place)
    assert code == 125
    assert stderr.startswith("gwsandbox map: the output folder out cannot be written: Permission denied; ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Usage: gwsandbox map"),
        (["worker:read"], "Invalid value for INPUT: name at least one file or folder"),
        (["--workers", "-1", "worker:read", "in"], "Invalid value for '--workers': -1"),
        (["--workers", "two", "worker:read", "in"], "Invalid value for '--workers': 'two'"),
        (["--workers", "10000000", "worker:read", "in"], "10000000 tasks cannot run at a time here: "),
        (["--memory", "1", "worker:read", "in"], "'1' is 1 B, which is too little for any program; write for example"),
        (["--memory", "lots", "worker:read", "in"], "Invalid value for '--memory': 'lots' is not a size"),
    ],
)
def test_bad_calls_are_usage_errors(place: Path, words: list[str], message: str) -> None:
    done = cli("map", *words, cwd=place)
    assert done.returncode == 2
    assert message in done.stderr


def test_many_problems_are_counted_and_the_first_shown(place: Path) -> None:
    done = cli("map", "--backend", "rlimit", "worker:read", *(f"gone-{n}" for n in range(30)), cwd=place)
    assert done.returncode == 125
    assert done.stderr.startswith("gwsandbox map: 30 inputs cannot be read")
    assert done.stderr.endswith("gone-9: No such file or directory; and 20 more\n")


# --- what a function gives, and a program writes -----------------------------------------------------------


def test_coroutine_functions_are_run(backend: BackendName, place: Path) -> None:
    fill(place / "in", a="a", b="fail")
    done = cli("map", "--backend", backend, "worker:wait_and_read", "in", cwd=place)
    assert (done.returncode, summary(done.stderr)) == (1, "gwsandbox map: 1 succeeded, 1 failed")


def test_values_are_in_the_report_as_json(backend: BackendName, place: Path) -> None:
    values = {"a": "{'n': [1, 2.5, None, 'é']}", "b": "__import__('numpy').int64(7)", "c": "None", "d": "0"}
    fill(place / "in", **values)
    done = cli("map", "--backend", backend, "--report", "r.jsonl", "worker:give", "in", cwd=place)
    assert done.returncode == 0, done.stderr
    found = {row["input"]: row.get("result", "none") for row in rows(place / "r.jsonl")}
    assert found == {"in/a": {"n": [1, 2.5, None, "é"]}, "in/b": 7, "in/c": "none", "in/d": 0}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("object()", "a value of type object is not JSON"),
        ("float('nan')", "a value of type float is not JSON"),
        ("'x' * 2**21", "a value of 2097165 bytes of JSON is too large"),
    ],
)
def test_a_value_that_is_no_json_is_said_once(place: Path, value: str, why: str) -> None:
    fill(place / "in", a=value, b=value)
    done = cli("map", "--backend", "rlimit", "--report", "r.jsonl", "worker:give", "in", cwd=place)
    assert done.returncode == 0
    assert done.stderr.splitlines()[:-1] == [f"gwsandbox map: warning: {why}, so the report has no result of it"]
    assert ["result" in row for row in rows(place / "r.jsonl")] == [False, False]


@pytest.mark.parametrize("value", ["(n for n in [1])", "__import__('asyncio').sleep(0)"])
def test_a_function_whose_work_was_not_run_fails(place: Path, value: str) -> None:
    """It is no generator function, so that this shows only when it is called."""
    fill(place / "in", a=value)
    done = cli("map", "--backend", "rlimit", "worker:give", "in", cwd=place)
    assert done.returncode == 1
    assert "of which nothing was run; let it return a value" in done.stderr


def test_what_programs_write_is_in_the_report_and_shown_where_wanted(backend: BackendName, place: Path) -> None:
    fill(place / "in", a="a")
    template = "sh -c 'cat \"$1\"; echo more >&2' sh {input}"
    words = ["map", "--backend", backend, "--report", "r.jsonl", "--command", template, "in"]
    done = cli(*words, cwd=place)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    (row,) = rows(place / "r.jsonl")
    assert (row["stdout"], row["stderr"]) == ("a", "more\n")
    done = cli(*words, "--show-output", "--fresh", cwd=place)
    assert done.stdout == "a"
    assert done.stderr.startswith("more\n")


def test_the_report_has_the_end_of_what_programs_write(place: Path) -> None:
    fill(place / "in", a="a")
    template = "sh -c 'head -c 100000 /dev/zero; echo end' sh {input}"
    cli("map", "--backend", "rlimit", "--report", "r.jsonl", "--command", template, "in", cwd=place)
    (row,) = rows(place / "r.jsonl")
    assert row["stdout"].startswith("... \0")
    assert row["stdout"].endswith("\0end\n")
    assert len(row["stdout"]) == 4 + (1 << 16)


# --- at a terminal -----------------------------------------------------------------------------------------


def test_what_guests_say_reaches_no_terminal_raw(backend: BackendName, place: Path) -> None:
    fill(place / "in", a="a")
    with Terminal("map", "--backend", backend, "worker:say", "in", cwd=place) as terminal:
        assert terminal.end() == 0
    assert r"a guest says \x1b[31mred" in terminal.shown
    assert r"a program says \x1b[2J" in terminal.shown
    assert "two lines" in terminal.shown
    assert "\x1b[31mred" not in terminal.shown.replace(r"\x1b", "")
    assert "\x1b[2J" not in terminal.shown


def test_what_programs_say_is_shown_at_no_terminal_raw(place: Path) -> None:
    fill(place / "in", a="\x1b[2Jtext\n")
    words = ["map", "--backend", "rlimit", "--show-output", "--command", "cat {input}", "in"]
    with Terminal(*words, cwd=place) as terminal:
        assert terminal.end() == 0
    assert r"\x1b[2Jtext" in terminal.shown
    assert "\x1b[2J" not in terminal.shown


def test_where_there_is_no_terminal_guests_write_as_they_like(place: Path) -> None:
    fill(place / "in", a="a")
    done = cli("map", "--backend", "rlimit", "worker:say", "in", cwd=place)
    assert done.stdout == "a guest says \x1b[31mred\n"
    assert done.stderr.startswith("a program says \x1b[2J\ntwo lines\n")


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal, or its cgroup is frozen."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        if file.read().rpartition(")")[2].split()[0] == "T":
            return True
    with open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        groups = [line[3:].strip() for line in file if line.startswith("0::")]
    try:
        return any("frozen 1" in Path(f"{MOUNT}{group}/cgroup.events").read_text() for group in groups)
    except FileNotFoundError:  # the root, and where version 2 is not mounted
        return False


def test_ctrl_z_stops_the_tasks_too_and_their_time(backend: BackendName, place: Path) -> None:
    fill(place / "in", a="wait", b="wait", c="quick")
    seconds = 1.5 * PACE
    words = ["map", "--backend", backend, "--workers", "2", "--timeout", f"{seconds}s", "worker:read", "in"]
    with running(*words, cwd=place, process_group=0) as command:
        wait_until(lambda: len(signs(place)) == 2)
        tasks = signs(place)
        command.send(signal.SIGTSTP)
        wait_until(lambda: is_stopped(command.process.pid) and all(map(is_stopped, tasks)))
        time.sleep(seconds)  # not to wait for anything: this time must not count
        command.send(signal.SIGCONT)
        wait_until(lambda: not any(map(is_stopped, [command.process.pid, *tasks])))
        (place.parent / "signs" / "go").touch()
        code, _, stderr = command.end()
    assert (code, summary(stderr)) == (0, "gwsandbox map: 3 succeeded")


def test_a_stopped_run_can_be_ended(backend: BackendName, place: Path) -> None:
    fill(place / "in", a="wait")
    with running("map", "--backend", backend, "worker:read", "in", cwd=place, process_group=0) as command:
        wait_until(lambda: signs(place))
        with Watched(*signs(place)) as tasks:
            command.send(signal.SIGTSTP)
            wait_until(lambda: all(map(is_stopped, [command.process.pid, *tasks.pids])))
            command.send(signal.SIGKILL)
            command.end()
            assert not tasks.living_after(30 * SLOW)


# --- failures that are alike, streams that are closed ------------------------------------------------------


def test_many_failures_that_are_alike_are_one_line(place: Path) -> None:
    fill(place / "in", **{f"{number:02}": "x" for number in range(40)})
    template = "sh -c 'echo cannot read \"$1\" >&2; exit 3' sh {input}"
    done = cli("map", "--backend", "rlimit", "--workers", "1", "--command", template, "in", cwd=place)
    assert done.returncode == 1
    *lines, _ = done.stderr.splitlines()
    counts = [re.match(r"FAILED (\d+) inputs: exit code 3: cannot read \{input\}: in/\d\d; ", line) for line in lines]
    assert sum(int(count[1]) for count in counts if count) == 40
    assert len(lines) < 8  # a second after the first, two after the next, …: more than one where they come slowly
    assert lines[0].count("in/") <= 10


def test_a_failure_is_shown_soon(place: Path) -> None:
    """Though others of its kind may come: not only at the end of the run."""
    fill(place / "in", a="fail", b="wait")
    with running("map", "--backend", "rlimit", "worker:read", "in", cwd=place) as command:
        assert command.process.stderr is not None
        assert command.process.stderr.readline().startswith("FAILED in/a: the function raised: ValueError")
        (place.parent / "signs" / "go").touch()
        assert command.end()[0] == 1


def test_closed_streams(place: Path) -> None:
    """What goes to stderr goes nowhere then, and not to stdout or into the next file that is opened."""
    fill(place / "in", a="fail")
    line = shlex.join(
        [*CLI, "map", "--no-limits", "--backend", "rlimit", "--report", "r.jsonl", "--table", "worker:give", "in"]
    )
    for closed, code in (("2>&-", 1), (">&- 2>&-", 1), ("<&- >&- 2>&-", 1), ("2>/dev/full", 1), (">/dev/full", 125)):
        done = sh(f"rm -f r.jsonl; {line} {closed}", place)
        assert (done.returncode, closed) == (code, closed)
        assert "FAILED in/a" not in done.stdout
        assert len(rows(place / "r.jsonl")) == 1
    assert "stdout cannot be written: No space left on device" in done.stderr


def test_a_reader_of_the_table_that_goes_early(place: Path) -> None:
    fill(place / "in", a="a")
    line = shlex.join([*CLI, "map", "--no-limits", "--backend", "rlimit", "--table", "worker:read", "in"])
    done = sh(f"({line}; echo $? >code) | true", place)
    assert (place / "code").read_text() == "0\n"
    assert summary(done.stderr) == "gwsandbox map: 1 succeeded"


def test_names_that_stdout_cannot_encode(place: Path) -> None:
    fill(place / "in", данные="a")
    done = cli(
        "map",
        "--backend",
        "rlimit",
        "--table",
        "worker:read",
        "in",
        cwd=place,
        env=environment(PYTHONIOENCODING="ascii"),
    )
    assert done.returncode == 0
    assert done.stdout.endswith("in/" + r"\u0434\u0430\u043d\u043d\u044b\u0435" + "\n")
    assert summary(done.stderr) == "gwsandbox map: 1 succeeded"


def sh(script: str, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["sh", "-c", script],
        cwd=place,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=HANG_AFTER,
        check=False,
    )


# --- resuming with other work ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        ["--command", "sort --output {output} {input}", "in"],
        ["worker:Steps.convert", "in"],
    ],
)
def test_a_report_of_another_command_is_refused(place: Path, words: list[str]) -> None:
    fill(place / "in", a="a", b="b")
    common = ["map", "--backend", "rlimit", "--output-dir", "out", "--report", "r.jsonl"]
    assert cli(*common, "--command", "cp {input} {output}", "in", cwd=place).returncode == 0
    before = tree(place)
    done = cli(*common, *words, cwd=place)
    assert done.returncode == 125
    assert done.stderr == (
        "gwsandbox map: the report r.jsonl is of another command: cp in/a out/a; "
        "choose another one by --report, or do all again by --fresh\n"
    )
    assert tree(place) == before
    assert cli(*common, "--fresh", *words, cwd=place).returncode == 0


def test_a_report_may_be_of_several_commands_on_several_inputs(place: Path) -> None:
    fill(place, in__a="a", more__b="b")
    for template, folder in (("cat {input}", "in"), ("true {input}", "more"), ("cat {input}", "in")):
        words = ["--backend", "rlimit", "--report", "r.jsonl", "--command", template, folder]
        assert cli("map", *words, cwd=place).returncode == 0
    assert len(rows(place / "r.jsonl")) == 2


def test_functions_in_a_clean_interpreter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As strict hardening asks for, which not every host can give: the function travels by its name."""
    fill(place / "in", a="a", b="fail")
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    target = FunctionTarget("worker:wait_and_read", has_output=False, is_inherited=False)
    assert target.preload == ("worker",)
    tasks = [target.task(f"in/{name}", None) for name in "ab"]
    results = run_all("rlimit", tasks, start_method="forkserver", preload=target.preload)
    assert sorted(result.outcome.name for result in results) == ["FAILED", "SUCCEEDED"]
