"""scripts/bench runs, and its JSON has what it measured. No figure is looked at: a test suite is no place to time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[2] / "scripts" / "bench"


def test_quick_run_writes_every_contender(tmp_path: Path) -> None:
    report = tmp_path / "bench.json"
    picture = tmp_path / "bench.svg"

    done = subprocess.run(
        [sys.executable, BENCH, "--quick", "--rounds", "1", "P1", "P12", "--json", report, "--picture", picture],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    p1, p12 = json.loads(report.read_text())["rows"]
    assert [p1["name"], p12["name"]] == ["P1", "P12"]
    levels = {entry["who"].removeprefix("gwsandbox, hardening "): entry for entry in p12["entries"][1:]}
    assert [*levels] == ["off", "standard", "clean off", "strict"]
    assert "adds" in levels["standard"]["note"]
    assert "adds" in levels["strict"]["note"] or not levels["strict"]["figure"]
    by_name = {entry["who"]: entry for entry in p1["entries"]}
    assert by_name["fork floor"]["figure"]["median"] > 0
    assert by_name["gwsandbox, no limits"]["ratio"]["median"] > 0
    for peer in ("glasswall, no limits", "pebble, wall", "ProcessPoolExecutor, spawn"):
        assert by_name[peer]["figure"] or by_name[peer]["note"], f"{peer} is neither measured nor excused"
    assert picture.read_text().startswith("<svg")
    assert "P1" in done.stdout


def test_unknown_row_is_refused() -> None:
    done = subprocess.run([sys.executable, BENCH, "P99"], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert "P99" in done.stderr
