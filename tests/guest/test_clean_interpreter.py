"""The clean interpreter of "forkserver": the caller's flags and arguments, and no module of the current folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import PACE, BackendName

from gwsandbox import run

ROOT = Path(__file__).resolve().parents[2]

# It says, as JSON, what the caller and a guest of its clean interpreter know.
ASKS = f"""
import sys
sys.path.append({str(ROOT)!r})
import json, warnings
from gwsandbox import Limits, run
def known():
    import __main__, sys, warnings
    flags = {{name: getattr(sys.flags, name) for name in FLAGS}}
    asserts = "on"
    try:
        assert False
    except AssertionError:
        pass
    else:
        asserts = "off"
    return [flags, sys.warnoptions, asserts, sys.argv, dict(sys._xoptions)]
FLAGS = [name for name in dir(sys.flags) if isinstance(getattr(sys.flags, name), int) and name[0] != "n"]
result = run(known, backend=BACKEND, start_method="forkserver", limits=Limits(wall_seconds=60))
json.dump([known(), result.result, result.detail], sys.stdout)
"""


def ask(backend: BackendName, *flags: str, cwd: Path, source: str = ASKS) -> Any:
    done = subprocess.run(
        [sys.executable, *flags, "-c", source.replace("BACKEND", repr(backend)), "an argument"],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60 * PACE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("-I",),
        ("-O",),
        ("-OO", "-B"),
        ("-X", "utf8", "-X", "dev"),
        ("-W", "ignore", "-W", "error::UserWarning"),
        ("-P", "-s"),
    ],
    ids=" ".join,
)
def test_a_guest_has_the_callers_flags_and_arguments(
    backend: BackendName, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    callers, guests, detail = ask(backend, *flags, cwd=tmp_path)
    assert guests == callers, detail
    assert guests[3] == ["-c", "an argument"]
    assert guests[2] == ("off" if "-O" in flags or "-OO" in flags else "on")


# As an interactive session does that goes to a folder of untrusted files: "" in sys.path is the current folder.
GOES_THERE = f"""
import sys
sys.path.append({str(ROOT)!r})
import json, os
import cloudpickle  # later the caller itself would look for it in the current folder
from gwsandbox import run
os.chdir("untrusted")
import warnings
result = run(abs, (-3,), backend=BACKEND, start_method="forkserver")
where = run(lambda: __import__("sys").path, backend=BACKEND, start_method="forkserver").result
json.dump([result.result, result.detail, sys.path, where], sys.stdout)
"""
SHADOWS = (
    "pickle",
    "socket",
    "struct",
    "logging",
    "cloudpickle",
    "gwsandbox",
    "signal",
    "typing",
    "resource",
    "jeepney",
)


@pytest.mark.parametrize("flags", [(), ("-I",), ("-P",)], ids=" ".join)
def test_no_module_of_the_current_folder_is_run(backend: BackendName, tmp_path: Path, flags: tuple[str, ...]) -> None:
    untrusted = tmp_path / "untrusted"
    untrusted.mkdir()
    for name in SHADOWS:
        (untrusted / f"{name}.py").write_text(f"open({str(tmp_path / 'hijacked')!r}, 'a').write({name!r} + ' ')\n")
    value, detail, callers, guests = ask(backend, *flags, cwd=tmp_path, source=GOES_THERE)
    assert (value, detail) == (3, "")
    assert not (tmp_path / "hijacked").exists()
    assert guests == [str(tmp_path) if folder == "" else folder for folder in callers]


def test_a_script_in_another_folder(backend: BackendName, tmp_path: Path) -> None:
    """Its own folder is in sys.path, and the current one is not."""
    (tmp_path / "app").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "pickle.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "app" / "helper.py").write_text("def answer(): return 42\n")
    (tmp_path / "app" / "main.py").write_text(
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "from helper import answer\n"
        "from gwsandbox import run\n"
        f"print(run(answer, backend={backend!r}, start_method='forkserver').result)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "../app/main.py"],
        cwd=tmp_path / "docs",
        capture_output=True,
        text=True,
        timeout=60 * PACE,
        check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )
    assert (done.stdout, done.stderr) == ("42\n", "")


def test_a_caller_with_more_to_say_than_a_packet_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, *(f"/nowhere/{number:0>90}" for number in range(1000))])
    result = run(len, (b"abc",), start_method="forkserver", backend="rlimit")
    assert result.result == 3, result.detail
