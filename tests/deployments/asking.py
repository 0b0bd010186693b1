"""A task in a unit as people write them, made by the real systemd, and what it says of itself."""

from __future__ import annotations

import functools
import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from cli_support import HANG_AFTER

from gwsandbox.linux import procfs

SOURCES = str(Path(procfs.__file__).parents[2])

# Says what came of a task, and what the scope that holds it, or the unit, looks like from inside of it.
ASKS = """
import json, os, socket, sys, warnings
sys.path.insert(0, sys.argv[1])
from gwsandbox import Hardening, Limits, SandboxError, run
from gwsandbox.linux import procfs

def look():
    path = "/sys/fs/cgroup" + procfs.own_cgroup()
    while not path.endswith((".scope", ".service", "/cgroup")):
        path = os.path.dirname(path)
    found = {"path": path}
    for name in ("memory.max", "pids.max", "cpu.max", "cpuset.cpus.effective"):
        try:
            found[name] = open(f"{path}/{name}").read().split()[0]
        except OSError as error:
            found[name] = error.errno
    for name in sys.argv[3:]:
        try:
            os.close(os.open(name, os.O_RDONLY))
            found[name] = 0
        except OSError as error:
            found[name] = error.errno
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end:
        try:
            end.sendto(b"x", ("127.0.0.1", 9))
            found["network"] = 0
        except OSError as error:
            found["network"] = error.errno
    return found

said = {}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
        result = run(look, limits=Limits(memory="64MiB"), backend=sys.argv[2], hardening=Hardening.off())
        said = {
            "outcome": result.outcome.name,
            "detail": result.detail,
            "backend": result.enforcement.backend,
            **(result.result or {}),
        }
    except SandboxError as error:
        said = {"outcome": type(error).__name__, "detail": str(error)}
said["warnings"] = [str(warning.message) for warning in caught]
print(json.dumps(said))
"""


NAME = "gwsandboxtest-ask.service"


def unit(
    *lines: str,
    before: tuple[str, ...] = (),
    wrap: str = "COMMAND",
    backend: str = "cgroup",
    paths: tuple[str, ...] = (),
) -> Any:
    """What a task in a service with these ``lines`` says.

    ``wrap`` is a line of shell that runs what stands in the place of COMMAND, one word of a shell program.
    """
    with tempfile.TemporaryDirectory(dir="/var/lib", prefix="gwsandbox-test-") as folder:
        os.chmod(folder, 0o755)
        program, said = Path(folder, "program"), Path(folder, "said")
        program.write_text(ASKS, encoding="utf-8")
        command = shlex.join([*before, sys.executable, str(program), SOURCES, backend, *paths])
        if wrap != "COMMAND":
            script = Path(folder, "script")
            script.write_text(wrap.replace("COMMAND", shlex.quote(command)), encoding="utf-8")
            command = f"/bin/sh {script}"
        text = ["[Service]", "Type=oneshot", f"StandardOutput=file:{said}", *lines, f"ExecStart={command}", ""]
        file = Path("/run/systemd/system", NAME)
        file.write_text("\n".join(text), encoding="utf-8")
        try:
            subprocess.run(["systemctl", "daemon-reload"], check=True)
            started = subprocess.run(["systemctl", "start", NAME], check=False, timeout=HANG_AFTER)
            assert started.returncode == 0, journal(NAME)
            return json.loads(said.read_text(encoding="utf-8").splitlines()[-1])
        finally:
            file.unlink()
            subprocess.run(["systemctl", "stop", NAME], check=False, capture_output=True)
            subprocess.run(["systemctl", "daemon-reload"], check=True)


def journal(name: str) -> str:
    """The last that a unit has said."""
    command = ["journalctl", "--no-pager", "--lines=20", "--output=cat", f"--unit={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@functools.cache
def systemd() -> int:
    """The version of the systemd that runs."""
    text = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout
    return int(text.split()[1])


def since(version: int) -> pytest.MarkDecorator:
    """Skips a test where the systemd is older, and has not what the test is about."""
    return pytest.mark.skipif(f"sys.modules['asking'].systemd() < {version}", reason=f"came with systemd {version}")
