"""What a test may need of the machine: one probe each, asked once, and declared as a marker in pyproject.toml.

``GWSANDBOX_TEST_MUST_HAVE=cgroup2,swap`` makes a test fail, and not be skipped, where one of those is missing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable

import pytest

from gwsandbox import Hardening, run
from gwsandbox.backends.cgroup.backend import CgroupBackend
from gwsandbox.backends.cgroup.delegation import find_root
from gwsandbox.linux import landlock
from gwsandbox.model.errors import CgroupError, SandboxError

MUST_HAVE = frozenset(filter(None, os.environ.get("GWSANDBOX_TEST_MUST_HAVE", "").split(",")))


def _cgroup2() -> str:
    try:
        CgroupBackend.find()
    except CgroupError as error:
        return str(error)
    return ""


def _delegated() -> str:
    try:
        find_root()
    except CgroupError as error:
        return str(error)
    return ""


def _root() -> str:
    return "" if os.geteuid() == 0 else "not root"


def _ordinary_user() -> str:
    return "" if os.geteuid() else "RLIMIT_NPROC does not bind root"


def _mount_namespace() -> str:
    if shutil.which("unshare") is None:
        return "no unshare(1)"
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stderr.strip() if done.returncode else ""


def _landlock() -> str:
    return landlock.why_none() or ("" if landlock.version() > 1 else "its version forbids to move files")


def _landlock_scopes() -> str:
    if landlock.version() < landlock.SCOPES_SINCE:
        return f"the version of Landlock is {landlock.version()}"
    scopes = landlock.make_ruleset({}, scopes=landlock.SCOPE_SIGNAL)
    try:
        holds = landlock.refused(scopes, [lambda: os.kill(os.getppid(), 0)]) == [True]
    finally:
        os.close(scopes)
    return "" if holds else "it claims to confine signals and does not"


def _strict() -> str:
    with contextlib.suppress(SandboxError):
        return "" if run(abs, (-1,), hardening=Hardening.strict(), backend="rlimit").success else "it runs nothing"
    return "strict hardening is refused; see gwsandbox doctor"


def _swap() -> str:
    with open("/proc/swaps", encoding="ascii") as file:
        return "" if len(file.readlines()) > 1 else "no swap is on"


def _library(name: str) -> str:
    return "" if importlib.util.find_spec(name) else "not installed"


def _cpython_tests() -> str:
    if importlib.util.find_spec("test") and importlib.util.find_spec("test.test_concurrent_futures"):
        return ""
    return "the interpreter has no tests of concurrent.futures (on Debian: libpython3-testsuite)"


def _chromium() -> str:
    return "" if shutil.which("chromium") else "there is no chromium in PATH"


def _loop_disk() -> str:
    if os.geteuid() or not os.path.exists("/dev/loop-control"):
        return "not root, or no loop devices"
    return "" if shutil.which("mkfs.ext4", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") else "no mkfs.ext4"


def _vm() -> str:
    """For tests that install units and users: a machine of scripts/vm, with systemd and as root."""
    if os.uname().nodename != "gwsandbox-vm":
        return "not in a machine of scripts/vm"
    return _root()


PROBES: dict[str, Callable[[], str]] = {
    "cgroup2": _cgroup2,
    "delegated": _delegated,
    "root": _root,
    "ordinary_user": _ordinary_user,
    "landlock": _landlock,
    "landlock_scopes": _landlock_scopes,
    "strict": _strict,
    "mount_namespace": _mount_namespace,
    "swap": _swap,
    "gevent": functools.partial(_library, "gevent"),
    "eventlet": functools.partial(_library, "eventlet"),
    "joblib": functools.partial(_library, "joblib"),
    "cpython_tests": _cpython_tests,
    "chromium": _chromium,
    "loop_disk": _loop_disk,
    "vm": _vm,
}


@functools.cache
def missing(name: str) -> str:
    """Why this machine has not the feature; empty where it has it."""
    return PROBES[name]()


def need(name: str) -> None:
    """End the test that runs if this machine has not the feature."""
    if reason := missing(name):
        if name in MUST_HAVE:
            pytest.fail(f"GWSANDBOX_TEST_MUST_HAVE names {name}, which is missing: {reason}", pytrace=False)
        pytest.skip(f"{name}: {reason}")


def summary() -> str:
    return ", ".join(f"{name}: {missing(name) or 'yes'}" for name in PROBES)
