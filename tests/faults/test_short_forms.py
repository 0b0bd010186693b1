"""The short form of each subcommand of scripts/faults: nothing is lost, left, hung or wrong. The long ones take hours."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import BackendName, times

FAULTS = Path(__file__).parents[2] / "scripts" / "faults"
FIGURES = ("lost", "left", "hung", "wrong")


def run(tmp_path: Path, subcommand: str, *words: str) -> dict[str, Any]:
    report = tmp_path / "report.json"
    command = [sys.executable, str(FAULTS), subcommand, "--seed", "1", *words, "--json", str(report)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, Any] = json.loads(report.read_text()) if report.exists() else {}
    assert done.returncode == 0, done.stdout + done.stderr + evidence(found)
    assert [found[name] for name in FIGURES] == [0, 0, 0, 0]
    return found


def evidence(found: dict[str, Any]) -> str:
    return "".join(f"\n{one['evidence']}" for bad in found.get("bad", []) for one in bad["findings"])


@pytest.mark.long
def test_killed_and_stopped_processes(tmp_path: Path, backend: BackendName) -> None:
    rounds = times(60, at_least=10)
    found = run(tmp_path, "kill", "--rounds", str(rounds), "--backend", backend)
    assert found["rounds"] == rounds


@pytest.mark.long
def test_interrupts_at_any_bytecode(tmp_path: Path, backend: BackendName) -> None:
    rounds = times(60, at_least=10)
    found = run(tmp_path, "interrupt", "--rounds", str(rounds), "--backend", backend)
    assert found["rounds"] == rounds


@pytest.mark.long
@pytest.mark.parametrize("role", ["caller", "reaper", "supervisor", "zygote", "guest", "service"])
def test_failing_system_calls(tmp_path: Path, role: str, backend: BackendName) -> None:
    rounds = times(3 if role == "service" else 15, at_least=3)
    found = run(tmp_path, "inject", "--role", role, "--rounds", str(rounds), "--manner", "once", "--backend", backend)
    assert found["rounds"] == rounds


@pytest.mark.long
def test_many_tasks(tmp_path: Path, backend: BackendName) -> None:
    rounds = times(4, at_least=2)
    found = run(tmp_path, "soak", "--rounds", str(rounds), "--backend", backend)
    assert found["tasks"] == rounds * 500


@pytest.mark.long
def test_uses_of_the_manager_against_a_model(tmp_path: Path, backend: BackendName) -> None:
    rounds = times(20, at_least=4)
    found = run(tmp_path, "states", "--rounds", str(rounds), "--backend", backend)
    assert found["rounds"] >= rounds
    assert found["uses"] > 2 * rounds


@pytest.mark.long
def test_readers_of_what_others_wrote(tmp_path: Path) -> None:
    found = run(tmp_path, "fuzz", "--rounds", "12")
    assert found["inputs"] >= 100_000


@pytest.mark.loop_disk
@pytest.mark.long
def test_files_on_a_disk_that_loses_its_power(tmp_path: Path, backend: BackendName) -> None:
    found = run(tmp_path, "spool", "--power-cut", "--rounds", "2", "--backend", backend)
    assert found["inputs"] == 40


@pytest.mark.long
def test_files_through_a_service_that_is_killed(tmp_path: Path, backend: BackendName) -> None:
    found = run(tmp_path, "spool", "--rounds", "2", "--backend", backend)
    assert found["inputs"] == 40
