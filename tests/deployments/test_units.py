"""Units as people write them, made by the real systemd: what holds a task there, and what is said where nothing can."""

from __future__ import annotations

import pytest
from asking import NAME, since, unit
from support import MIB

pytestmark = [pytest.mark.vm, pytest.mark.deployment, pytest.mark.thorough, pytest.mark.cgroup2]

# --- namespaces ------------------------------------------------------------------------------------------

PID_NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc")


def test_a_pid_namespace_without_delegation() -> None:
    """systemd knows this process by another number, which is there another process's."""
    said = unit(before=PID_NAMESPACE)
    assert said["outcome"] == "SUCCEEDED", said
    assert said["path"].startswith("/sys/fs/cgroup/system.slice/system-gwsandbox.slice/gwsandbox-")


@since(257)
def test_a_unit_with_processes_of_its_own() -> None:
    assert unit("PrivatePIDs=yes")["outcome"] == "SUCCEEDED"


def test_a_pid_namespace_in_a_delegated_unit() -> None:
    """The unit's other processes are not to be seen from there, and cannot be moved."""
    said = unit("Delegate=yes", before=PID_NAMESPACE)
    assert said["outcome"] == "CgroupError", said
    assert said["detail"].startswith("step aside: processes of an outer PID namespace are in it")
    assert "; set DelegateSubgroup=supervisor in its unit" in said["detail"]
    assert unit("Delegate=yes", before=PID_NAMESPACE, backend="auto")["backend"] == "rlimit"


@since(254)
def test_what_is_said_of_a_pid_namespace_in_a_delegated_unit_helps() -> None:
    said = unit("Delegate=yes", "DelegateSubgroup=supervisor", before=PID_NAMESPACE)
    assert said["outcome"] == "SUCCEEDED", said


# --- what limits and confines a unit ---------------------------------------------------------------------


def test_a_scope_has_what_limits_and_confines_the_unit() -> None:
    said = unit(
        "MemoryMax=300M",
        "TasksMax=77",
        "CPUQuota=60%",
        "IPAddressDeny=any",
        "DevicePolicy=closed",
        paths=("/dev/null", "/dev/kmsg"),
    )
    assert said["outcome"] == "SUCCEEDED", said
    assert said["path"].endswith(".scope")
    assert (said["memory.max"], said["pids.max"], said["cpu.max"]) == (str(300 * MIB), "77", "60000")
    assert (said["/dev/null"], said["/dev/kmsg"], said["network"]) == (0, 1, 1)
    (warning,) = said["warnings"]
    assert "limits memory.max and cpu.max, and tasks run in a scope beside it" in warning
    assert warning.endswith("to have one limit over both, set Delegate=yes in the unit")


@pytest.mark.stock_kernel  # with cpusets
def test_a_scope_has_the_processors_of_the_unit() -> None:
    said = unit("AllowedCPUs=0")
    assert said["outcome"] == "SUCCEEDED", said
    assert (said["path"][-6:], said["cpuset.cpus.effective"]) == (".scope", "0")


def test_a_scope_of_a_unit_without_limits() -> None:
    said = unit(paths=("/dev/kmsg",))
    assert said["outcome"] == "SUCCEEDED", said
    assert (said["memory.max"], said["/dev/kmsg"], said["network"], said["warnings"]) == ("max", 0, 0, [])


def test_a_scope_is_below_the_slice_of_the_unit() -> None:
    said = unit("Slice=gwsandboxtest-batch.slice")
    assert said["outcome"] == "SUCCEEDED", said
    assert said["path"].startswith(
        "/sys/fs/cgroup/gwsandboxtest.slice/gwsandboxtest-batch.slice/gwsandboxtest-batch-gwsandbox.slice/gwsandbox-"
    )


@pytest.mark.stock_kernel  # with BPF for security modules
@since(250)
def test_what_a_scope_cannot_have_is_refused() -> None:
    said = unit("RestrictFileSystems=ext4 tmpfs proc sysfs cgroup2 devtmpfs")
    assert said["outcome"] == "CgroupError", said
    assert said["detail"].startswith("start scope: RestrictFileSystems of the unit would not hold in a scope: ")
    assert said["detail"].endswith("; set Delegate=yes in the unit")


# --- cgroups that are hidden or cannot be written --------------------------------------------------------


def test_a_unit_that_may_not_write_cgroups() -> None:
    for more in ((), ("Delegate=yes",)):
        said = unit("ProtectControlGroups=yes", *more)
        assert said["outcome"] == "NotDelegated", said
        assert said["detail"].endswith(
            f"; set ProtectControlGroups=no and Delegate=yes in {NAME}: systemctl edit {NAME}"
        )
    assert unit("ProtectControlGroups=no", "Delegate=yes")["outcome"] == "SUCCEEDED"


@since(257)
def test_a_unit_with_cgroups_of_its_own() -> None:
    assert unit("ProtectControlGroups=private", "Delegate=yes")["outcome"] == "SUCCEEDED"
    for more in ((), ("Delegate=yes", "DelegateSubgroup=inner")):
        said = unit("ProtectControlGroups=private", *more)
        assert said["outcome"] == "NotDelegated", said
        assert said["detail"].endswith("; set Delegate=yes, and no DelegateSubgroup=, in the unit")
        said = unit("ProtectControlGroups=strict", *more)
        assert said["outcome"] == "NotDelegated", said
        assert said["detail"].endswith("; set ProtectControlGroups=no and Delegate=yes in the unit")


def test_a_user_without_a_manager() -> None:
    said = unit("DynamicUser=yes")
    assert said["outcome"] == "NotDelegated", said
    assert "there is no user manager to ask" in said["detail"]
    assert said["detail"].endswith(f"; set Delegate=yes in {NAME}: systemctl edit {NAME}")
    assert unit("DynamicUser=yes", "Delegate=yes")["outcome"] == "SUCCEEDED"


@pytest.mark.parametrize("line", ["MemoryMax=200M", "TasksMax=50", "IPAddressDeny=any"])
def test_a_user_does_not_leave_what_confines_the_unit(line: str) -> None:
    said = unit("User=tester", line)
    assert said["outcome"] == "CgroupError", said
    name = line.partition("=")[0]
    assert said["detail"].startswith(f"start scope: {name} of the unit would not hold in a scope of the user's own")
    assert said["detail"].endswith("; set Delegate=yes in the unit")
    assert said["warnings"] == []
    assert unit("User=tester", line, "Delegate=yes")["outcome"] == "SUCCEEDED"


def test_a_user_in_a_unit_that_confines_nothing() -> None:
    said = unit("User=tester")
    assert said["outcome"] == "SUCCEEDED", said
    assert said["path"].endswith(".scope")


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("InaccessiblePaths=/sys/fs/cgroup", "find delegated root: cgroup v2 is not to be seen here: /sys/fs/cgroup"),
        ("TemporaryFileSystem=/sys", "find delegated root: cgroup v2 is not to be seen here: /sys/fs/cgroup"),
        ("TemporaryFileSystem=/proc", "find delegated root: /proc/self/cgroup: No such file or directory [errno 2]"),
    ],
)
def test_file_systems_that_are_hidden(line: str, step: str) -> None:
    said = unit(line)
    assert said["outcome"] == "CgroupError", said
    assert said["detail"].startswith(step)


# --- too little of everything ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("TasksMax=2", "Resource temporarily unavailable [errno 11]"),
        ("LimitNOFILE=14", "Too many open files"),
    ],
)
@pytest.mark.parametrize("delegation", ["Delegate=yes", "Delegate=no"])
def test_too_little_is_said_by_its_name(line: str, words: str, delegation: str) -> None:
    said = unit(line, delegation)
    assert said["outcome"] in {"SandboxError", "CgroupError", "SANDBOX_ERROR"}, said
    assert words in said["detail"]
    assert "ended before its time" not in said["detail"]
