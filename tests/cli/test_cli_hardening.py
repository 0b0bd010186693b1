"""The options of hardening, of ``run`` and ``map``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cli_support import cli, environment, rows


def report(path: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(path.read_text())["enforcement"]["hardening"]
    return found


def test_standard_is_the_default_of_run(tmp_path: Path) -> None:
    done = cli("run", "--report", str(tmp_path / "report"), "--", "grep", "NoNewPrivs", "/proc/self/status")
    assert (done.stdout, done.stderr) == ("NoNewPrivs:\t1\n", "")
    assert report(tmp_path / "report")["no_new_privs"] == "enforced"


def test_off_takes_nothing(tmp_path: Path) -> None:
    words = ("--hardening", "off", "--report", str(tmp_path / "report"))
    assert cli("run", *words, "--", "grep", "NoNewPrivs", "/proc/self/status").stdout == "NoNewPrivs:\t0\n"
    assert report(tmp_path / "report") == {}


@pytest.mark.strict
def test_strict_shows_what_is_given(tmp_path: Path) -> None:
    for name in ("given", "kept"):
        (tmp_path / name).write_text(name)
    words = ("run", "--hardening", "strict", "--ro", "given", "--report", "report", "--", "/bin/sh", "-c")
    done = cli(*words, "cat given; cat kept; ls /proc | grep -c '^[0-9]'", cwd=tmp_path)
    assert done.stdout.startswith("given")
    assert int(done.stdout.removeprefix("given")) <= 4  # sh, ls, grep
    assert done.stderr == "cat: kept: No such file or directory\n"
    assert set(report(tmp_path / "report").values()) == {"enforced"}


@pytest.mark.strict
def test_map_gives_its_inputs_and_a_place_for_outputs(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("one", "two"):
        (tmp_path / "in" / name).write_text(f"{name}\n")
    (tmp_path / "work.py").write_text(
        "import os\n"
        "def work(source, target):\n"
        "    open(target, 'w').write(open(source).read().upper())\n"
        "    return sorted(os.listdir('.'))\n"
    )
    words = ("map", "--hardening", "strict", "--output-dir", "out", "--report", "report", "work:work", "in")
    done = cli(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "two").read_text() == "TWO\n"
    assert [row["result"] for row in rows(tmp_path / "report")] == [["in", "out", "work.py"]] * 2


@pytest.mark.ordinary_user
def test_a_user_that_strict_is_asked_for_is_required() -> None:
    done = cli("run", "--hardening", "strict", "--user", "slot", "--", "/bin/true")
    assert (done.returncode, "user (not: " in done.stderr) == (125, True)


def test_strict_is_refused_with_what_is_missing() -> None:
    done = cli("run", "--hardening", "strict", "--ro", "/", "--", "/bin/true")
    assert done.returncode == 125
    assert done.stderr.startswith("gwsandbox: harden run ")
    assert "temporary (" in done.stderr


@pytest.mark.landlock
def test_what_is_given_can_be_read_and_written_and_nothing_else(tmp_path: Path) -> None:
    for name in ("given", "kept"):
        (tmp_path / name).write_text(name)
    (tmp_path / "work").mkdir()
    words = ("run", "--ro", "given", "--rw", str(tmp_path / "work"), "--")
    script = "cat given; cat kept; echo x >work/x; echo x >x"
    done = cli(*words, "/bin/sh", "-c", script, cwd=tmp_path)
    assert done.stdout == "given"
    if "gwsandbox: warning: files: partly: " in done.stderr:
        assert done.stderr.count("Permission denied") == 2
    else:
        assert "cat: kept: No such file or directory" in done.stderr
        assert "cannot create x: Read-only file system" in done.stderr
    assert sorted(os.listdir(tmp_path)) == ["given", "kept", "work"]
    assert os.listdir(tmp_path / "work") == ["x"]


def test_an_environment_of_some_names() -> None:
    done = cli("run", "--env", "ONE", "--env", "PATH", "--", "env", env=environment(ONE="1", TWO="2"))
    assert {line.partition("=")[0] for line in done.stdout.splitlines()} == {"ONE", "PATH"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--network", "internet"), "'internet' is not one of"),
        (("--hardening", "more"), "'more' is not one of"),
        (("--require", "signals,magic"), "require must hold some of"),
        (("--env", "A=B"), "environment must hold names"),
        (("--user", "a b"), "user must be 'slot' or the name of a user"),
    ],
)
def test_what_is_not_known_is_a_mistake_of_usage(words: tuple[str, ...], message: str) -> None:
    done = cli("run", *words, "--", "true")
    assert done.returncode == 2
    assert message in done.stderr


def test_what_does_not_hold_is_a_warning() -> None:
    done = cli("run", "--ro", "/", "--", "true")  # with all of it there is no root folder of its own
    assert done.returncode == 0
    assert "gwsandbox: warning: files: partly: " in done.stderr or "warning: files: not: " in done.stderr
    assert cli("run", "--ro", "/", "--require", "files", "--", "true").returncode == 125


@pytest.mark.root
def test_a_user_of_its_own() -> None:
    done = cli("run", "--user", "slot", "--", "id", "-u")
    assert int(done.stdout) >= 0x7000_0000


@pytest.mark.root
def test_another_user() -> None:
    assert cli("run", "--user", "nobody", "--", "id", "-un").stdout == "nobody\n"
    done = cli("run", "--user", "no-such-user", "--", "true")
    assert done.returncode != 0
    assert "there is no such user" in done.stderr


MODULE = """
def work(path):
    return {"plain": [path]}
"""


def test_results_of_map_are_plain(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    (tmp_path / "input").write_text("x")
    done = cli("map", "--report", "report.jsonl", "module:work", "input", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (row,) = rows(tmp_path / "report.jsonl")
    assert row["enforcement"]["hardening"]["results"] == "enforced"
