"""The lab that scripts/faults runs: it sees what it is to see, and repeats a round by its seed."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def lab(source: str) -> Any:
    """What a program prints as JSON that has the lab's modules at hand; its children are the lab's to clear up."""
    words = [sys.executable, "-c", textwrap.dedent(source)]
    path = f"{SCRIPTS}:{SCRIPTS.parent}"
    done = subprocess.run(words, env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_a_driver_that_stands_still_is_hung_and_ended() -> None:
    hung, evidence = lab("""
        import json, threading
        from faultlab import driver
        ended = driver.run(lambda progress: threading.Event().wait(), stalled=0.2)
        print(json.dumps([ended.hung, ended.log]))
    """)
    assert hung
    assert "threading.py" in evidence  # where it stands
    assert "caller:" in evidence


def test_a_driver_that_never_rests_is_hung() -> None:
    assert lab("""
        from faultlab import driver
        def spin(progress):
            while True:
                pass
        print("true" if driver.run(spin, longest=0.5).hung else "false")
    """)


def test_what_a_driver_leaves_is_seen_and_ended() -> None:
    left, children = lab("""
        import json, os, subprocess
        from faultlab import driver, process_tree
        driver.LEAVING_SECONDS = 0.2
        ended = driver.run(lambda progress: {"pid": subprocess.Popen(["sleep", "1000"], start_new_session=True).pid})
        print(json.dumps([ended.left, process_tree.children(os.getpid())]))
    """)
    assert len(left) == 1
    assert "sleep 1000" in left[0]
    assert children == []


def test_each_role_is_found_by_its_place() -> None:
    found = lab("""
        import json, os, time
        from faultlab import process_tree
        from gwsandbox import ProcessManager, Task
        with ProcessManager(2, backend="rlimit") as manager:
            manager.queue_tasks([Task(int), Task(time.sleep, (1000,)), Task(time.sleep, (1000,))])
            next(manager.as_completed())
            while not (found := process_tree.find(os.getpid()))["guest"]:
                pass
            print(json.dumps({role: len(pids) for role, pids in found.items()}))
            manager.cancel()
    """)
    assert found.pop("guest") >= 1
    assert found == {"caller": 1, "reaper": 1, "supervisor": 1, "zygote": 1}


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_call_of_one_role_fails(method: str) -> None:
    """Each role has its own count; the guest's and the zygote's come after the supervisor's in the same memory."""
    fired, stack, outcomes = lab(f"""
        import dataclasses, json
        from faultlab import inject
        from faultlab.options import Options
        point = inject.Point.parse("supervisor:os.memfd_create:2:EPERM:once")
        plan = inject._plan(Options(seed=1), "{method}")
        fired, counts, ended = inject._injected(plan, dataclasses.asdict(point))
        outcomes = [result["outcome"] for results in ended.report["tasks"].values() for result in results]
        print(json.dumps([fired, ended.log, outcomes]))
    """)
    assert fired == 1
    assert "launcher.py" in stack
    assert outcomes.count("SANDBOX_ERROR") == 1


@pytest.mark.parametrize(
    ("sort", "change"), [("failing", "success=True, outcome=Outcome.SUCCEEDED"), ("square", "result=7")]
)
def test_a_result_that_is_not_true_is_seen(sort: str, change: str) -> None:
    before, after = lab(f"""
        import dataclasses, json
        from faultlab.workload import Plan, judged
        from gwsandbox import Outcome, run
        plan = Plan(("{sort}",) * 3)
        result = run(plan.tasks()[2], backend="rlimit")
        found = [judged(plan, 2, one)["right"] for one in (result, dataclasses.replace(result, {change}))]
        print(json.dumps(found))
    """)
    assert before
    assert not after


def test_an_interrupt_comes_in_the_code_of_the_package() -> None:
    where, raised, outcomes = lab("""
        import functools, json, signal
        from faultlab import driver, interrupt
        from faultlab.workload import Plan
        plan = Plan(("nap",) * 3)
        drive = functools.partial(interrupt._drive, plan, interrupt.Interrupt(3000, signal.SIGINT))
        report = driver.run(drive).report
        outcomes = [[result["outcome"] for result in results] for results in report["tasks"].values()]
        print(json.dumps([report["where"], report["raised"]["type"], outcomes]))
    """)
    assert "manager.py" in where
    assert raised == "KeyboardInterrupt"
    assert [len(results) for results in outcomes] == [1, 1, 1]


def test_a_bad_round_is_counted_and_its_command_printed(tmp_path: Path) -> None:
    code, printed, written = lab(f"""
        import contextlib, io, json, pathlib
        from faultlab.tally import Finding, Kind, Round, Tally
        with contextlib.redirect_stdout(io.StringIO()) as out:
            tally = Tally("kill")
            tally.add(Round(3, (), "first"))
            tally.add(Round(4, (Finding(Kind.LOST, "task 1"),), "scripts/faults kill --seed 2 --rounds 1"))
            print("\\n".join(tally.lines()))
        tally.write(pathlib.Path("{tmp_path}/report"))
        print(json.dumps([tally.exit_code, out.getvalue(), pathlib.Path("{tmp_path}/report").read_text()]))
    """)
    assert code == 1
    assert "scripts/faults kill --seed 2 --rounds 1\n  lost: task 1" in printed
    assert ["kill", "2", "7", "1", "0", "0", "0"] in [line.split() for line in printed.splitlines()]
    assert json.loads(written)["lost"] == 1


def test_the_same_seed_makes_the_same_inputs() -> None:
    first, second = lab("""
        import json, random
        from faultlab.readers import READERS
        made = lambda: [repr(reader.make(random.Random(4))) for reader in READERS]
        print(json.dumps([made(), made()]))
    """)
    assert first == second


def test_a_table_has_a_row_for_each_kind_and_the_command_that_repeats_it() -> None:
    words = [sys.executable, str(SCRIPTS / "faults"), "table", "--rounds-scale", "0.0005", "--only", "kill", "states"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    head, _, kill, states = done.stdout.splitlines()[-4:]
    assert head == "| faults | backend | rounds | what | lost | left | hung | wrong | minutes | command |"
    assert kill.startswith("| kill | rlimit | 1 | ")
    assert kill.endswith("| 0 | 0 | 0 | 0 | 0.0 | `scripts/faults kill --seed 1 --rounds 1 --backend rlimit` |")
    assert states.startswith("| states | rlimit | 1 | ")
