"""Users as they come to a system, and runs in runs: where their tasks are held."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from asking import SOURCES, unit

pytestmark = [pytest.mark.vm, pytest.mark.deployment, pytest.mark.thorough, pytest.mark.cgroup2]

USERS_OWN = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/"
SYSTEMS = "/sys/fs/cgroup/system.slice/"
RUN = f"env PYTHONPATH={SOURCES} {sys.executable} -m gwsandbox run --hardening off --backend cgroup"


@pytest.mark.parametrize(
    ("wrap", "where"),
    [
        ("su tester -c COMMAND", USERS_OWN),
        ("su - tester -c COMMAND", USERS_OWN),
        ("runuser -u tester -- sh -c COMMAND", USERS_OWN),
        ("setpriv --reuid tester --regid tester --init-groups sh -c COMMAND", USERS_OWN),
        ("machinectl --quiet shell tester@ /bin/sh -c COMMAND | tr -d '\\r'", USERS_OWN),
        ("systemd-run --quiet --pipe --wait --user --machine=tester@.host sh -c COMMAND", USERS_OWN),
        ("systemd-run --quiet --pipe --wait --user --machine=tester@.host -p Delegate=yes sh -c COMMAND", USERS_OWN),
        ("systemd-run --quiet --pipe --wait --uid=tester sh -c COMMAND", USERS_OWN),
        ("systemd-run --quiet --pipe --wait --uid=tester -p Delegate=yes sh -c COMMAND", SYSTEMS),
        ("machinectl --quiet shell root@ /bin/sh -c COMMAND | tr -d '\\r'", "/sys/fs/cgroup/user.slice/user-0.slice/"),
        ("systemd-run --quiet --scope sh -c COMMAND", SYSTEMS),
        ("systemd-run --quiet --scope -p Delegate=yes sh -c COMMAND", SYSTEMS),
        ("setsid --wait sh -c COMMAND", SYSTEMS),
        ("nohup sh -c COMMAND", SYSTEMS),
        ("env -i sh -c COMMAND", SYSTEMS),
    ],
)
def test_a_user(wrap: str, where: str) -> None:
    said = unit(wrap=wrap)
    assert said["outcome"] == "SUCCEEDED", said
    assert said["path"].startswith(where), said


@pytest.mark.parametrize("delegation", ["Delegate=yes", "Delegate=no"])
@pytest.mark.parametrize("times", [1, 2])
def test_a_run_in_a_run(delegation: str, times: int) -> None:
    """What is inside stays inside of the outer limits."""
    said = unit(delegation, wrap=" ".join([RUN, "--memory 200MiB --"] * times) + " sh -c COMMAND")
    assert said["outcome"] == "SUCCEEDED", said


@pytest.mark.parametrize(
    "wrap",
    [
        "unshare --user --map-root-user sh -c COMMAND",
        "unshare --mount sh -c COMMAND",
        "unshare --net sh -c COMMAND",
        "unshare --ipc --uts sh -c COMMAND",
        pytest.param("bwrap --bind / / --dev /dev --proc /proc sh -c COMMAND", id="bwrap"),
        pytest.param("bwrap --bind / / --dev /dev --proc /proc --unshare-pid sh -c COMMAND", id="bwrap-pid"),
    ],
)
def test_a_namespace_without_delegation(wrap: str) -> None:
    said = unit(wrap=wrap)
    assert said["outcome"] == "SUCCEEDED", said
    assert said["path"].endswith(".scope"), said


def test_a_cgroup_namespace() -> None:
    """The scope would be outside of it."""
    said = unit(wrap="unshare --cgroup --mount sh -c COMMAND")
    assert said["outcome"] == "WrongNamespace", said
    remedy = "mount this one's, as root: umount -lR /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup"
    assert said["detail"].endswith(remedy), said
    mounts = shlex.quote(remedy.partition(": ")[2] + ' && exec "$0" "$@"')
    assert unit("Delegate=yes", wrap=f"unshare --cgroup --mount sh -c {mounts} sh -c COMMAND")["outcome"] == "SUCCEEDED"


def test_socket_activation() -> None:
    """A service for each connection, which is its standard input and output."""
    service, listener = Path("/run/systemd/system/gwsandboxtest@.service"), "gwsandboxtest.socket"
    socket_unit, path = service.parent / listener, "/run/gwsandboxtest"
    source = "import gwsandbox; print(gwsandbox.run(str.upper, (input(),)).result)"
    command = shlex.join(["/usr/bin/env", f"PYTHONPATH={SOURCES}", sys.executable, "-c", source])
    service.write_text(f"[Service]\nDelegate=yes\nStandardInput=socket\nExecStart={command}\n", encoding="utf-8")
    socket_unit.write_text(f"[Socket]\nListenStream={path}\nAccept=yes\n", encoding="utf-8")
    try:
        subprocess.run(["systemctl", "daemon-reload"], check=True)
        subprocess.run(["systemctl", "start", listener], check=True)
        with socket.socket(socket.AF_UNIX) as client, client.makefile("rw", encoding="utf-8") as lines:
            client.connect(path)
            lines.write("said\n")
            lines.flush()
            assert lines.readline() == "SAID\n"
    finally:
        subprocess.run(["systemctl", "stop", listener], check=False)
        service.unlink()
        socket_unit.unlink()
        os.unlink(path)
        subprocess.run(["systemctl", "daemon-reload"], check=True)
