"""Reports read back: what is wrong in them counts as not there; causes, workers, limits that fit, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import examples

from gwsandbox import SandboxError
from gwsandbox.report.learn import as_flags, as_profile, as_unit, propose
from gwsandbox.report.make import format_of, write_whole
from gwsandbox.report.rows import ReportRow, make_row, read_rows
from gwsandbox.report.summary import causes, largest, outcomes, slots, slowest
from gwsandbox.report.text import make_csv, make_markdown

ROW: dict[str, Any] = {
    "input": "in/a",
    "task": ["convert", "in/a"],
    "outcome": "SUCCEEDED",
    "detail": "",
    "exit_code": 0,
    "start_time": 100.0,
    "end_time": 102.5,
    "elapsed_time": 2.5,
    "usage": {
        "cpu_user_seconds": 1.0,
        "cpu_system_seconds": 0.5,
        "memory_peak_bytes": 50 << 20,
        "pids_peak": 3,
        "sources": {"memory_peak_bytes": "memory.peak"},
    },
    "enforcement": {"backend": "cgroup", "limits": {"memory": "memory.max"}, "degraded": {}},
    "limits": {"memory": 64 << 20, "wall_seconds": 5},
    "output_size": 3 << 20,
}


def row(**changes: Any) -> ReportRow:
    return make_row({**ROW, **changes})


def write(path: Path, *values: Any) -> str:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return str(path)


# --- reading ---------------------------------------------------------------------------------------------


def test_a_row_has_what_the_report_says() -> None:
    found = row()
    assert (found.name, found.outcome, found.succeeded, found.exit_code) == ("in/a", "SUCCEEDED", True, 0)
    assert (found.seconds, found.cpu_seconds, found.memory_peak, found.pids_peak) == (2.5, 1.5, 50 << 20, 3)
    assert (found.limits["memory"], found.held["memory"], found.backend) == (64 << 20, "memory.max", "cgroup")


def test_the_last_of_several_rows_on_an_input_stands(tmp_path: Path) -> None:
    path = write(tmp_path / "r", ROW, {**ROW, "input": "in/b"}, {**ROW, "outcome": "FAILED"})
    assert [(each.name, each.outcome) for each in read_rows(path)] == [("in/a", "FAILED"), ("in/b", "SUCCEEDED")]


def test_one_object_over_many_lines_and_a_torn_last_row(tmp_path: Path) -> None:
    (tmp_path / "run").write_text(json.dumps(ROW, indent=2))
    assert [each.name for each in read_rows(str(tmp_path / "run"))] == ["in/a"]
    (tmp_path / "torn").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW)[:40])
    assert len(read_rows(str(tmp_path / "torn"))) == 1
    (tmp_path / "empty").write_text("")
    assert read_rows(str(tmp_path / "empty")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json\n", "read report: it is no JSON"),
        ("[1]\n", "read report: it is none"),
        ('{"input": "a"}\n', "read report: it is none"),
        ("{\n", "read report: it is no JSON"),
        ("[" * 100_000 + "\n", "read report: it is no JSON"),
    ],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r").write_text(text)
    with pytest.raises(SandboxError, match=message) as raised:
        read_rows(str(tmp_path / "r"))
    assert raised.value.path == str(tmp_path / "r")


def test_a_report_that_is_not_there() -> None:
    with pytest.raises(SandboxError, match="read report.*No such file"):
        read_rows("/no/such/report")


@pytest.mark.parametrize(
    "wrong",
    [
        {"usage": None, "enforcement": [1], "limits": "x", "exception": 5, "task": "x", "attempts": 3},
        {"elapsed_time": "long", "exit_code": True, "start_time": float("nan"), "detail": ["x"]},
        {"elapsed_time": -1, "exit_code": 1 << 70, "limits": {"memory": -1, "pids": "x"}, "task": [1]},
        {"usage": {"memory_peak_bytes": 1e400, "cpu_user_seconds": "x", "sources": {"a": 1}}},
        {"elapsed_time": 10**400},
    ],
)
def test_what_is_not_what_it_should_be_counts_as_not_there(wrong: dict[str, Any]) -> None:
    found = row(**wrong)
    assert found.name == "in/a"
    for rows in ([found], [found, row()]):
        make_markdown(rows, "title")
        make_csv(rows)
        propose(rows)
        slots(rows)


@settings(max_examples=examples(200), deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*ROW, "stderr", "exception", "repeat", "attempts", "file"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from([*ROW["usage"], "type", "a"]), inner),
            max_leaves=8,
        ),
    )
)
def test_no_report_breaks_what_reads_it(value: dict[str, Any]) -> None:
    found = make_row({"outcome": "FAILED", **value})
    for made in (make_markdown([found], "t"), make_csv([found])):
        assert "\x1b" not in made
    assert propose([found]) is not None
    assert causes([found]) is not None
    assert slots([found]) is not None


# --- what rows say together ------------------------------------------------------------------------------


def test_failures_that_differ_in_names_and_numbers_alone_have_one_cause() -> None:
    rows = [row(input=f"in/{n}", outcome="FAILED", detail=f"exit code 1: in/{n}: line {n} is wrong") for n in range(5)]
    rows += [row(input="in/x", outcome="TIMED_OUT", detail="late"), row()]
    assert [(cause.outcome, len(cause.rows)) for cause in causes(rows)] == [("FAILED", 5), ("TIMED_OUT", 1)]
    assert outcomes(rows) == [("SUCCEEDED", 1), ("FAILED", 5), ("TIMED_OUT", 1)]


def test_slowest_and_largest_leave_out_what_was_not_measured() -> None:
    rows = [row(input=str(n), elapsed_time=n, usage={"memory_peak_bytes": 10 - n}) for n in range(5)]
    rows.append(row(input="none", elapsed_time=None, usage={}))
    assert [each.name for each in slowest(rows, 2)] == ["4", "3"]
    assert [each.name for each in largest(rows, 2)] == ["0", "1"]


def test_no_two_tasks_at_a_time_have_the_same_worker() -> None:
    times = [(0, 4), (0, 1), (1, 2), (2, 4), (3, 5), (6, 7)]
    rows = [row(start_time=100 + a, end_time=100 + b) for a, b in times]
    places = slots(rows)
    assert [places[id(each)] for each in rows] == [0, 1, 1, 1, 2, 0]


# --- limits that fit -------------------------------------------------------------------------------------


def test_proposals_have_headroom_and_name_their_sources() -> None:
    rows = [row(), row(input="in/b", elapsed_time=0.1, usage={**ROW["usage"], "memory_peak_bytes": 90 << 20})]
    rows.append(row(input="failed", outcome="FAILED", elapsed_time=1000.0))
    found = {each.limit: each for each in propose(rows)}
    assert found.keys() == {"memory", "wall_seconds", "cpu_seconds", "pids", "file_size"}
    assert (found["memory"].value, found["memory"].row.name) == (160 << 20, "in/b")
    assert found["memory"].source == "memory.peak"
    assert (found["wall_seconds"].value, found["wall_seconds"].measured) == (8, 2)
    assert found["pids"].value == 8
    assert as_flags(propose(rows)) == "--memory 160MiB --timeout 8s --cpu-time 5s --pids 8 --file-size 6MiB"
    assert as_profile(propose(rows), "x")[:2] == ["[x]", 'memory = "160MiB"']
    assert as_unit(propose(rows))[:2] == ["[Service]", "MemoryMax=160M"]
    assert propose([rows[-1]]) == []


# --- Markdown and CSV ------------------------------------------------------------------------------------


def test_texts_of_guests_are_no_markup_in_markdown() -> None:
    made = make_markdown([row(input="a|b<script>`x`\n# no [l](u)", outcome="FAILED", detail="*bold*")], "t_t")
    assert made.startswith("# t\\_t\n")
    assert "a\\|b\\<script\\>\\`x\\` # no \\[l\\](u)" in made
    assert "\n# no" not in made


def test_csv_has_numbers_and_no_formulas() -> None:
    rows = [row(), row(input="=cmd|' /C calc'!A0", detail='-1,"x"\n\x1b[2J')]
    found = list(csv.DictReader(io.StringIO(make_csv(rows))))
    assert (found[0]["name"], float(found[0]["seconds"]), int(found[0]["memory_peak"])) == ("in/a", 2.5, 50 << 20)
    assert found[1]["name"].startswith("'=")
    assert found[1]["detail"] == '\'-1,"x"\n\\x1b[2J'


def test_formats_and_files(tmp_path: Path) -> None:
    assert [format_of(name) for name in ("a.html", "a.MD", "b.c.csv")] == ["html", "md", "csv"]
    with pytest.raises(SandboxError, match=r"no format has this suffix.*give it one of these suffixes: \.html"):
        format_of("report.pdf")
    write_whole(str(tmp_path / "a"), "one")
    write_whole(str(tmp_path / "a"), "two")
    assert (tmp_path / "a").read_text() == "two"
    with pytest.raises(SandboxError, match="write report.*No such file"):
        write_whole(str(tmp_path / "no" / "a"), "one")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(SandboxError, match="write report.*No space left"):
        write_whole(str(tmp_path / "full"), "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "full"]
