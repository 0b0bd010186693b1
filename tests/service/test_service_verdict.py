"""What becomes of a file: pure decisions, and what a stranger's words are turned into."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from gwsandbox import CommandOutput, Outcome, Task, TaskResult
from gwsandbox.service import call
from gwsandbox.service.config.config import Config, Folders, Worker
from gwsandbox.service.retry_policy import INTERRUPTED, REFUSED, Fate, conclude, decide, last_words, report
from gwsandbox.service.spool.job_database import Ending

CONFIG = Config(
    folders=Folders(incoming="/i", work="/w", done="/d", quarantine="/q"),
    ledger="/l",
    worker=Worker(function="m:f"),
    interruptions=4,
)
TASK = Task(print)


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
        ("CANCELLED", {"OUT_OF_MEMORY": 2}, Fate.GIVE_BACK),
        (INTERRUPTED, {"OUT_OF_MEMORY": 2}, Fate.TRY_AGAIN),
        (INTERRUPTED, {"INTERRUPTED": 2}, Fate.TRY_AGAIN),
        (INTERRUPTED, {"INTERRUPTED": 2, "SANDBOX_ERROR": 1}, Fate.QUARANTINE),
        ("SANDBOX_ERROR", {"SANDBOX_ERROR": 2}, Fate.TRY_AGAIN),
        ("SANDBOX_ERROR", {"INTERRUPTED": 3}, Fate.QUARANTINE),
    ],
)
def test_fate(outcome: str, before: dict[str, int], fate: Fate) -> None:
    assert decide(outcome, Counter(before), CONFIG) is fate


def test_which_outcomes_are_tried_again_is_configured() -> None:
    config = replace(CONFIG, retry=frozenset({Outcome.FAILED}), attempts=2)
    assert decide("FAILED", Counter(), config) is Fate.TRY_AGAIN
    assert decide("FAILED", Counter(FAILED=1), config) is Fate.QUARANTINE
    assert decide("OUT_OF_MEMORY", Counter(), config) is Fate.QUARANTINE


def test_every_outcome_ends() -> None:
    """Whatever happens again and again, no file is tried for ever, but for what is cancelled on request."""
    for outcome in [*(outcome.name for outcome in Outcome), INTERRUPTED, REFUSED]:
        before: Counter[str] = Counter()
        while decide(outcome, before, CONFIG) is Fate.TRY_AGAIN:
            before[outcome] += 1
            assert sum(before.values()) < 10


def test_killed_while_stopping_is_given_back() -> None:
    assert decide("KILLED", Counter(), CONFIG, is_stopping=True) is Fate.GIVE_BACK
    assert decide("TIMED_OUT", Counter(), CONFIG, is_stopping=True) is Fate.TRY_AGAIN


# --- words -----------------------------------------------------------------------------------------------


def fail(_source: str, _output: str) -> None:
    raise ValueError("bad \udcff \x1b[31m" + "x" * 10**5)


def test_what_the_function_raised_is_told(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(str(tmp_path))
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.setattr("tempfile.tempdir", None)
    call.choose(fail)
    try:
        value = call.in_guest("/in", "/out", str(tmp_path))
    finally:
        call.choose(None)
    ending = conclude(TaskResult(TASK, success=True, result=value))
    assert ending.outcome == "FAILED"
    assert ending.detail.startswith("the function raised: ValueError: bad \\udcff \\x1b[31mxxx")
    assert len(ending.detail) <= 2000
    assert "test_service_verdict.py" in (call.failure_of(value) or {})["traceback"]


@pytest.mark.parametrize(
    "value",
    [b"\x80\x04.", b"null", b"{}", b"[" * 10**6, b'{"type": 1}', b"\xff" * 10**6, json.dumps({"type": [1]}).encode()],
)
def test_what_a_hostile_guest_tells_harms_nobody(value: bytes) -> None:
    ending = conclude(TaskResult(TASK, success=True, result=value))
    assert ending.outcome == "FAILED"
    assert "not told in an understandable way" in ending.detail
    assert len(ending.detail) <= 2000


@pytest.mark.parametrize("value", [None, b"", 7, "text", {"type": "x"}])
def test_values_that_are_no_complaint(value: object) -> None:
    assert conclude(TaskResult(TASK, success=True, result=value)).outcome == "SUCCEEDED"


def test_last_words_of_a_program() -> None:
    output = CommandOutput(b"", b"first\n\x1b[31mthe reason\xff\n\n")
    result = TaskResult(TASK, success=False, result=output, detail="exit code 3")
    assert conclude(result).detail == "exit code 3: \\x1b[31mthe reason\N{REPLACEMENT CHARACTER}"
    assert len(last_words(replace_output(result, b"x" * 10**6))) == 2000


def replace_output(result: TaskResult, stderr: bytes) -> TaskResult:
    return replace(result, result=CommandOutput(b"", stderr))


def test_report_is_json_whatever_the_name() -> None:
    ending = Ending(outcome="REFUSED", detail="no")
    rows: list[dict[str, Any]] = [{"number": 1, "outcome": "OUT_OF_MEMORY"}, {"number": 2, "outcome": None}]
    told = report("a\udcff\n", 7, ending, rows, None)
    assert json.loads(json.dumps(told))["file"] == "a\udcff\n"
    assert [row["outcome"] for row in told["attempts"]] == ["OUT_OF_MEMORY", "REFUSED"]
    full = report("a", 7, ending, rows, TaskResult(TASK, success=False, exception=ValueError("why")))
    assert full["exception"] == {"type": "ValueError", "message": "why"}
    assert {"usage", "enforcement", "exit_code", "stderr"} <= full.keys()
