"""What becomes of a file: pure decisions over a finished attempt, and the answers of untrusted guests."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace

import pytest

from gwsandbox import CommandOutput, Outcome, Task, TaskResult
from gwsandbox.service import finished_attempt, worker_function
from gwsandbox.service.config.config import FolderConfig, ServiceConfig, WorkerConfig
from gwsandbox.service.finished_attempt import CHANGED, INTERRUPTED, REFUSED, FinishedAttempt, from_result
from gwsandbox.service.retry_policy import Fate, decide, quarantine_report
from gwsandbox.service.spool.job_database import AttemptEnd, AttemptRow, Job, State

CONFIG = ServiceConfig(
    folders=FolderConfig(incoming="/i", work="/w", done="/d", quarantine="/q"),
    database="/l",
    worker=WorkerConfig(function="m:f"),
    interruptions=4,
)
TASK = Task(print)
JOB = Job(7, "a", 1, "output", State.RUNNING)


def row(outcome: str | None, number: int = 1) -> AttemptRow:
    return AttemptRow(job=7, number=number, started_at=1.0, limits={}, outcome=outcome)


def attempt(outcome: str, before: Mapping[str, int] = {}) -> FinishedAttempt:
    """An attempt that ended in ``outcome``, after others with theirs."""
    rows = [row(name) for name, times in before.items() for _ in range(times)]
    return FinishedAttempt(job=JOB, end=AttemptEnd(outcome), rows=(*rows, row(None)))


def finished(result: TaskResult) -> FinishedAttempt:
    return from_result(JOB, [row(None)], result)


@pytest.mark.parametrize(
    ("outcome", "before", "fate"),
    [
        ("SUCCEEDED", {"OUT_OF_MEMORY": 2}, Fate.PUBLISH),
        ("OUT_OF_MEMORY", {}, Fate.TRY_AGAIN),
        ("OUT_OF_MEMORY", {"TIMED_OUT": 1}, Fate.TRY_AGAIN),
        ("OUT_OF_MEMORY", {"TIMED_OUT": 1, "CRASHED": 1}, Fate.QUARANTINE),
        ("KILLED", {"KILLED": 2, "CANCELLED": 9}, Fate.QUARANTINE),
        ("KILLED", {"INTERRUPTED": 3, "CANCELLED": 9, "SANDBOX_ERROR": 3}, Fate.TRY_AGAIN),
        ("CPU_TIME_EXCEEDED", {"OUT_OF_MEMORY": 7}, Fate.QUARANTINE),
        ("FAILED", {}, Fate.QUARANTINE),
        ("OUTPUT_EXCEEDED", {}, Fate.QUARANTINE),
        (REFUSED, {}, Fate.QUARANTINE),
        (CHANGED, {"OUT_OF_MEMORY": 2, "INTERRUPTED": 3}, Fate.GIVE_BACK),
        ("OUT_OF_MEMORY", {"CHANGED": 9}, Fate.TRY_AGAIN),
        ("CANCELLED", {"OUT_OF_MEMORY": 2}, Fate.GIVE_BACK),
        (INTERRUPTED, {"OUT_OF_MEMORY": 2}, Fate.TRY_AGAIN),
        (INTERRUPTED, {"INTERRUPTED": 2}, Fate.TRY_AGAIN),
        (INTERRUPTED, {"INTERRUPTED": 2, "SANDBOX_ERROR": 1}, Fate.QUARANTINE),
        ("SANDBOX_ERROR", {"SANDBOX_ERROR": 2}, Fate.TRY_AGAIN),
        ("SANDBOX_ERROR", {"INTERRUPTED": 3}, Fate.QUARANTINE),
    ],
)
def test_fate(outcome: str, before: dict[str, int], fate: Fate) -> None:
    assert decide(attempt(outcome, before), CONFIG) is fate


def test_which_outcomes_are_tried_again_is_configured() -> None:
    config = replace(CONFIG, retry=frozenset({Outcome.FAILED}), attempts=2)
    assert decide(attempt("FAILED"), config) is Fate.TRY_AGAIN
    assert decide(attempt("FAILED", {"FAILED": 1}), config) is Fate.QUARANTINE
    assert decide(attempt("OUT_OF_MEMORY"), config) is Fate.QUARANTINE


def test_every_outcome_ends() -> None:
    """Whatever happens again and again, no file is tried for ever, but for what is cancelled on request."""
    for outcome in [*(outcome.name for outcome in Outcome), INTERRUPTED, REFUSED, CHANGED]:
        times = 0
        while decide(attempt(outcome, {outcome: times}), CONFIG) is Fate.TRY_AGAIN:
            times += 1
            assert times < 10


def test_killed_while_stopping_is_given_back() -> None:
    assert decide(attempt("KILLED"), CONFIG, is_stopping=True) is Fate.GIVE_BACK
    assert decide(attempt("TIMED_OUT"), CONFIG, is_stopping=True) is Fate.TRY_AGAIN


# --- answers of guests -----------------------------------------------------------------------------------------------


def fail(_source: str, _output: str) -> None:
    raise ValueError("bad \udcff \x1b[31m" + "x" * 10**5)


def test_what_the_function_raised_is_reported(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setattr(os, "environ", dict(os.environ))  # which the call clears
    monkeypatch.setattr("tempfile.tempdir", None)
    worker_function.set_function(fail)
    try:
        value = worker_function.call_in_guest("/in", "/out", str(tmp_path))
    finally:
        worker_function.set_function(None)
    record = finished(TaskResult(TASK, success=True, result=value))
    assert record.end.outcome == "FAILED"
    assert record.end.detail.startswith("the function raised: ValueError: bad \\udcff \\x1b[31mxxx")
    assert len(record.end.detail) <= 2000
    assert record.failure is not None
    assert "test_retry_policy.py" in record.failure.traceback


@pytest.mark.parametrize(
    "value",
    [b"\x80\x04.", b"null", b"{}", b"[" * 10**6, b'{"type": 1}', b"\xff" * 10**6, json.dumps({"type": [1]}).encode()],
)
def test_the_answer_of_a_hostile_guest_harms_nobody(value: bytes) -> None:
    end = finished(TaskResult(TASK, success=True, result=value)).end
    assert end.outcome == "FAILED"
    assert "the answer cannot be read" in end.detail
    assert len(end.detail) <= 2000


@pytest.mark.parametrize("value", [None, b"", 7, "text", {"type": "x"}])
def test_values_that_are_no_complaint(value: object) -> None:
    assert finished(TaskResult(TASK, success=True, result=value)).end.outcome == "SUCCEEDED"


def test_end_of_stderr_of_a_program() -> None:
    output = CommandOutput(b"", b"first\n\x1b[31mthe reason\xff\n\n")
    result = TaskResult(TASK, success=False, result=output, detail="exit code 3")
    assert finished(result).end.detail == "exit code 3: \\x1b[31mthe reason\N{REPLACEMENT CHARACTER}"
    assert len(finished(replace(result, result=CommandOutput(b"", b"x" * 10**6))).stderr) == 2000


def test_output_that_cannot_be_published_is_a_failure() -> None:
    result = TaskResult(TASK, success=True, result=b"")
    end = finished(result).overruled("FAILED", "it is a link").end
    assert (end.outcome, end.detail) == ("FAILED", "it is a link")


def test_report_is_json_whatever_the_name() -> None:
    job = replace(JOB, name="a\udcff\n")
    rows = [row("OUT_OF_MEMORY"), row(None, 2)]
    found = quarantine_report(finished_attempt.without_guest(job, rows, "REFUSED", "no"))
    assert json.loads(json.dumps(found))["file"] == "a\udcff\n"
    assert [entry["outcome"] for entry in found["attempts"]] == ["OUT_OF_MEMORY", "REFUSED"]
    result = TaskResult(TASK, success=False, exception=ValueError("why"), end_time=5.0)
    full = quarantine_report(from_result(job, rows, result))
    assert full["exception"] == {"type": "ValueError", "message": "why"}
    assert full["attempts"][-1]["ended_at"] == 5.0
    assert {"usage", "enforcement", "exit_code", "stderr"} <= full.keys()
