"""CPython's own tests of process pools, those of the interpreter that runs, over ``SandboxExecutor``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("cpython_pool.py")

_ONE_TASK = "each guest has one task, and there is no worker to count or to use again"
_NOTHING_BREAKS = "what cannot be opened is an error of that one task, and the pool goes on"

EXCLUDED = {
    "test_killed_child": "a guest that is killed breaks nothing but its own future",
    "test_processes_terminate": _ONE_TASK,
    "test_saturation": _ONE_TASK,
    "test_idle_process_reuse_one": _ONE_TASK,
    "test_idle_process_reuse_multiple": _ONE_TASK,
    "test_max_tasks_per_child": _ONE_TASK,
    "test_max_tasks_per_child_defaults_to_spawn_context": _ONE_TASK,
    "test_max_tasks_early_shutdown": _ONE_TASK,
    "test_ressources_gced_in_workers": "a guest ends with its task, and does not collect its arguments before that",
    "test_traceback": "asks for the private type of the standard cause; ours is RemoteTraceback",
    "test_error_at_task_unpickle": _NOTHING_BREAKS,
    "test_exit_at_task_unpickle": _NOTHING_BREAKS,
    "test_exit_during_result_pickle_on_worker": _NOTHING_BREAKS,
    "test_error_during_result_unpickle_in_result_handler": _NOTHING_BREAKS,
    "test_exit_during_result_unpickle_in_result_handler": _NOTHING_BREAKS,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": "replaces a private class of the standard executor",
    "test_python_finalization_error": "replaces the start of the standard executor's threads",
    "test_process_pool_executor_terminate_workers": "replaces a private method of the standard executor",
    "test_process_pool_executor_kill_workers": "replaces a private method of the standard executor",
    "test_force_shutdown_workers_invalid_op": "calls a private method of the standard executor",
    "test_force_shutdown_workers": _ONE_TASK,
    "test_force_shutdown_workers_dead": _ONE_TASK,
    "test_force_shutdown_workers_not_started_yet": _ONE_TASK,
    "test_force_shutdown_workers_stops_pool": _ONE_TASK,
}
EXCLUDED_CLASSES = {
    "ProcessPoolForkserverFailingInitializerTest": "its queue travels by inheritance, and a clean interpreter has none",
}


def run(*words: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )


@pytest.mark.cpython_tests
@pytest.mark.long
def test_the_interpreters_own_tests_of_process_pools() -> None:
    """Each class in a process of its own, all at a time: most of them sleep."""
    names = run().communicate()[0].split()
    assert any("Wait" in name for name in names)
    words = [f"--without={name}" for name in EXCLUDED]
    running = {name: run(*words, name) for name in names if name not in EXCLUDED_CLASSES}
    said = {name: process.communicate()[0] for name, process in running.items()}
    done = {name: json.loads(text.splitlines()[-1]) for name, text in said.items()}
    failed = {test: said[name] for name, counts in done.items() for test in counts["failed"]}
    assert not failed, "\n".join(failed.values())[-5000:]
    assert sum(counts["ran"] for counts in done.values()) > 60


@pytest.mark.cpython_tests
def test_each_test_that_is_left_out_may_be_there() -> None:
    assert EXCLUDED_CLASSES.keys() <= set(run().communicate()[0].split())
