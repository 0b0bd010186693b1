"""The limits that ``run`` and ``map`` have where none are asked for, and profiles."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_support import CLI, cli, environment, rows
from features import missing

from gwsandbox.memory_usage import get_available_memory_bytes


def bare(*words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The command line as it is typed."""
    return subprocess.run(
        [*CLI, *words], **{"capture_output": True, "text": True, "check": False, "env": environment(), **options}
    )


def test_run_has_limits_and_says_so(tmp_path: Path) -> None:
    done = bare("run", "--backend", "rlimit", "--report", "r.json", "--", "true", cwd=tmp_path)
    said = r"gwsandbox: default limits: --memory [\d.]+[MG]iB \(80% of what is free\), --pids 1024; --no-limits lifts them\n"
    assert re.fullmatch(said, done.stderr), done.stderr
    limits = json.loads((tmp_path / "r.json").read_text())["limits"]
    assert limits.keys() == {"memory", "pids"}
    assert 0.5 * get_available_memory_bytes() < limits["memory"] < get_available_memory_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--no-limits"], None),
        (["--memory", "0", "--pids", "0"], None),
        (["--memory", "1GiB", "--pids", "64"], None),
        (["--memory", "1GiB"], "gwsandbox: default limits: --pids 1024; --no-limits lifts them\n"),
        (["--no-limits", "--pids", "64"], None),
    ],
)
def test_a_default_is_lifted_by_its_own_option(words: list[str], said: str | None) -> None:
    done = bare("run", "--backend", "rlimit", *words, "--", "true")
    assert (done.returncode, done.stderr) == (0, said or "")


def test_defaults_are_no_reason_for_a_warning_of_what_is_not_held() -> None:
    done = bare("run", "--", "true")
    assert "warning" not in done.stderr


def test_map_divides_the_memory_and_caps_what_it_captures(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    words = ["--backend", "rlimit", "--workers", "4", "--report", "r.jsonl", "--command", "cat {input}", "a"]
    done = bare("map", *words, cwd=tmp_path)
    said = done.stderr.splitlines()[0]
    assert re.fullmatch(
        r"gwsandbox map: default limits: --memory [\d.]+[MG]iB \(80% of what is free for 4 tasks at a time\), "
        r"--pids 1024, --output-limit 64MiB; --no-limits lifts them",
        said,
    ), said
    (row,) = rows(tmp_path / "r.jsonl")
    assert row["limits"].keys() == {"memory", "pids", "output"}
    assert row["limits"]["memory"] < get_available_memory_bytes() / 4


# --- profiles --------------------------------------------------------------------------------------------

PROFILES = """
[convert]
memory = "512MiB"
wall_seconds = "30s"
pids = 64
[open]
memory = 0
pids = 0
[wrong]
wall_second = 5
[bad]
memory = "lots"
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "config" / "gwsandbox"
    folder.mkdir(parents=True)
    (folder / "profiles.toml").write_text(PROFILES)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return folder


def limits_of(tmp_path: Path, *words: str) -> dict[str, float]:
    done = bare("run", "--backend", "rlimit", *words, "--report", "r.json", "--", "true", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, float] = json.loads((tmp_path / "r.json").read_text())["limits"]
    return found


@pytest.mark.usefixtures("config")
def test_a_profile_has_limits_and_options_come_before_it(tmp_path: Path) -> None:
    convert = {"memory": 512 << 20, "wall_seconds": 30.0, "pids": 64}
    assert limits_of(tmp_path, "--profile", "convert") == convert
    assert limits_of(tmp_path, "--profile", "convert", "--timeout", "5s") == {**convert, "wall_seconds": 5.0}
    assert limits_of(tmp_path, "--profile", "open") == {}


@pytest.mark.usefixtures("config")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convrt", "there is no profile 'convrt'; there is bad, convert, open, wrong"),
        ("wrong", "profile 'wrong' has no limit 'wall_second'; the limits are memory, swap,"),
        ("bad", "profile 'bad': memory: 'lots' is not a size"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(name: str, message: str) -> None:
    done = bare("run", "--profile", name, "--", "true", env=environment(COLUMNS="500"))
    assert done.returncode == 2
    assert message in done.stderr


def test_files_of_profiles_that_cannot_be_used(config: Path) -> None:
    file = config / "profiles.toml"
    for text, message in (("[a\n", "profiles.toml: "), ("a = 1\n", "profile 'a' is no table; write [a]")):
        file.write_text(text)
        done = bare("run", "--profile", "a", "--", "true")
        assert done.returncode == 2
        assert message in done.stderr
    file.unlink()
    file.mkdir()
    assert "profiles.toml cannot be read: Is a directory" in bare("run", "--profile", "a", "--", "true").stderr
    file.rmdir()
    assert "there is no profile 'a', and none in " in bare("run", "--profile", "a", "--", "true").stderr


def test_no_limits_and_a_profile_of_map(config: Path, tmp_path: Path) -> None:
    assert config.is_dir()
    (tmp_path / "a").write_text("a")
    words = ["--profile", "convert", "--no-limits", "--backend", "rlimit", "--report", "r", "--command", "true {}", "a"]
    done = cli("map", *words, cwd=tmp_path)
    assert (done.returncode, "default" in done.stderr) == (0, False)
    assert rows(tmp_path / "r")[0]["limits"] == {"memory": 512 << 20, "wall_seconds": 30.0, "pids": 64}


# --- a total over all tasks --------------------------------------------------------------------------------


def test_a_total_is_divided_and_holds_by_admission(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_text(name)
    words = ["--backend", "rlimit", "--workers", "3", "--total-memory", "600MiB", "--report", "r"]
    done = bare("map", *words, "--command", "true {}", "a", "b", "c", cwd=tmp_path)
    assert "--memory 200MiB (--total-memory for 3 tasks at a time), " in done.stderr.splitlines()[0]
    assert all(row["enforcement"]["limits"]["total_memory"] == "admission" for row in rows(tmp_path / "r"))


def test_a_total_bounds_what_further_attempts_get(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    grow = ["--retries", "2", "--retry-memory", "4x", "--memory", "64MiB", "--total-memory", "200MiB"]
    words = [*grow, "--backend", "rlimit", "--report", "r", "--command", "sh -c 'kill -SEGV $$' sh {}", "a"]
    done = cli("map", *words, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (row,) = rows(tmp_path / "r")
    assert [each["limits"]["memory"] >> 20 for each in (*row["attempts"], row)] == [64, 200, 200]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["--memory", "2GiB", "--total-memory", "1GiB"],
            125,
            "a memory limit of 2 GiB does not fit under --total-memory",
        ),
        (["--total-memory", "lots"], 2, "Invalid value for '--total-memory': 'lots' is not a size"),
    ],
)
def test_totals_that_cannot_be(tmp_path: Path, words: list[str], code: int, message: str) -> None:
    (tmp_path / "a").write_text("a")
    done = cli("map", *words, "--command", "true {}", "a", cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr


def test_a_total_that_is_not_fully_held_is_said(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    done = cli("map", "--total-memory", "1GiB", "--command", "true {}", "a", cwd=tmp_path)
    said = "--total-memory: nothing but the moment at which a task starts holds it" in done.stderr
    assert said == bool(missing("cgroup2"))
