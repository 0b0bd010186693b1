"""``gwsandbox report``, ``why`` and ``learn``; and what every report looks like: the schema that is shipped."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from cli_support import cli, environment, rows
from test_cli_map import fill

from gwsandbox import Outcome, Usage
from gwsandbox.model.limits import OPTIONS
from gwsandbox.report.schema import schema_text

SCHEMA = json.loads(schema_text())
MAP = ["map", "--backend", "rlimit", "--workers", "2"]
WORK = """
def work(path):
    if path.endswith("bad"):
        inner(path)
    return path

def inner(path):
    raise ValueError(f"{path} is \\x1b[2J bad")
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    fill(tmp_path, **{"in__a": "a", "in__b": "b", "in__deep__bad": "bad", "work.py": WORK})
    return tmp_path


@pytest.fixture
def report(place: Path) -> str:
    """A report of a function that failed once."""
    done = cli(*MAP, "--timeout", "60s", "--memory", "1GiB", "--report", "r.jsonl", "work:work", "in", cwd=place)
    assert done.returncode == 1, done.stderr
    return "r.jsonl"


# --- the schema ------------------------------------------------------------------------------------------


def check(report: Any, kind: str) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(report, SCHEMA)
    assert report["report"] == {"kind": kind, "version": 1}


def test_rows_of_map_are_as_the_schema_says(report: str, place: Path) -> None:
    for row in rows(place / report):
        check(row, "map")
    template = 'sh -c \'test -e "$1.seen" || { touch "$1.seen"; kill -SEGV $$; }; cat $1; cp $1 $2\' sh {} {output}'
    words = [*MAP, "--retries", "1", "--output-dir", "out", "--report", "p", "--command", template, "in"]
    assert cli(*words, cwd=place).returncode == 0
    for row in rows(place / "p"):
        check(row, "map")
        assert (len(row["attempts"]), row["output_size"]) == (1, len(row["stdout"]))


@pytest.mark.parametrize(
    "words",
    [
        ["--", "true"],
        ["--timeout", "100ms", "--cpus", "0.5", "--", "sleep", "60"],
        ["--", "no-such-program"],
        ["--output-limit", "10", "--", "yes"],
        ["--", "sh", "-c", "kill -SEGV $$"],
    ],
)
def test_reports_of_run_are_as_the_schema_says(tmp_path: Path, words: list[str]) -> None:
    cli("run", "--backend", "rlimit", "--report", "r", *words, cwd=tmp_path)
    check(json.loads((tmp_path / "r").read_text()), "run")


def test_doctor_is_as_the_schema_says() -> None:
    check(json.loads(cli("doctor", "--json").stdout), "doctor")


def test_the_schema_knows_what_the_code_knows() -> None:
    defs = SCHEMA["$defs"]
    assert defs["outcome"]["enum"] == [outcome.name for outcome in Outcome]
    assert list(defs["limits"]["properties"]) == list(OPTIONS)
    assert list(defs["usage"]["properties"]) == list(Usage.__slots__)


def test_another_thing_is_not_as_the_schema_says(report: str, place: Path) -> None:
    row = rows(place / report)[0]
    changes: list[dict[str, Any]] = [
        {"outcome": "DONE"},
        {"report": {"kind": "map", "version": 2}},
        {"usage": {}},
        {"limits": {"ram": 1}},
    ]
    for wrong in changes:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**row, **wrong}, SCHEMA)


def test_the_schema_is_printed() -> None:
    assert json.loads(cli("report", "--schema").stdout) == SCHEMA


# --- report ----------------------------------------------------------------------------------------------


def test_report_in_each_format(report: str, place: Path) -> None:
    for name, begins in (("r.html", "<!doctype html>"), ("r.md", "# work:work\n"), ("r.csv", "name,outcome,")):
        done = cli("report", report, "-o", name, cwd=place)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", f"gwsandbox: {name} shows 3 tasks\n")
        assert (place / name).read_text().startswith(begins)
    assert cli("report", report, cwd=place).stdout == (place / "r.md").read_text()
    assert cli("report", report, "--format", "csv", cwd=place).stdout == (place / "r.csv").read_text()
    assert "\x1b" not in (place / "r.md").read_text()


def test_map_makes_the_page_at_once_and_goes_on_beside_it(place: Path) -> None:
    words = [*MAP, "--report", "r.html", "work:work", "in"]
    done = cli(*words, cwd=place)
    assert "gwsandbox map: r.html shows 3 tasks\n" in done.stderr
    assert (place / "r.html").read_text().startswith("<!doctype html>")
    assert len(rows(place / "r.jsonl")) == 3
    assert "3 skipped" in cli(*words, cwd=place).stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["no.jsonl"], 125, "gwsandbox report: read report: no.jsonl: No such file or directory"),
        (["work.py"], 125, "gwsandbox report: read report: it is no JSON: work.py; give a file that --report of"),
        (
            ["r.jsonl", "-o", "r.pdf"],
            125,
            "make report: no format has this suffix: r.pdf; give it one of these suffixes",
        ),
        (["r.jsonl", "-o", "no/r.md"], 125, "write report: no/r.md: No such file or directory"),
        ([], 2, "give FILE.jsonl or --schema"),
        (["r.jsonl", "--schema"], 2, "give FILE.jsonl or --schema"),
    ],
)
def test_reports_that_cannot_be(place: Path, report: str, words: list[str], code: int, message: str) -> None:
    assert report == "r.jsonl"
    done = cli("report", *words, cwd=place)
    assert done.returncode == code
    assert message in done.stderr


# --- why -------------------------------------------------------------------------------------------------


def test_why_one_task_failed(report: str, place: Path) -> None:
    done = cli("why", report, cwd=place)
    lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert lines[0] == "in/deep/bad: FAILED"
    assert lines[1] == r"  the function raised: ValueError: in/deep/bad is \x1b[2J bad"
    assert lines[2] == "  limit      memory 1 GiB, held by RLIMIT_DATA + sampling"
    assert lines[3].startswith("             not fully: the sum over the tree is sampled")
    assert any(re.match(r"  peak +[\d.]+ MiB \(", line) for line in lines)
    assert any("in inner" in line for line in lines)
    (again,) = [line.partition("again")[2].strip() for line in lines if line.startswith("  again ")]
    words = shlex.split(again)
    assert words[:3] == ["cd", str(place), "&&"]
    assert words[3:] == [
        *("gwsandbox", "map", "--memory", str(1 << 30), "--timeout", "60", "--", "work:work", "in/deep/bad")
    ]
    assert "\x1b" not in done.stdout


def test_the_line_that_why_prints_repeats_it(report: str, place: Path) -> None:
    line = cli("why", report, "bad", cwd=place).stdout.partition("  again ")[2].strip()
    done = subprocess.run(["sh", "-c", line], cwd="/", env=environment(), capture_output=True, text=True, check=False)
    assert "FAILED in/deep/bad: the function raised: ValueError" in done.stderr


def test_why_a_program_failed_has_its_last_words(place: Path) -> None:
    template = "sh -c 'echo first >&2; printf \"last \\033[31m\\n\" >&2; exit 3' sh {}"
    cli(*MAP, "--report", "p", "--command", template, "in/a", cwd=place)
    shown = cli("why", "p", cwd=place).stdout
    assert "  exit code  3\n" in shown
    assert "  stderr     | first\n             | last \\x1b[31m\n" in shown


def test_why_of_a_single_report(tmp_path: Path) -> None:
    cli("run", "--backend", "rlimit", "--timeout", "100ms", "--report", "r", "--", "sleep", "60", cwd=tmp_path)
    shown = cli("why", "r", cwd=tmp_path).stdout
    assert shown.startswith("sleep 60: TIMED_OUT\n  wall-clock limit of 0.1 s reached")
    assert f"cd {tmp_path} && gwsandbox run --timeout 0.1 -- sleep 60" in shown


def test_many_failures_are_grouped_by_cause(tmp_path: Path) -> None:
    made = [
        {"input": f"in/{n}", "outcome": "FAILED", "detail": f"exit code 1: in/{n}: line {n} is wrong"}
        for n in range(5000)
    ]
    made += [{"input": f"late/{n}", "outcome": "TIMED_OUT", "detail": "late"} for n in range(3)]
    made.append({"input": "good", "outcome": "SUCCEEDED", "detail": ""})
    (tmp_path / "r").write_text("".join(json.dumps(row) + "\n" for row in made))
    lines = cli("why", "r", cwd=tmp_path).stdout.splitlines()
    assert lines == [
        "1 SUCCEEDED, 5000 FAILED, 3 TIMED_OUT",
        "",
        "5000 FAILED: exit code 1: in/0: line 0 is wrong",
        "  in/0; in/1; in/2; and 4997 more",
        "  more: gwsandbox why r in/0",
        "",
        "3 TIMED_OUT: late",
        "  late/0; late/1; late/2",
        "  more: gwsandbox why r late/0",
    ]


def test_why_where_nothing_failed_or_nothing_is_known(report: str, place: Path) -> None:
    done = cli("why", report, "in/none", cwd=place)
    assert done.returncode == 1
    assert done.stderr == "gwsandbox why: the report r.jsonl has no row on in/none; it has 3 rows\n"
    (place / "good").write_text(json.dumps({"input": "a", "outcome": "SUCCEEDED"}) + "\n")
    assert cli("why", "good", cwd=place).stdout == "1 SUCCEEDED\nnothing failed\n"
    assert cli("why", "gone", cwd=place).returncode == 125


# --- learn -----------------------------------------------------------------------------------------------


def flags(stdout: str) -> list[str]:
    return stdout.partition("# as options\n")[2].splitlines()[0].split()


def test_learn_from_one_program_and_what_it_proposes_holds(tmp_path: Path) -> None:
    program = ["python3", "-S", "-c", "import time; x = bytearray(60 << 20); time.sleep(0.2)"]
    done = cli("learn", "--backend", "rlimit", "--name", "fill", "--", *program, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# measured over 1 task that succeeded, of 1\n# memory: ")
    assert "is 3 times 0." in done.stdout
    options = flags(done.stdout)
    assert dict(zip(options[::2], options[1::2], strict=True)).keys() >= {"--memory", "--timeout", "--cpu-time"}
    assert "[Service]\nMemoryMax=" in done.stdout
    profile = done.stdout.partition("profiles.toml\n")[2].partition("\n\n")[0]
    (tmp_path / "gwsandbox").mkdir()
    (tmp_path / "gwsandbox" / "profiles.toml").write_text(profile)
    env = environment(XDG_CONFIG_HOME=str(tmp_path))
    again = cli("run", "--backend", "rlimit", "--profile", "fill", "--no-limits", "--", *program, env=env)
    assert again.returncode == 0, again.stderr


def test_learn_over_a_folder_takes_a_sample(place: Path) -> None:
    fill(place, **{f"many__{number}": "x" * number for number in range(30)})
    words = ["learn", "--backend", "rlimit", "--over", "many", "--sample", "4", "--", "cp", "{input}", "{output}"]
    done = cli(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("# measured over 4 tasks that succeeded, of 4\n")
    assert "# file_size: 1 MiB is 2 times" in done.stdout
    assert "--file-size" in flags(done.stdout)
    assert sorted(path.name for path in place.iterdir()) == ["in", "many", "work.py"]


def test_learn_from_a_report_and_map_learns_too(report: str, place: Path) -> None:
    done = cli("learn", "--report", report, cwd=place)
    assert done.stdout.startswith("# measured over 2 tasks that succeeded, of 3\n# memory: ")
    done = cli(*MAP, "--learn", "2", "--command", "true {}", "in", cwd=place)
    assert done.stdout.startswith("# measured over 2 tasks that succeeded, of 2\n")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (
            ["--", "false"],
            125,
            "none of 1 tasks succeeded, so there is nothing to learn from: the first says exit code 1",
        ),
        ([], 2, "give COMMAND or --report FILE"),
        (["--report", "r", "--", "true"], 2, "give COMMAND or --report FILE"),
        (["--report", "gone"], 125, "gwsandbox learn: read report: gone: No such file"),
        (["--over", "in", "--", "true"], 125, "has no {input}; write it where the input's path goes"),
    ],
)
def test_nothing_to_learn_from(place: Path, words: list[str], code: int, message: str) -> None:
    done = cli("learn", *words, cwd=place)
    assert done.returncode == code
    assert message in done.stderr.replace("\n", " ")
