"""``gwsandbox doctor`` and ``gwsandbox clean``: what they find and say, and what is left alone.

What the doctor says of hosts that are not as they should be is in test_cli_doctor_host.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cli_support import cli, rows, running
from features import missing
from support import BackendName, Program

from gwsandbox import Enforcement, Outcome, Task, TaskResult
from gwsandbox.backends.cgroup.delegation import find_root
from gwsandbox.cli.doctor import probes
from gwsandbox.model.hardening import MECHANISMS

LIMITS = {"memory", "wall_seconds", "cpu_seconds", "cpus", "pids", "open_files", "file_size", "output"}
HAS_CGROUP = not missing("cgroup2")


def examine() -> tuple[int, dict[str, Any]]:
    done = cli("doctor", "--json")
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout)


# --- doctor ----------------------------------------------------------------------------------------------


def test_each_backend_is_probed(backend: BackendName) -> None:
    _, report = examine()
    found = report["backends"][backend]
    assert found["available"]
    assert found["limits"].keys() == LIMITS
    assert all(verdict["by"] for verdict in found["limits"].values() if verdict["status"] != "not held")
    assert all(verdict["why"] for verdict in found["limits"].values() if verdict["status"] != "enforced")


def test_each_mechanism_of_hardening_is_tried() -> None:
    _, report = examine()
    assert report["hardening"].keys() == set(MECHANISMS)
    assert all(text.startswith(("enforced", "partly: ", "not: ")) for text in report["hardening"].values())
    assert report["hardening"]["no_new_privs"] == "enforced"


@pytest.mark.cgroup2
def test_with_cgroups_everything_is_enforced() -> None:
    code, report = examine()
    verdicts = report["backends"]["cgroup"]["limits"]
    assert {name: verdict["status"] for name, verdict in verdicts.items()} == dict.fromkeys(LIMITS, "enforced")
    assert verdicts["memory"]["by"] == "memory.max"
    assert (code, report["status"], report["advice"]) == (0, "enforced", [])


def test_what_rlimits_hold_and_what_not() -> None:
    _, report = examine()
    statuses = {name: verdict["status"] for name, verdict in report["backends"]["rlimit"]["limits"].items()}
    sampled = dict.fromkeys(("memory", "cpu_seconds", "pids"), "degraded")
    assert statuses == {**dict.fromkeys(LIMITS, "enforced"), **sampled, "cpus": "not held"}


@pytest.mark.skipif(HAS_CGROUP, reason="this machine has cgroup v2")
def test_without_cgroups_it_says_why_and_what_mends_it() -> None:
    code, report = examine()
    assert (code, report["status"]) == (1, "degraded")
    assert not report["backends"]["cgroup"]["available"]
    assert "find delegated root" in report["backends"]["cgroup"]["reason"]
    assert all(entry["why"] and entry["lines"] for entry in report["advice"])
    assert report["advice"]


def test_one_screen(backend: BackendName) -> None:
    done = cli("doctor")
    assert done.returncode in {0, 1}
    assert done.stdout.count("\n") <= 50
    assert f"backend {backend}:\n  --memory " in done.stdout
    assert all(f"  --{name} " in done.stdout for name in ("timeout", "cpu-time", "cpus", "pids", "output-limit"))
    end = "Every limit is enforced." if done.returncode == 0 else "Some limits are degraded"
    assert done.stdout.splitlines()[-1].startswith(end)


def result(outcome: Outcome, limits: Mapping[str, str], degraded: Mapping[str, str]) -> TaskResult:
    return TaskResult(
        Task(print),
        success=outcome is Outcome.SUCCEEDED,
        outcome=outcome,
        detail="what happened",
        enforcement=Enforcement("cgroup", limits, degraded),
    )


def test_a_limit_that_claims_to_hold_and_does_not_is_found_out() -> None:
    """The verdict is from what the task could do, not from what the backend says."""
    probe = probes.PROBES["memory"]
    held = result(Outcome.OUT_OF_MEMORY, {"memory": "memory.max"}, {})
    got_past = replace(held, outcome=Outcome.SUCCEEDED, success=True)
    assert probes.assess("memory", probe, held) == probes.Finding("memory", "enforced", "memory.max")
    verdict = probes.assess("memory", probe, got_past)
    assert (verdict.status, verdict.by) == ("not held", "")
    assert verdict.why == "memory.max did not stop a task that went past it: what happened"
    less = result(Outcome.OUT_OF_MEMORY, {"memory": "sampling"}, {"memory": "now and then"})
    assert probes.assess("memory", probe, less) == probes.Finding("memory", "degraded", "sampling", "now and then")
    nothing = result(Outcome.SUCCEEDED, {}, {"memory": "no way"})
    assert probes.assess("memory", probe, nothing) == probes.Finding("memory", "not held", "", "no way")
    ours = result(Outcome.SANDBOX_ERROR, {"memory": "memory.max"}, {})
    assert probes.assess("memory", probe, ours) == probes.Finding("memory", "not held", "", "what happened")


# --- clean -----------------------------------------------------------------------------------------------


def test_nothing_to_clean() -> None:
    done = cli("clean")
    assert (done.returncode, done.stderr) == (0, "")
    if not HAS_CGROUP:
        assert done.stdout == "nothing was left behind\n"


@pytest.mark.cgroup2
@pytest.mark.delegated
def test_clean_removes_what_is_dead_and_leaves_what_lives(tmp_path: Path) -> None:
    (tmp_path / "in").write_text("x")
    os.mkfifo(tmp_path / "fifo")
    words = ["--backend", "cgroup", "--report", "r", "--command", "sh -c 'read _ <fifo' name {input}"]
    with running("map", *words, "in", cwd=tmp_path) as alive, open(tmp_path / "fifo", "w") as fifo:
        # Made when that run has swept already, which it does at its start.
        left = f"{find_root().path}/gwsandbox-4194304-1-0"  # no process has a number above pid_max
        os.makedirs(f"{left}/task-1/made-by-the-task")
        with Program("print('up', flush=True); input()") as orphan:
            assert orphan.line() == "up"
            with open(f"{left}/task-1/cgroup.procs", "w", encoding="ascii") as procs:
                procs.write(str(orphan.pid))
            done = cli("clean")
            assert (done.returncode, done.stdout, done.stderr) == (0, f"removed {left}\n", "")
            assert orphan.wait() == -9
        assert not os.path.exists(left)
        fifo.write("go on\n")
        fifo.close()
        assert alive.end()[0] == 0
    assert rows(tmp_path / "r")[0]["outcome"] == "SUCCEEDED"


@pytest.mark.cgroup2
@pytest.mark.delegated
def test_the_next_run_sweeps_too() -> None:
    top = find_root().path
    left = f"{top}/gwsandbox-4194304-1-0"
    os.mkdir(left)
    assert cli("run", "--backend", "cgroup", "--", "true").returncode == 0
    assert not os.path.exists(left)
