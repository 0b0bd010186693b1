"""The spool service as a unit of a real systemd: hardened, killed, frozen, reloaded, drained.

Installs units and a user, so it runs in a throw-away machine only: ``scripts/vm test --as unit -k service_unit``.
"""

from __future__ import annotations

import compileall
import contextlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from spools import FUNCTION, SpoolFolder
from support import BEAT, SLOW

import gwsandbox

pytestmark = [pytest.mark.vm, pytest.mark.cgroup2]

REPO = Path(__file__).parents[2]
UNITS = REPO / "systemd"
COMMAND = Path("/usr/lib/gwsandbox/venv/bin/gwsandbox")
RUNTIME = Path("/run/systemd/system")
NAMES = (f"test{os.getpid()}n{n}" for n in itertools.count())  # the journal keeps those of earlier runs


def run(*argv: str | Path, check: bool = True) -> str:
    """What a program says, on both streams."""
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0 or not check, f"{argv}: {done.returncode}: {done.stdout}"
    return done.stdout


def until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a change in systemd's books, which it announces to nobody that we could be."""
    deadline = time.monotonic() + 60 * SLOW
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.2)


@pytest.fixture(scope="module", autouse=True)
def installed() -> Iterator[None]:
    """As systemd/README.md says, but for the virtual environment, and until the machine's next boot."""
    COMMAND.parent.mkdir(parents=True)
    COMMAND.write_text(f'#!/bin/sh\nexec {sys.executable} -m gwsandbox "$@"\n')
    COMMAND.chmod(0o755)
    # As pip does; the service's user may not write there, and would compile all of it at every start.
    compileall.compile_dir(Path(gwsandbox.__file__).parent, quiet=1)
    for name in ("gwsandbox.slice", "gwsandbox-spool@.service"):
        shutil.copy(UNITS / name, RUNTIME)
    run("systemd-sysusers", UNITS / "sysusers.d" / "gwsandbox.conf")
    run("systemd-tmpfiles", "--create", UNITS / "tmpfiles.d" / "gwsandbox.conf")
    run("systemctl", "daemon-reload")
    yield
    for name in ("gwsandbox.slice", "gwsandbox-spool@.service"):
        (RUNTIME / name).unlink()
    shutil.rmtree(COMMAND.parents[2])
    run("systemctl", "daemon-reload")


class Instance(SpoolFolder):
    """An instance of the unit, with its folders."""

    def __init__(self) -> None:
        self.name = next(NAMES)
        self.unit = f"gwsandbox-spool@{self.name}.service"
        root = Path("/var/spool/gwsandbox", self.name)
        root.mkdir()
        super().__init__(root)
        self.config = Path("/etc/gwsandbox", f"{self.name}.toml")
        self.database = Path("/var/lib/gwsandbox", self.name, "ledger.sqlite3")

    def ctl(self, verb: str, *options: str) -> str:
        return run("systemctl", verb, *options, self.unit)

    def start(self) -> None:
        try:
            run("systemctl", "reset-failed", self.unit, check=False)
            self.ctl("start")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.journal()}") from error

    def show(self, name: str) -> str:
        return self.ctl("show", f"--property={name}", "--value").strip()

    def journal(self, *options: str) -> str:
        return run("journalctl", "--no-pager", f"--unit={self.unit}", *options)

    def drop_in(self, name: str, text: str) -> None:
        folder = RUNTIME / f"{self.unit}.d"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.conf").write_text(text)
        run("systemctl", "daemon-reload")

    def settled(self) -> int:
        return sum(map(len, self.results().values()))

    def put_tree(self, names: dict[str, Path]) -> None:
        for name, path in names.items():
            self.put(name, path.read_bytes())


@pytest.fixture
def instance() -> Iterator[Instance]:
    made = Instance()
    yield made
    run("systemctl", "stop", made.unit, check=False)
    run("systemctl", "kill", "--signal=KILL", made.unit, check=False)
    run("systemctl", "reset-failed", made.unit, check=False)
    for path in (made.root, made.database.parent, RUNTIME / f"{made.unit}.d"):
        shutil.rmtree(path, ignore_errors=True)
    made.config.unlink(missing_ok=True)


# --- the units themselves --------------------------------------------------------------------------------


def test_units_verify_without_a_warning(tmp_path: Path, instance: Instance) -> None:
    instance.drop_in("port", (UNITS / "drop-ins" / "metrics-port.conf").read_text())
    (RUNTIME / "gwsandbox-test.service").write_text("[Service]\nExecStart=/bin/true\n")
    folder = RUNTIME / "gwsandbox-test.service.d"
    folder.mkdir()
    shutil.copy(UNITS / "drop-ins" / "library.conf", folder)
    try:
        for unit in (instance.unit, "gwsandbox.slice", "gwsandbox-test.service"):
            assert run("systemd-analyze", "verify", "--man=no", unit) == ""
    finally:
        shutil.rmtree(folder)
        (RUNTIME / "gwsandbox-test.service").unlink()


def test_library_drop_in_gives_cgroups(instance: Instance) -> None:
    """A service of somebody's own, as root and as an ordinary user."""
    source = "import gwsandbox; print(gwsandbox.run(print, limits=gwsandbox.Limits(memory='99MiB')).enforcement)"
    drop_in = [line for line in (UNITS / "drop-ins" / "library.conf").read_text().splitlines() if "=" in line]
    properties = [f"--property={line}" for line in drop_in if not line.startswith("#")]
    for user in ("root", "nobody"):
        found = run(
            *("systemd-run", "--quiet", "--wait", "--pipe", "--collect", f"--uid={user}", *properties),
            *(sys.executable, "-c", source),
        )
        assert "'memory': 'memory.max'" in found


def readme_lines() -> list[str]:
    """The lines of systemd/README.md for the operator to type, without the virtual environment, which the fixture makes."""
    text = (UNITS / "README.md").read_text(encoding="utf-8")
    block = text.partition("step by step:")[2].partition("```console\n")[2].partition("```")[0]
    lines = [line.removeprefix("# ") for line in block.splitlines()]
    return [line for line in lines if "-m venv" not in line and "pip install" not in line]


@pytest.fixture
def pdf() -> Iterator[SpoolFolder]:
    """The folders of the instance that the README installs; what installing it made is removed."""
    shutil.rmtree("/etc/sysusers.d", ignore_errors=True)  # as it is on a fresh system
    spool = SpoolFolder.__new__(SpoolFolder)
    spool.root = Path("/var/spool/gwsandbox/pdf")
    yield spool
    run("systemctl", "disable", "--now", "gwsandbox-spool@pdf", check=False)
    for name in ("systemd/system/gwsandbox-spool@.service", "systemd/system/gwsandbox.slice", "gwsandbox/pdf.toml"):
        Path("/etc", name).unlink(missing_ok=True)
    for name in ("sysusers.d", "tmpfiles.d"):
        Path("/etc", name, "gwsandbox.conf").unlink(missing_ok=True)
    for folder in ("/var/spool/gwsandbox/pdf", "/var/lib/gwsandbox/pdf"):
        shutil.rmtree(folder, ignore_errors=True)
    run("systemctl", "daemon-reload")


def is_worked_on(spool: SpoolFolder) -> None:
    spool.put("a.pdf", "content")
    spool.wait_until(lambda: spool.names("done") == {"a.pdf"})
    status = run(COMMAND, "spool", "status", "/etc/gwsandbox/pdf.toml")
    assert "done: 1" in status
    assert "a service works on it" in status


def test_readme_as_typed(pdf: SpoolFolder) -> None:
    lines = readme_lines()
    assert len(lines) >= 7
    for line in lines:
        run("sh", "-ec", f"cd {REPO}; {line}")
    is_worked_on(pdf)
    Path("/etc/gwsandbox/pdf.toml").write_text("spool = '/srv/pdf'\n[worker]\ncommand = 'cp {input} {output}'\n")
    found = run(COMMAND, "serve", "--check", "/etc/gwsandbox/pdf.toml", check=False)
    assert "gwsandbox-spool@pdf.service cannot write /srv/pdf" in found


def test_installed_and_removed_by_one_command(pdf: SpoolFolder) -> None:
    script = REPO / "scripts" / "install-service"
    assert "'../pdf' is no NAME of an instance" in run(script, "../pdf", check=False)
    assert "gwsandbox-spool@pdf runs" in run(script, "pdf")
    is_worked_on(pdf)
    run(script, "pdf")  # again, with the configuration that is there
    run(script, "--remove", "pdf")
    assert run("systemctl", "is-active", "gwsandbox-spool@pdf", check=False).strip() == "inactive"
    assert pdf.names("done") == {"a.pdf"}


# --- at work ---------------------------------------------------------------------------------------------


def exposure(unit: str) -> float:
    found = run("systemd-analyze", "security", "--no-pager", unit)
    figure = re.search(r"Overall exposure level for .*: ([0-9.]+) ", found)
    assert figure is not None, found
    return float(figure[1])


def corpus() -> dict[str, Path]:
    found = [path for path in sorted((REPO / "tests" / "corpus").rglob("*")) if path.is_file()]
    names = {f"{path.parent.name}-{path.name}": path for path in found}
    assert len(names) == len(found) > 10
    return names


@pytest.mark.long
def test_the_corpus_is_processed_and_little_is_exposed(instance: Instance) -> None:
    documents = corpus()
    instance.configure(
        f'path = ["{REPO}/scripts/examples"]\nfunction = "disarm:disarm_file"',
        top='backend = "cgroup"',
        tables=f'[limits]\nmemory = "700MiB"\nwall_seconds = {30 * SLOW}',
    )
    instance.put_tree(documents)
    instance.start()
    instance.wait_until(lambda: instance.settled() >= 3, seconds=600)
    assert "in work" in instance.show("StatusText")
    figure = exposure(instance.unit)
    print(f"systemd {run('systemctl', '--version').split()[1]}: exposure {figure}")
    assert figure <= 1.5
    instance.wait_until(instance.is_quiet, seconds=600)
    instance.ctl("stop")
    ends = instance.results()
    assert ends["done"] | ends["quarantine"] == documents.keys()
    assert not ends["done"] & ends["quarantine"]
    print({name: len(found) for name, found in ends.items()}, sorted(ends["quarantine"]))
    assert len(ends["done"]) > len(documents) / 2
    for name in ends["done"]:
        assert instance.outcomes(name)[-1] == "SUCCEEDED"
        status = (instance.root / "done" / name).stat()
        assert (status.st_mode & 0o777, status.st_size > 0) == (0o640, True)
    for name in ends["quarantine"]:
        found = json.loads((instance.root / "quarantine" / f"{name}.report.json").read_text())
        assert found["enforcement"]["limits"]["memory"] == "memory.max", found
        assert found["enforcement"]["degraded"] == {}
    assert instance.show("Result") == "success"


@pytest.mark.long
@pytest.mark.thorough
def test_killed_at_random_moments(instance: Instance) -> None:
    """Twenty times. Every file ends in one place, with its rows in the ledger; none is lost or half there."""
    instance.configure(
        FUNCTION,
        top='backend = "cgroup"\ninterruptions = 100',
        tables='[limits]\nmemory = "300MiB"\nwall_seconds = 1000',
    )
    padding = " x" * 300_000
    contents = {f"{n}.txt": (f"raise {n}" if n % 7 == 0 else f"content {n}") + padding for n in range(60)}
    for name, content in contents.items():
        instance.put(name, content)
    instance.start()
    chance = random.Random(20)
    restarts = 0
    for _ in range(20):
        time.sleep(chance.uniform(0, 0.3 * BEAT))
        restarts += int(instance.show("ActiveState") == "active")
        instance.ctl("kill", "--signal=KILL")
        until(lambda: instance.show("ActiveState") != "active", "its end")
        if instance.settled() > len(contents) - 20:
            for n in range(len(contents), len(contents) + 30):  # that there is something to be killed at
                contents[f"{n}.txt"] = f"content {n}{padding}"
                instance.put(f"{n}.txt", contents[f"{n}.txt"])
        instance.ctl("stop")
        instance.start()
    assert restarts == 20
    instance.wait_until(instance.is_quiet, seconds=600)
    instance.ctl("stop")
    raising = {name for name, content in contents.items() if content.startswith("raise")}
    assert instance.results() == {"done": contents.keys() - raising, "quarantine": raising}
    outcomes = {name: instance.outcomes(name) for name in contents}
    interrupted = sum(found.count("INTERRUPTED") for found in outcomes.values())
    print(f"{len(contents)} files, {interrupted} attempts interrupted")
    assert interrupted >= 5
    for name, content in contents.items():
        assert outcomes[name].count("FAILED" if name in raising else "SUCCEEDED") == 1
        assert set(outcomes[name]) <= {"FAILED", "SUCCEEDED", "INTERRUPTED"}
        folder, expected = ("quarantine", content) if name in raising else ("done", content.upper())
        assert (instance.root / folder / name).read_text() == expected
    states = dict(instance.rows("SELECT state, count(*) FROM jobs GROUP BY state"))
    assert states == {"DONE": len(contents) - len(raising), "QUARANTINED": len(raising)}


def test_watchdog_notices_a_frozen_loop(instance: Instance) -> None:
    # The hanging file is tried again after the restart: the stop at the end shall not wait for it.
    instance.configure(FUNCTION, top="drain_seconds = 1")
    instance.drop_in("watchdog", f"[Service]\nWatchdogSec={max(int(BEAT), 3)}s\n")
    instance.start()
    instance.put("hang", "hang")
    until(lambda: instance.show("StatusText").startswith("1 in work"), "the attempt")
    pid = int(instance.show("MainPID"))
    time.sleep(1.5 * max(int(BEAT), 3))  # longer than the watchdog waits: the loop turns while a guest works
    assert int(instance.show("MainPID")) == pid
    os.kill(pid, signal.SIGSTOP)
    until(lambda: instance.show("NRestarts") == "1" and instance.show("ActiveState") == "active", "the restart")
    assert "watchdog" in instance.journal().lower()
    assert int(instance.show("MainPID")) != pid
    instance.put("later", "content")
    instance.wait_until(lambda: "later" in instance.names("done"))
    assert instance.outcomes("hang")[0] == "INTERRUPTED"


def test_reload_and_drain(instance: Instance) -> None:
    worker = FUNCTION
    instance.configure(worker, top=f"attempts = 1\ndrain_seconds = {4 * BEAT}")
    instance.start()
    pid = instance.show("MainPID")

    instance.configure(worker, top=f"attempts = 1\ndrain_seconds = {4 * BEAT}\nworkers = -3")
    with pytest.raises(AssertionError, match="reload"):  # systemctl fails, and the journal says why
        instance.ctl("reload")
    line = instance.config.read_text().splitlines().index("workers = -3") + 1
    until(lambda: f"{instance.config}:{line}: workers: must be a whole number" in instance.journal(), "the reason")
    instance.configure(worker, top=f'attempts = 1\ndrain_seconds = {4 * BEAT}\nledger = "other.sqlite3"')
    with pytest.raises(AssertionError, match="reload"):
        instance.ctl("reload")
    until(lambda: "ledger cannot change while the service runs" in instance.journal(), "the reason")
    assert instance.show("ActiveState") == "active"

    limits = f"[limits]\nwall_seconds = {0.5 * BEAT}"
    instance.configure(worker, top=f"attempts = 1\ndrain_seconds = {4 * BEAT}", tables=limits)
    instance.ctl("reload")
    until(lambda: "the configuration was read again" in instance.journal(), "the reload")
    instance.put("hang", "hang")
    instance.wait_until(lambda: "hang" in instance.names("quarantine"))
    assert instance.outcomes("hang") == ["TIMED_OUT"]
    assert instance.show("MainPID") == pid

    instance.configure(worker, top=f"attempts = 1\ndrain_seconds = {4 * BEAT}")
    instance.ctl("reload")
    until(lambda: instance.journal().count("the configuration was read again") == 2, "the reload")
    instance.put("hang again", "hang")
    instance.put("slow", "slow")
    until(lambda: instance.show("StatusText").startswith("2 in work"), "the attempts")
    instance.ctl("stop", "--no-block")
    until(lambda: instance.show("ActiveState") == "deactivating", "the stop")
    instance.put("never", "content")
    instance.ctl("stop")
    assert instance.show("Result") == "success"
    assert instance.results() == {"done": {"slow"}, "quarantine": {"hang"}}
    assert instance.names("incoming") == {"hang again", "never"}
    assert instance.names("work") == set()
    assert instance.outcomes("hang again") == ["CANCELLED"]


def test_journal_says_it_in_fields(instance: Instance) -> None:
    instance.configure(FUNCTION, top="attempts = 1")
    instance.start()
    instance.put("a b\n.txt", "crash")
    instance.wait_until(instance.is_quiet)
    instance.ctl("stop")
    entries = [json.loads(line) for line in instance.journal("--output=json").splitlines()]
    (entry,) = (entry for entry in entries if "OUTCOME" in entry)
    assert (entry["OUTCOME"], entry["FATE"], entry["ATTEMPT"]) == ("CRASHED", "QUARANTINE", "1")
    assert entry["FILE"] == "a b\n.txt"
    assert int(entry["PEAK"]) > 0
    assert float(entry["WALL_SECONDS"]) > 0
    assert entry["SYSLOG_IDENTIFIER"] == "gwsandbox-spool"
    assert entry["MESSAGE"].startswith("a b\\n.txt: CRASHED, ")
    found = instance.journal("--output=cat", f"MESSAGE_ID={entry['MESSAGE_ID']}", f"JOB={entry['JOB']}")
    assert found == entry["MESSAGE"] + "\n"


def test_metrics_port_by_its_drop_in(instance: Instance) -> None:
    instance.drop_in("port", (UNITS / "drop-ins" / "metrics-port.conf").read_text())
    instance.configure(FUNCTION, tables="[metrics]\nport = 9464")
    run("ip", "link", "set", "lo", "up")
    instance.start()
    instance.put("a", "content")
    instance.wait_until(instance.is_quiet)
    with urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=60 * SLOW) as answer:
        assert 'gwsandbox_files_total{end="done"} 1.0' in answer.read().decode()


def test_an_ordinary_user_delivers(instance: Instance) -> None:
    """A member of the group writes into incoming, and reads what is done; nobody else does either."""
    instance.configure(FUNCTION)
    instance.start()
    incoming = instance.root / "incoming"
    script = f"umask 022; echo content > {incoming}/from-tester"
    member = ("setpriv", "--reuid=tester", "--regid=tester", "--groups=gwsandbox")
    stranger = ("setpriv", "--reuid=tester", "--regid=tester", "--clear-groups")
    assert "Permission denied" in run(*stranger, "sh", "-c", script, check=False)
    run(*member, "sh", "-c", script)
    instance.wait_until(instance.is_quiet)
    done = str(instance.root / "done" / "from-tester")
    assert run(*member, "cat", done) == "CONTENT\n"
    assert "Permission denied" in run(*stranger, "cat", done, check=False)
    with contextlib.suppress(FileNotFoundError):
        (incoming / "from-tester").unlink()
