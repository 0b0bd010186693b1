"""What ``gwsandbox doctor`` says of a host that is not as it should be, and that its advice mends it.

Each condition is made for real: by a unit of systemd, in a namespace, by a user made for it, or by a sysctl. The
advice is then followed line by line as it was printed, with nothing but its placeholders filled in, and the doctor
asked again.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import pwd
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cli_support import CLI, HANG_AFTER, cli, environment, wait_until
from features import missing
from support import MARK, Program

from gwsandbox.backends.cgroup import run_group
from gwsandbox.backends.cgroup.delegation import find_root
from gwsandbox.cli.doctor.host import cgroup_version, mount_options

Said = tuple[int, dict[str, Any]]

DOCTOR = shlex.join([*CLI, "doctor", "--json"])
VARIABLES = ("PATH", "PYTHONPATH", MARK)
HAS_CGROUP = not missing("cgroup2")
KERNEL = tuple(map(int, os.uname().release.split(".")[:2]))
ACCOUNTS_SWAP = os.path.exists("/sys/fs/cgroup/system.slice/memory.swap.max")
HIDE_SYSTEMD = "mount -t tmpfs none /run/systemd"
MOUNT_CGROUPS = "umount -lR /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"
ALL = "Delegate=memory pids cpu io"


def sh(script: str, *before: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a shell script, by another program where ``before`` names one."""
    settings: dict[str, Any] = {"env": environment(), "timeout": HANG_AFTER, **options}
    return subprocess.run([*before, "sh", "-ec", script], capture_output=True, text=True, check=False, **settings)


def said(done: subprocess.CompletedProcess[str]) -> Said:
    """The doctor's exit code and report, from a script that ends with asking it."""
    assert done.stderr == "", done
    return done.returncode, json.loads(done.stdout)


def in_mount_namespace(script: str) -> Said:
    """What the doctor says where ``script`` has changed the mounts, for it alone."""
    return said(sh(f"{script}; exec {DOCTOR}", "unshare", "--mount"))


def in_namespaces(*kinds: str, script: str, ask: str = DOCTOR) -> str:
    """A script that becomes the doctor in namespaces of its own, after ``script``."""
    return f"exec {shlex.join(['unshare', *kinds, 'sh', '-ec', f'{script}; exec {ask}'])}"


def in_container(script: str = "", ask: str = DOCTOR) -> str:
    """As a container's runtime makes it: with a cgroup namespace and its mount, and without systemd."""
    return in_namespaces("--mount", "--cgroup", script=f"{HIDE_SYSTEMD}; {MOUNT_CGROUPS}; {script or 'true'}", ask=ask)


def lines(report: dict[str, Any], entry: int = 0, **placeholders: str | int) -> str:
    """The lines of the advice, as a script, with words such as COMMAND replaced."""
    script = "\n".join(report["advice"][entry]["lines"])
    for name, value in placeholders.items():
        assert name in script
        script = script.replace(name, str(value))
    return script


def reason(report: dict[str, Any]) -> str:
    """Why the cgroup backend cannot be had."""
    assert not report["backends"]["cgroup"]["available"]
    text: str = report["backends"]["cgroup"]["reason"]
    return text


def is_mended(answer: Said) -> None:
    code, report = answer
    assert (code, report["status"], report["advice"]) == (0, "enforced", [])


# --- units -----------------------------------------------------------------------------------------------


class Unit:
    """A unit whose service asks the doctor, each time that it is started, and leaves what it said in a folder."""

    def __init__(self, folder: Path, *settings: str, script: str, units: Path, prefix: tuple[str, ...] = ()) -> None:
        self.name = "gwsandboxtest-doctor.service"
        self.file = units / self.name
        self._folder = folder
        self._prefix = prefix
        self._systemctl = ["systemctl", "--user"] if prefix else ["systemctl"]
        program = folder / "program"
        program.write_text(f"cd {folder}\n(\n{script}\n) >out 2>err\necho $? >code\n", encoding="utf-8")
        passed = [f'Environment="{name}={environment()[name]}"' for name in VARIABLES]
        # Else systemd ends a unit that is not delegated at the first out-of-memory kill, which the doctor provokes.
        always = ["[Service]", "Type=oneshot", "OOMPolicy=continue"]
        text = [*always, f"ExecStart=/bin/sh {program}", *passed, *settings]
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("\n".join([*text, ""]), encoding="utf-8")

    def start(self) -> Said:
        return self.after(
            *(shlex.join([*self._systemctl, *words]) for words in (["daemon-reload"], ["start", self.name]))
        )

    def after(self, *script: str) -> Said:
        """What the doctor says in the unit that ``script`` starts."""
        done = sh("\n".join(script), *self._prefix)
        assert done.returncode == 0, done
        assert (self._folder / "err").read_text(encoding="utf-8") == ""
        out = (self._folder / "out").read_text(encoding="utf-8")
        return int((self._folder / "code").read_text(encoding="utf-8")), json.loads(out)


@contextmanager
def unit(folder: Path, *settings: str, script: str = DOCTOR) -> Iterator[Unit]:
    """A unit of the system's manager."""
    made = Unit(folder, *settings, script=script, units=Path("/run/systemd/system"))
    try:
        yield made
    finally:
        made.file.unlink()
        shutil.rmtree(f"/etc/systemd/system/{made.name}.d", ignore_errors=True)
        sh(f"systemctl stop {made.name} gwsandboxtest.slice; systemctl daemon-reload")


# Of the settings that give a unit controllers all but Delegate=, and out of the slice where others have them given.
ALONE = ("TasksAccounting=no", "TasksMax=infinity", "MemoryAccounting=no", "CPUAccounting=no", "IOAccounting=no")
NO_BUS = "InaccessiblePaths=/run/dbus"


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
@pytest.mark.parametrize(("given", "lacking"), [("memory", "pids and cpu"), ("pids cpu", "memory")])
def test_a_controller_without_which_there_is_no_backend(tmp_path: Path, given: str, lacking: str) -> None:
    needed = lacking.split(maxsplit=1)[0]
    settings = [f"Delegate={given}", "Slice=gwsandboxtest.slice", *ALONE]
    with unit(tmp_path, *settings) as made:
        group = f"/gwsandboxtest.slice/{made.name}"
        code, report = made.start()
        assert (code, report["status"]) == (1, "degraded")
        assert f"the {needed} controller is not delegated to it: /sys/fs/cgroup{group}" in reason(report)
        assert report["host"]["delegated"] == f"no: the {needed} controller is not delegated to it"
        assert f"{needed} ends at {group}" in report["host"]["controllers"]
        (advice,) = report["advice"]
        assert advice["why"] == f"pass on the {lacking} controller, in the unit, as root:"
        is_mended(made.after(lines(report)))


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_controller_that_ends_further_up(tmp_path: Path) -> None:
    """No member of the outer slice asks for it, so the inner one is the first group without."""
    with unit(tmp_path, "Delegate=memory pids", "Slice=gwsandboxtest-inner.slice", *ALONE) as made:
        code, report = made.start()
        assert code == 1
        cpus = report["backends"]["cgroup"]["limits"]["cpus"]
        assert cpus["status"] == "not held"
        assert cpus["why"] == "the cpu controller is not delegated: set Delegate=cpu memory pids in the unit"
        above = "/gwsandboxtest.slice/gwsandboxtest-inner.slice"
        assert report["host"]["controllers"] == f"memory pids; cpu ends at {above}; io ends at {above}"
        assert [entry["why"] for entry in report["advice"]] == ["pass on the cpu controller, in the unit, as root:"]
        is_mended(made.after(lines(report)))


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_scope_without_a_controller() -> None:
    """A scope lasts as long as its command, so the advice is another one."""
    # Not all of ALONE: systemd 262 says on stderr that some of it is deprecated.
    bare = [f"--property={setting}" for setting in ("Delegate=memory", "TasksAccounting=no", "TasksMax=infinity")]
    done = sh(f"exec {DOCTOR}", "systemd-run", "--quiet", "--scope", "--slice=gwsandboxtest.slice", *bare, "--")
    sh("systemctl stop gwsandboxtest.slice")
    code, report = said(done)
    assert code == 1
    assert "the pids controller is not delegated to it" in reason(report)
    (advice,) = report["advice"]
    assert advice["lines"] == ["systemd-run --scope -p Delegate=yes -- COMMAND"]


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_nothing_delegated_and_no_bus(tmp_path: Path) -> None:
    with unit(tmp_path, NO_BUS) as made:
        code, report = made.start()
        assert (code, report["status"]) == (1, "degraded")
        assert (
            "no cgroup from the process's own upwards is delegated, and systemd gives no scope: there is no "
            in reason(report)
        )
        assert "there is no system bus to ask, as /run/dbus/system_bus_socket does not exist: " in reason(report)
        assert reason(report).endswith(
            "set Delegate=yes in gwsandboxtest-doctor.service: systemctl edit gwsandboxtest-doctor.service"
        )
        assert report["host"]["delegated"].startswith("no: no cgroup from the process's own upwards is delegated")
        assert [entry["why"] for entry in report["advice"]] == [
            "give gwsandbox a cgroup of its own, for one command:",
            "or for good, in the unit, as root:",
        ]
    # Where it was found, too, the lines do it: each of the two.
    with unit(tmp_path, NO_BUS, script=f"{lines(report, COMMAND=DOCTOR)} 2>/dev/null") as scoped:
        code, there = scoped.start()
        assert (code, there["advice"]) == (0, [])
    with unit(tmp_path, NO_BUS) as again:
        is_mended(again.after("systemctl daemon-reload", lines(report, 1)))


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_nothing_delegated_and_nothing_wrong_with_it(tmp_path: Path) -> None:
    """systemd gives a scope, with all controllers whatever the unit has: there is nothing to mend."""
    with unit(tmp_path, "Slice=gwsandboxtest.slice", *ALONE) as made:
        code, report = made.start()
        assert (code, report["advice"]) == (0, [])
        assert report["host"]["delegated"] == "no, but systemd gives a scope of its own to each run"
        assert report["host"]["controllers"] == "memory pids cpu io"


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_delegated_group_that_may_have_no_further_groups(tmp_path: Path) -> None:
    """Another reason than those that the doctor knows: a group of one's own mends most of them."""
    own = "/sys/fs/cgroup$(sed -n s/^0:://p /proc/self/cgroup)"
    with unit(tmp_path, ALL, script=f"echo 1 >{own}/cgroup.max.descendants\n{DOCTOR}") as made:
        code, report = made.start()
        assert code == 1
        assert reason(report).startswith("open run group: /sys/fs/cgroup/system.slice/gwsandboxtest-doctor.service/")
        assert reason(report).endswith(f": {os.strerror(errno.EAGAIN)} [errno {errno.EAGAIN}]")
    with unit(tmp_path, ALL, script=f"{lines(report, COMMAND=DOCTOR)} 2>/dev/null") as scoped:
        assert scoped.start()[0] == 0


# --- users -----------------------------------------------------------------------------------------------


class User:
    """An ordinary user without a session."""

    def __init__(self, name: str) -> None:
        entry = pwd.getpwnam(name)
        self.name, self.uid, self.home = name, entry.pw_uid, Path(entry.pw_dir)
        self.bus = Path(f"/run/user/{self.uid}/bus")
        ids = [f"--reuid={self.uid}", f"--regid={entry.pw_gid}", "--clear-groups"]
        variables = {name: environment()[name] for name in VARIABLES} | {"HOME": entry.pw_dir}
        # As after su or in a cron job: nothing in the environment tells of a user's manager.
        self.prefix = ("env", "-i", *(f"{name}={value}" for name, value in variables.items()), "setpriv", *ids)

    def ask(self, script: str = DOCTOR) -> Said:
        return said(sh(f"exec {script}", *self.prefix, cwd="/"))

    def give_manager(self) -> None:
        sh(f"loginctl enable-linger {self.name}")
        wait_until(self.bus.exists)

    def put(self, name: str, text: str) -> None:
        """A file of the user's, below the home folder."""
        path = self.home / name
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
        assert sh(f"chown -R {self.uid} {self.home}").returncode == 0


@pytest.fixture
def user() -> Iterator[User]:
    done = sh("useradd --create-home gwsandboxtest")
    assert done.returncode == 0, done
    made = User("gwsandboxtest")
    yield made
    sh(f"loginctl disable-linger {made.uid}; systemctl stop user@{made.uid}.service user-{made.uid}.slice")
    shutil.rmtree(f"/etc/systemd/system/user@{made.uid}.service.d", ignore_errors=True)
    done = sh("systemctl daemon-reload; userdel --force --remove gwsandboxtest")
    assert done.returncode == 0, done


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_no_user_manager(user: User) -> None:
    code, report = user.ask()
    assert (code, report["status"]) == (1, "degraded")
    assert f"there is no user manager to ask, as {user.bus} does not exist: /sys/fs/cgroup" in reason(report)
    assert reason(report).endswith(f"; as root: loginctl enable-linger {user.name}")
    assert "it cannot be written (mounted read-only, or another user's)" in reason(report)
    assert report["advice"] == [
        {"why": "start a user manager and its bus, as root:", "lines": [f"loginctl enable-linger {user.name}"]}
    ]
    assert sh(lines(report)).returncode == 0
    wait_until(user.bus.exists)
    is_mended(user.ask())


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_user_manager_that_refuses(user: User) -> None:
    user.put(".config/systemd/user/x", "")
    (user.home / ".config/systemd/user/gwsandbox.slice").symlink_to("/dev/null")
    user.give_manager()
    code, report = user.ask()
    assert code == 1
    assert reason(report).startswith("start scope: ")
    assert "gwsandbox.slice is masked" in reason(report)
    (advice,) = report["advice"]
    assert advice["why"] == "give gwsandbox a cgroup of its own, for one command:"
    code, report = user.ask(f"env {lines(report, COMMAND=DOCTOR)} 2>/dev/null")
    assert (code, report["advice"]) == (0, [])


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_user_manager_without_a_controller(user: User) -> None:
    drop_in = Path(f"/etc/systemd/system/user@{user.uid}.service.d/a.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nDelegate=\nDelegate=memory pids\n", encoding="ascii")
    sh("systemctl daemon-reload")
    user.give_manager()
    code, report = user.ask()
    assert code == 1
    assert report["host"]["controllers"].startswith("memory pids; cpu ends at /user.slice/user-")
    (advice,) = report["advice"]
    assert advice["why"] == "pass on the cpu controller, in the unit, as root:"
    assert advice["lines"][-1].endswith(f"systemctl restart user@{user.uid}.service")
    done = sh(lines(report))
    assert done.returncode == 0, done
    wait_until(user.bus.exists)
    is_mended(user.ask())


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_unit_of_the_users_without_a_controller(user: User) -> None:
    user.put("doctor/x", "")
    user.give_manager()
    prefix = (*user.prefix, "env", f"XDG_RUNTIME_DIR={user.bus.parent}")
    settings = ["Delegate=memory cpu", "Slice=gwsandboxtest.slice", *ALONE]
    units = user.home / ".config/systemd/user"
    made = Unit(user.home / "doctor", *settings, script=DOCTOR, units=units, prefix=prefix)
    sh(f"chown -R {user.uid} {user.home}")
    code, report = made.start()
    assert code == 1
    assert "the pids controller is not delegated to it" in reason(report)
    (advice,) = report["advice"]
    assert advice["why"] == "pass on the pids controller, in your unit:"
    is_mended(made.after(lines(report)))


# --- mounts and namespaces -------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.mount_namespace
def test_no_cgroups_at_all() -> None:
    code, report = in_mount_namespace("umount --lazy --recursive /sys/fs/cgroup")
    assert code == 1
    assert report["host"]["cgroup"] == "none is mounted"
    assert "cgroup v2 is not mounted (this host has version 1, hybrid or none)" in reason(report)
    assert {"why": "mount cgroup version 2, as root:", "lines": ["mount -t cgroup2 none /sys/fs/cgroup"]} in report[
        "advice"
    ]


@pytest.mark.root
@pytest.mark.mount_namespace
def test_advice_to_mount_mends_it() -> None:
    """Where version 1 has no controller: followed to the letter, version 2 is there."""
    if not HAS_CGROUP:
        pytest.skip("version 1 has the controllers")
    is_mended(in_mount_namespace("umount --lazy --recursive /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup"))


V1 = """
umount --lazy --recursive /sys/fs/cgroup
mount -t tmpfs none /sys/fs/cgroup
mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
mount -t cgroup -o none,name=gwsandboxtest none /sys/fs/cgroup/systemd"""


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.parametrize(
    ("script", "version"),
    [
        (V1, "version 1 (legacy); limits need version 2"),
        (
            f"{V1}\nmount -t cgroup2 none /sys/fs/cgroup/unified",
            "version 1 beside an idle version 2 (hybrid); limits need version 2 alone",
        ),
    ],
    ids=["legacy", "hybrid"],
)
def test_version_1(script: str, version: str) -> None:
    code, report = in_mount_namespace(script)
    assert (code, report["status"]) == (1, "degraded")
    assert report["host"]["cgroup"] == version
    assert "boot with systemd.unified_cgroup_hierarchy=1, or use backend='rlimit'" in reason(report)
    (advice,) = report["advice"]
    assert advice["why"] == "boot the host with cgroup version 2; with GRUB, as root:"
    edit, reboot = advice["lines"]
    assert reboot == "update-grub && reboot"
    # As far as it goes without another boot: what GRUB is given.
    grub = "mount -t tmpfs none /etc/default; echo 'GRUB_CMDLINE_LINUX=\"quiet systemd.unified_cgroup_hierarchy=0\"' >/etc/default/grub"
    done = sh(f"{grub}\n{edit}\ncat /etc/default/grub", "unshare", "--mount")
    assert done.stdout == (
        'GRUB_CMDLINE_LINUX="quiet systemd.unified_cgroup_hierarchy=0 systemd.unified_cgroup_hierarchy=1"\n'
    )


@pytest.mark.parametrize(
    ("mounts", "version"),
    [
        ("cgroup2 /sys/fs/cgroup cgroup2 rw 0 0", "unified"),
        ("tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0", "hybrid"),
        ("tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/memory cgroup rw,memory 0 0", "legacy"),
        ("proc /proc proc rw 0 0", "none"),
        ("", "none"),
    ],
)
def test_versions(mounts: str, version: str) -> None:
    assert cgroup_version(mounts) == version


@pytest.mark.root
@pytest.mark.mount_namespace
@pytest.mark.cgroup2
def test_read_only_cgroups() -> None:
    """As containers have them."""
    code, report = in_mount_namespace(f"{HIDE_SYSTEMD}; mount -o remount,bind,ro /sys/fs/cgroup")
    assert code == 1
    assert report["host"]["delegated"] == "no: /sys/fs/cgroup is mounted read-only, as containers have it"
    assert "it cannot be written (mounted read-only, or another user's)" in reason(report)
    (advice,) = report["advice"]
    assert advice["why"] == "start the container with a writable cgroup namespace:"
    assert any("writable-cgroups=true" in line for line in advice["lines"])


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_cgroups_that_a_unit_has_read_only(tmp_path: Path) -> None:
    with unit(tmp_path, "ProtectControlGroups=yes") as made:
        code, report = made.start()
        assert code == 1
        assert report["host"]["delegated"].endswith(" is mounted read-only, as ProtectControlGroups= has it")
        assert reason(report).endswith(
            "set ProtectControlGroups=no and Delegate=yes in gwsandboxtest-doctor.service: "
            "systemctl edit gwsandboxtest-doctor.service"
        )
        is_mended(made.after("systemctl daemon-reload", lines(report)))


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_unit_that_ends_with_a_task() -> None:
    """systemd stops it at the first out-of-memory kill, so only its facts are asked for."""
    script = (
        "from gwsandbox.cli.doctor.host import inspect_host; import json; print(json.dumps(inspect_host(None).advice))"
    )
    for policy in ("stop", "continue"):
        options = ["--pipe", "--wait", "--collect", "--quiet", "-p", "Delegate=yes", "-p", f"OOMPolicy={policy}"]
        asked = shlex.join(["systemd-run", *options, "--", sys.executable, "-c", script])
        done = sh(asked)
        assert (json.loads(done.stdout) != []) == (policy == "stop"), done
        assert ('"OOMPolicy=continue"' in done.stdout) == (policy == "stop")


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_mount_that_counts_each_group_for_itself() -> None:
    with open("/proc/self/mounts", encoding="utf-8") as file:
        before = ",".join(mount_options(file.read()))
    assert sh(f"mount -o remount,{before},memory_localevents /sys/fs/cgroup").returncode == 0
    try:
        _, report = said(sh(f"exec {DOCTOR}"))
    finally:
        assert sh(f"mount -o remount,{before} /sys/fs/cgroup").returncode == 0
    assert report["host"]["mount option"].startswith("memory_localevents: OOM kills in groups that a task makes itself")
    assert "mount option" not in said(sh(f"exec {DOCTOR}"))[1]["host"]


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_container_in_its_hosts_cgroup_namespace(tmp_path: Path) -> None:
    """All groups of the host are there and can be written, and none of them is ours."""
    groups = set(os.listdir("/sys/fs/cgroup"))
    with unit(tmp_path, script=in_namespaces("--mount", script=HIDE_SYSTEMD)) as made:
        code, report = made.start()
        assert (code, report["status"]) == (1, "degraded")
        assert "the container shares the cgroup namespace of its host, whose systemd manages it" in reason(report)
        assert "start the container with --cgroupns=private" in reason(report)
        assert report["host"]["delegated"].startswith("no: the container shares the cgroup namespace of its host")
        (advice,) = report["advice"]
        assert all("--cgroupns=private" in line for line in advice["lines"])
    assert set(os.listdir("/sys/fs/cgroup")) == groups
    # What a container's runtime does for that option.
    with unit(tmp_path, script=in_container()) as made:
        code, report = made.start()
        assert (code, report["advice"], report["host"]["delegated"]) == (0, [], "/")


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_container_without_a_controller(tmp_path: Path) -> None:
    settings = ["Slice=gwsandboxtest.slice", *ALONE]
    with unit(tmp_path, *settings, "Delegate=memory", script=in_container()) as made:
        code, report = made.start()
        assert code == 1
        assert report["host"]["controllers"] == "memory; pids ends at /; cpu ends at /; io ends at /"
        (advice,) = report["advice"]
        assert advice["why"] == "give the container the pids and cpu controller, in the unit that runs it on its host:"
    with unit(tmp_path, *settings, lines(report), script=in_container()) as made:
        assert made.start()[0] == 0


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_an_ordinary_user_in_a_container(tmp_path: Path) -> None:
    nobody = f"setpriv --reuid=65534 --regid=65534 --clear-groups {DOCTOR}"
    with unit(tmp_path, script=in_container(ask=nobody)) as made:
        code, report = made.start()
        assert code == 1
        assert "gwsandbox doctor says what mends it" in reason(report)
        assert "systemd gives no scope: systemd does not run here" in reason(report)
        (advice,) = report["advice"]
        assert advice["why"] == "give this user its cgroup, as root:"
    with unit(tmp_path, script=in_container(lines(report), nobody)) as made:
        assert made.start()[0] == 0


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
def test_a_cgroup_namespace_without_its_mount(tmp_path: Path) -> None:
    """After unshare --cgroup alone, paths and mount do not fit together."""
    with unit(tmp_path, ALL, script=in_namespaces("--mount", "--cgroup", script="true")) as made:
        code, report = made.start()
        assert code == 1
        assert "the mount is of another cgroup namespace than the process: /sys/fs/cgroup" in reason(report)
        assert "mount this one's, as root: umount -lR /sys/fs/cgroup && mount -t cgroup2 none /sys/fs/cgroup" in reason(
            report
        )
        assert [entry["why"] for entry in report["advice"]] == [
            "mount the file system of this cgroup namespace, as root:"
        ]
    with unit(tmp_path, ALL, script=in_namespaces("--mount", "--cgroup", script=lines(report))) as made:
        is_mended(made.start())


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
@pytest.mark.delegated
def test_outside_of_the_cgroup_namespace() -> None:
    """As after nsenter(1), which takes nobody along into the container's cgroup."""
    assert cli("run", "--backend", "cgroup", "--", "true").returncode == 0  # the root's controllers are given on now
    group = f"{find_root().path}/container"
    os.mkdir(group)
    init = (
        "import os, subprocess\n"
        f"open('{group}/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "os.execvp('unshare', ['unshare', '--mount', '--cgroup', 'sh', '-ec', "
        f"'{MOUNT_CGROUPS}; {HIDE_SYSTEMD}; echo up; read _'])"
    )
    try:
        with Program(init) as container:
            assert container.line() == "up"
            entered = ("nsenter", f"--target={container.pid}", "--cgroup", "--mount")
            code, report = said(sh(f"exec {DOCTOR}", *entered))
            assert code == 1
            assert "the process is outside of its cgroup namespace: /../supervisor" in reason(report)
            assert "enter the container by its runtime (docker exec), or join its cgroup first" in reason(report)
            (advice,) = report["advice"]
            assert advice["why"].startswith("enter the container by its runtime, or join the cgroup of a process PID")
            code, report = said(sh(lines(report, PID=container.pid, COMMAND=DOCTOR)))
            assert (code, report["host"]["delegated"], report["advice"]) == (0, "/", [])
    finally:
        run_group.destroy(group)


# --- the kernel ------------------------------------------------------------------------------------------


@pytest.mark.cgroup2
@pytest.mark.delegated
def test_what_the_kernel_lacks_is_what_is_not_there() -> None:
    """With the version that has it: none is named that this kernel should have."""
    since = {
        "memory.peak": (5, 19),
        "memory.swap.peak": (6, 5),
        "memory.events.local": (5, 2),
        "pids.peak": (6, 1),
        "cgroup.kill": (5, 14),
    }
    report = said(sh(f"exec {DOCTOR}"))[1]
    top = find_root().path
    lacking = [name for name in since if not os.path.exists(f"{top}/{name}")]
    told = report["host"].get("kernel lacks", "").partition(";")[0]
    assert told == ", ".join(f"{name} (Linux {since[name][0]}.{since[name][1]})" for name in lacking)
    assert lacking == [name for name, version in since.items() if version > KERNEL]


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
@pytest.mark.swap
@pytest.mark.skipif(not ACCOUNTS_SWAP, reason="this kernel does not account swap")
def test_swap() -> None:
    assert said(sh(f"exec {DOCTOR}"))[1]["host"]["swap"] == "on, accounted"
    areas = [line.split()[0] for line in Path("/proc/swaps").read_text(encoding="utf-8").splitlines()[1:]]
    try:
        assert said(sh(f"swapoff -a; exec {DOCTOR}"))[1]["host"]["swap"] == "off"
    finally:
        assert sh(f"swapon {shlex.join(areas)}").returncode == 0


@pytest.mark.vm
@pytest.mark.thorough
@pytest.mark.cgroup2
@pytest.mark.swap
@pytest.mark.skipif(ACCOUNTS_SWAP, reason="this kernel accounts swap")
def test_swap_that_is_not_accounted() -> None:
    code, report = said(sh(f"exec {DOCTOR}"))
    assert code == 1
    memory = report["backends"]["cgroup"]["limits"]["memory"]
    assert memory["status"] == "not held"
    assert "limit swap: this kernel has swap but does not account it" in memory["why"]
    assert report["host"]["swap"] == "on, and not accounted: memory limits are refused"
    (advice,) = report["advice"]
    areas = [line.split()[0] for line in Path("/proc/swaps").read_text(encoding="utf-8").splitlines()[1:]]
    try:
        assert said(sh(f"{advice['lines'][1]}; exec {DOCTOR}"))[0] == 0
    finally:
        assert sh(f"swapon {shlex.join(areas)}").returncode == 0


# --- hardening -------------------------------------------------------------------------------------------


def hardening(answer: Said) -> list[str]:
    told: str = answer[1]["host"]["hardening"]
    return told.split(", ")


@contextmanager
def sysctl(name: str, value: str) -> Iterator[None]:
    path = Path("/proc/sys", name)
    before = path.read_text(encoding="ascii")
    path.write_text(value, encoding="ascii")
    try:
        yield
    finally:
        path.write_text(before, encoding="ascii")


@pytest.mark.vm
@pytest.mark.thorough
def test_user_namespaces() -> None:
    assert hardening(said(sh(f"exec {DOCTOR}")))[0] == "user namespaces"
    with sysctl("user/max_user_namespaces", "0"):
        assert sh("true", "unshare", "--user").returncode != 0
        assert hardening(said(sh(f"exec {DOCTOR}")))[0] == "no user namespaces"
    with sysctl("kernel/unprivileged_userns_clone", "0"):
        assert hardening(said(sh(f"exec {DOCTOR}")))[0] == "user namespaces for root only"


def test_seccomp_and_landlock_as_the_kernel_itself_tells() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    landlock = libc.syscall(444, None, 0, 1) > 0  # landlock_create_ruleset, asked for its version
    libc.prctl(22, 2, None, 0, 0)  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER, and no filter
    seccomp = ctypes.get_errno() == errno.EFAULT
    _, found_seccomp, found_landlock = hardening(said(sh(f"exec {DOCTOR}")))
    assert found_seccomp == ("seccomp" if seccomp else "no seccomp filters")
    if not found_landlock.startswith("Landlock unknown"):
        assert found_landlock == ("Landlock" if landlock else "no Landlock")


@pytest.mark.vm
@pytest.mark.thorough
def test_where_the_kernel_does_not_say() -> None:
    answer = in_mount_namespace("umount /sys/kernel/security; mount -t tmpfs none /proc/sys/kernel/seccomp")
    assert hardening(answer)[1:] == ["no seccomp filters", "Landlock unknown (securityfs is not mounted)"]
