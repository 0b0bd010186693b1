"""``serve --check`` for an installed unit: what the unit and its user could not write."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from spools import SpoolFolder

from gwsandbox.service import check, unit
from gwsandbox.service.config.config import ServiceConfig
from gwsandbox.service.config.reader import read_config
from gwsandbox.service.unit import Unit

SHOWN = """LoadState=loaded
User=gwsandbox
ProtectSystem=strict
ReadWritePaths=-/var/spool/gwsandbox/pdf
StateDirectory=gwsandbox/pdf
"""


@pytest.fixture
def spool(tmp_path: Path) -> SpoolFolder:
    folder = SpoolFolder(tmp_path)
    folder.configure()
    return folder


def config_of(spool: SpoolFolder) -> ServiceConfig:
    return read_config(str(spool.config))


def test_folders_that_the_unit_cannot_write(spool: SpoolFolder) -> None:
    found = check.find_mistakes(config_of(spool), Unit("u.service", "", ("/var/spool/gwsandbox/u",), ""))
    assert len(found) == 5
    assert f"folders.done: the unit u.service cannot write {spool.root}/done" in found[2]
    assert f"`systemctl edit u.service` and add ReadWritePaths={spool.root}/done below [Service]" in found[2]
    assert check.find_mistakes(config_of(spool), Unit("u.service", "", (str(spool.root),), "")) == []
    assert check.find_mistakes(config_of(spool), Unit("u.service", "", None, "")) == []


@pytest.mark.root
def test_folders_that_the_units_user_cannot_write(spool: SpoolFolder) -> None:
    nobody = Unit("u.service", "nobody", None, "")
    for path in (spool.root, *spool.root.parents):
        if path.stat().st_uid == os.getuid() and "pytest" in str(path):
            path.chmod(0o755)
    for name in ("incoming", "work", "done", "quarantine", "."):
        os.chown(spool.root / name, 65534, 65534)
    assert check.find_mistakes(config_of(spool), nobody) == []
    os.chown(spool.root / "done", 0, 0)
    (spool.root / "done").chmod(0o755)
    assert check.find_mistakes(config_of(spool), nobody) == [
        f"folders.done: nobody cannot write {spool.root}/done; give this user the right, or choose another folder"
    ]
    assert "there is no user none-such" in check.find_mistakes(config_of(spool), Unit("u", "none-such", None, ""))[0]


def test_the_unit_of_a_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def show(argv: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(argv)
        return subprocess.CompletedProcess(argv, 0, SHOWN, "")

    monkeypatch.setattr(shutil, "which", lambda _name: "/usr/bin/systemctl")
    monkeypatch.setattr(subprocess, "run", show)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.setenv("STATE_DIRECTORY", "")
    monkeypatch.delenv("STATE_DIRECTORY")
    found = unit.adopt_state_folder("/etc/gwsandbox/pdf.toml")
    assert asked[0][-1] == "gwsandbox-spool@pdf.service"
    writable = ("/var/spool/gwsandbox/pdf", "/var/lib/gwsandbox/pdf")
    assert found == Unit("gwsandbox-spool@pdf.service", "gwsandbox", writable, "/var/lib/gwsandbox/pdf")
    assert os.environ["STATE_DIRECTORY"] == "/var/lib/gwsandbox/pdf"
    assert unit.find_unit("/etc/gwsandbox/a b.toml") is None
    assert unit.find_unit("/home/me/pdf.toml") is None
    monkeypatch.setattr(subprocess, "run", lambda argv, **_: subprocess.CompletedProcess(argv, 0, "LoadState=x", ""))
    assert unit.find_unit("/etc/gwsandbox/pdf.toml") is None
