"""Every way to delegate and every option that hardens a unit, one by one: a table of what comes of a task there.

``OPTIONS`` are tried in a delegated unit, whose own cgroup holds the task, and without delegation, where a scope does.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from asking import NAME, since, unit

pytestmark = [pytest.mark.vm, pytest.mark.deployment, pytest.mark.cgroup2]


@dataclass(frozen=True)
class Deployment:
    """A unit, and what comes of a task in it.

    Args:
        lines: What stands in its ``[Service]``, parted by semicolons.
        outcome: The task's, or the error's type.
        path: How the cgroup ends that holds it.
        says: What the error says, its remedy included.
        since: The version of systemd that has the option.
    """

    lines: str
    outcome: str = "SUCCEEDED"
    path: str = ".service"
    says: str = ""
    since: int = 0

    def ask(self) -> None:
        """Try it, by the backend that it names and by the one that is chosen."""
        said = unit(*self.lines.split("; "))
        assert said["outcome"] == self.outcome, said
        assert self.says in said["detail"], said
        if self.outcome == "SUCCEEDED":
            assert said["path"].endswith(self.path), said
            assert said["memory.max"] != 0, said


def table(deployments: list[Deployment]) -> list[object]:
    return [
        pytest.param(one, id=one.lines.replace(" ", ""), marks=[since(one.since)] if one.since else [])
        for one in deployments
    ]


DELEGATION = [
    Deployment("Delegate=yes"),
    Deployment("Delegate=memory pids"),
    Deployment("Delegate=memory pids cpu io"),
    Deployment("Delegate=yes; Slice=gwsandboxtest-batch.slice"),
    Deployment("Delegate=yes; DelegateSubgroup=supervisor", since=254),
    Deployment("Delegate=yes; DelegateSubgroup=somewhere", since=254),
    Deployment("Delegate=yes; MemoryMax=300M; TasksMax=200; CPUQuota=80%"),
    Deployment("Delegate=yes; OOMPolicy=stop"),
    Deployment("Delegate=yes; OOMPolicy=continue"),
    Deployment("Delegate=no", path=".scope"),
    # systemd gives its slices the others too, for limits that each of its units has.
    Deployment("Delegate=memory"),
    Deployment("Delegate=pids"),
    Deployment("Delegate=cpu"),
    Deployment("Delegate=memory pids; User=tester"),
    Deployment("Delegate=yes; User=nobody"),
    Deployment("Delegate=yes; DynamicUser=yes"),
    Deployment("Delegate=yes; User=tester; PrivateUsers=yes"),
    Deployment("User=nobody", "NotDelegated", says="there is no user manager to ask"),
]


@pytest.mark.parametrize("deployment", table(DELEGATION))
def test_ways_to_delegate(deployment: Deployment) -> None:
    deployment.ask()


OPTIONS = [
    "CapabilityBoundingSet=",
    "DevicePolicy=closed",
    "IPAddressDeny=any",
    "KeyringMode=private",
    "LimitCORE=0",
    "LimitMEMLOCK=0",
    "LockPersonality=yes",
    "MemoryDenyWriteExecute=yes",
    "MountFlags=slave",
    "NoNewPrivileges=yes",
    "OOMScoreAdjust=500",
    "PrivateDevices=yes",
    "PrivateIPC=yes",
    "PrivateMounts=yes",
    "PrivateNetwork=yes",
    "PrivateTmp=yes",
    "PrivateUsers=yes",
    "ProcSubset=pid",
    "ProtectClock=yes",
    "ProtectHome=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "ProtectProc=invisible",
    "ProtectSystem=strict",
    "ReadOnlyPaths=/",
    "RemoveIPC=yes",
    "RestrictAddressFamilies=AF_UNIX AF_INET",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "ReadOnlyPaths=/; ReadWritePaths=/sys/fs/cgroup",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "UMask=0777",
]

READ_ONLY = f"; set ReadWritePaths=/sys/fs/cgroup and Delegate=yes in {NAME}: systemctl edit {NAME}"
DELEGATED_EXCEPT = {
    "ReadOnlyPaths=/": Deployment("Delegate=yes; ReadOnlyPaths=/", "NotDelegated", says=READ_ONLY),
}
UNDELEGATED_EXCEPT = {
    "ReadOnlyPaths=/": Deployment("ReadOnlyPaths=/", "NotDelegated", says=READ_ONLY),
}


@pytest.mark.thorough
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_hardens_a_delegated_unit(option: str) -> None:
    DELEGATED_EXCEPT.get(option, Deployment(f"Delegate=yes; {option}")).ask()


@pytest.mark.thorough
@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_that_hardens_a_unit(option: str) -> None:
    UNDELEGATED_EXCEPT.get(option, Deployment(option, path=".scope")).ask()
