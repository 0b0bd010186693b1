"""The host that builds images and runs machines: its programs, its mirror, and how a build step runs on it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from testvm import VmError, log

RUN_TOOLS = {"git": "git", "setpriv": "util-linux"}
"""Programs by the Debian package that holds each."""

BUILD_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "unshare": "util-linux",
    "tar": "tar",
    "apt-get": "apt",
}
SYSTEM_PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


def need_tools(tools: dict[str, str]) -> None:
    """Install the packages of programs that are missing here.

    Raises:
        VmError: Programs are missing, and this process cannot install them.
    """
    missing = sorted({package for tool, package in tools.items() if not shutil.which(tool, path=SYSTEM_PATH)})
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise VmError(
            f"these programs' packages are missing here: {' '.join(missing)}. "
            f"Install them (on Debian and Ubuntu: sudo apt-get install {' '.join(missing)}) and try again."
        )
    log(f"installing {' '.join(missing)} …")
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ([*apt, "update"], [*apt, "install", "--no-install-recommends", *missing]):
        done = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL, env=environment, check=False)
        if done.returncode:
            raise VmError(f"{shlex.join(command)} failed with exit code {done.returncode}; its output is above.")


def mirror() -> list[str]:
    """The mirror of this host's own apt where it is a Debian; otherwise mmdebstrap has its own default."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    if release.get("ID") != "debian":
        return []
    ours = {release.get("VERSION_CODENAME", ""), "stable", "testing", "unstable", "sid"}
    listing = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"],
        capture_output=True,
        text=True,
        check=False,
    )
    for line in listing.stdout.splitlines():
        uri, _, rest = line.partition(" ")
        codename, _, component = rest.partition(" ")
        if codename in ours and component == "main":
            return [uri]
    return []


def apt_options() -> list[str]:
    """How this host's apt reaches its mirror, and how old an index it accepts; mmdebstrap does not inherit either."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    wanted = re.compile(r'Acquire::(https?::Proxy\S*|Check-Valid-Until|Check-Date) ".+";')
    return [line.rstrip(";") for line in dump.splitlines() if wanted.fullmatch(line)]


def namespaced(script: str, *arguments: str) -> list[str]:
    """The command that runs a shell script in a mount namespace: what it mounts goes with it."""
    rootless = [] if os.geteuid() == 0 else ["--map-root-user", "--map-auto"]
    return ["unshare", "--mount", *rootless, "sh", "-c", script, "sh", *arguments]


def run_step(step: str, command: list[str], work: Path) -> None:
    """Run one command of a build, with its output in a log in the work folder.

    Raises:
        VmError: It failed; the end of its output is on stderr.
    """
    output_log = work / "log"
    environment = {**os.environ, "PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    with output_log.open("wb") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, check=False
        )
    if done.returncode:
        sys.stderr.write(output_log.read_text(errors="replace")[-6000:])
        raise VmError(f"{step} failed with exit code {done.returncode}; the end of its output is above.")
