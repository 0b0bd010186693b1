"""``gwsandbox spool``: what an operator sees, and files that leave quarantine, with and without a service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from spools import SpoolFolder, serving
from support import BEAT

from gwsandbox.service import operator
from gwsandbox.service.config.reader import read_config
from gwsandbox.service.spool import files
from gwsandbox.service.spool.job_database import JobDatabase


@pytest.fixture
def spool(tmp_path: Path) -> SpoolFolder:
    folder = SpoolFolder(tmp_path)
    folder.configure(tables=f"[limits]\nwall_seconds = {BEAT}")
    return folder


def command(spool: SpoolFolder, verb: str, *words: str, code: int = 0) -> str:
    """What it prints, on stdout and stderr."""
    argv = [sys.executable, "-m", "gwsandbox", "spool", verb, str(spool.config), *words]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(argv, capture_output=True, check=False, env=env)
    text = (done.stdout + done.stderr).decode(errors="surrogateescape")
    assert done.returncode == code, text
    return text


def test_status(spool: SpoolFolder) -> None:
    for name, content in (("bad\n\x1b[31m", "raise"), ("good", "content")):
        spool.put(name, content)
    (spool.root / "incoming" / "folder").mkdir()
    (spool.root / "incoming" / "x.part").touch()
    assert "incoming: 2, and 1 of producers that still write, and 1 folders" in command(spool, "status")
    with serving(spool):
        spool.wait_until(lambda: spool.names("incoming") == {"folder", "x.part"} and not spool.names("work"))
        spool.put("hang", "hang")
        spool.wait_until(lambda: spool.outcomes("hang") == [None])
        text = command(spool, "status")
        found = json.loads(command(spool, "status", "--json"))
    assert text.splitlines()[0].endswith("incoming: a service works on it")
    assert "  hang: RUNNING, attempt 1" in text
    assert "done: 1" in text
    assert "  bad\\n\\x1b[31m: QUARANTINED, attempt 1, FAILED, the function raised: ValueError" in text
    assert "\x1b" not in text
    assert found["is_served"] is True
    assert found["folders"] == ["folder"]
    assert found["work"][0]["name"] == "hang"
    assert [file["outcome"] for file in found["quarantine"]] == ["FAILED"]
    assert "no service works on it" in command(spool, "status")


@pytest.mark.parametrize("verb", ["requeue", "retry"])
def test_out_of_quarantine_under_a_service(spool: SpoolFolder, verb: str) -> None:
    """Three attempts after requeue, one after retry."""
    name = os.fsdecode(b"-x \xff\n.txt")
    spool.put(name, "hang")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
        assert spool.outcomes(name) == ["TIMED_OUT"] * 3
        assert "is in incoming" in command(spool, verb, "--", name)
        spool.wait_until(lambda: spool.names("quarantine") == {name, f"{name}.report.json"} and spool.is_quiet())
    assert spool.outcomes(name) == ["TIMED_OUT"] * (6 if verb == "requeue" else 4)


@pytest.mark.parametrize("verb", ["requeue", "retry"])
def test_all_files_at_once_to_a_better_worker(spool: SpoolFolder, verb: str) -> None:
    spool.configure('command = ["/bin/false", "{input}", "{output}"]')
    for name in ("a", "b.report.json"):
        spool.put(name, "content")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    assert spool.results()["quarantine"] == {"a"}  # the other is there too, and called like a report
    spool.put("a", "another")
    text = command(spool, verb)
    assert "a is in incoming as a~0" in text
    assert "b.report.json is in incoming" in text
    assert spool.names("quarantine") == set()
    spool.configure()
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    done = {path.name: path.read_text() for path in (spool.root / "done").iterdir()}
    assert sorted(done.values()) == ["ANOTHER", "CONTENT", "CONTENT"]
    assert done["b.report.json"] == "CONTENT"
    assert done["a"] == ("CONTENT" if verb == "retry" else "ANOTHER")  # a job keeps the name that it came with


def test_files_that_are_not_there(spool: SpoolFolder) -> None:
    spool.put("bad", "raise")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    text = command(spool, "retry", "none", f"{spool.root}/quarantine/bad", "bad.report.json", code=1)
    assert "none: there is no such file" in text
    assert "bad.report.json: there is no such file" in text
    assert "bad is in incoming" in text
    assert spool.names("incoming") == {"bad"}


def test_a_file_that_the_database_does_not_know(spool: SpoolFolder) -> None:
    (spool.root / "quarantine" / "a").write_text("content")
    assert "requeue the file instead" in command(spool, "retry", "a", code=1)
    with JobDatabaseFile(spool):
        assert "a: not in the job database" in command(spool, "status")
        assert "requeue the file instead" in command(spool, "retry", "a", code=1)
    command(spool, "requeue", "a")
    assert spool.names("incoming") == {"a"}


class JobDatabaseFile:
    """An empty job database, open."""

    def __init__(self, spool: SpoolFolder) -> None:
        self._database = JobDatabase(str(spool.database))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._database.close()


def test_mistakes(spool: SpoolFolder) -> None:
    spool.configure(top="workers = -1")
    assert "workers: must be a whole number" in command(spool, "status", code=125)
    spool.configure('function = "no_such_module:f"')
    assert "no service works on it" in command(spool, "status")  # it need not be imported here
    (spool.root / "quarantine").rmdir()
    assert "No such file" in command(spool, "status", code=125)


def test_a_retry_that_cannot_move_the_file_leaves_it_in_quarantine(
    spool: SpoolFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.put("bad", "raise")
    with serving(spool):
        spool.wait_until(spool.is_quiet)
    config = read_config(str(spool.config))

    def refuse(*_: object) -> None:
        raise PermissionError(1, "immutable")

    with monkeypatch.context() as patch:
        patch.setattr(files, "move", refuse)
        with pytest.raises(PermissionError):
            operator.retry(config, "bad")
    assert spool.rows("SELECT state, target FROM jobs") == [("QUARANTINED", b"bad")]
    assert operator.retry(config, "bad") == "bad"
    assert spool.rows("SELECT state FROM jobs") == [("RETURNED",)]
