"""Builds the disk images of a suite, once per recipe, and finds them again."""

import contextlib
import fcntl
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmlib import VmError, recipe, say

REPO = Path(__file__).resolve().parents[2]
FALLBACK_REQUIREMENTS = ["cloudpickle", "hypothesis", "psutil", "pytest", "typer"]
RUN_TOOLS = {"git": "git", "setpriv": "util-linux"}
BUILD_TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "debugfs": "e2fsprogs",
    "unshare": "util-linux",
    "tar": "tar",
    "apt-get": "apt",
}
SYSTEM_PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"


@dataclass(frozen=True)
class Image:
    """Everything a machine boots from; never written to."""

    suite: str
    disk: Path
    kernel: Path
    qemu: Path


def cache() -> Path:
    chosen = os.environ.get("GWSANDBOX_VM_CACHE")
    if chosen:
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gwsandbox" / "vm"


def get(suite: str, *, fresh: bool = False) -> Image:
    """The images of a suite: from the cache, or built now."""
    need_tools(RUN_TOOLS)
    base = cache() / f"{suite}-{recipe.base_fingerprint(suite)}"
    requirements = read_requirements(REPO / "pyproject.toml")
    disk = base / f"disk-{recipe.disk_fingerprint(requirements)}.img"
    qemu = cache() / f"qemu-{recipe.qemu_fingerprint()}"
    if fresh or not disk.exists() or not qemu.exists():
        need_tools(BUILD_TOOLS)
        with build_lock():
            if fresh and base.exists():
                shutil.rmtree(base)
            if not qemu.exists():
                build_qemu(qemu)
            if not base.exists():
                build_base(suite, base)
            if not disk.exists():
                build_disk(base, requirements, disk)
    return Image(suite, disk, base / "vmlinuz", qemu)


def prune(keep: list[Image]) -> None:
    """Remove what other recipes and requirement lists left in the cache, of these suites."""
    with build_lock():
        for folder in cache().glob("qemu-*"):
            if folder not in [image.qemu for image in keep]:
                shutil.rmtree(folder)
        for image in keep:
            for folder in cache().glob(f"{image.suite}-*"):
                if folder != image.disk.parent:
                    shutil.rmtree(folder)
            for old in image.disk.parent.glob("disk-*.img"):
                if old != image.disk:
                    old.unlink()


# ── the layers ───────────────────────────────────────────────────────────────


def build_qemu(target: Path) -> None:
    began = time.monotonic()
    say(f"unpacking QEMU of {recipe.QEMU_SUITE} in {target} …")
    with work_folder() as work:
        tree = work / "tree"
        tree.mkdir()
        packed = work / "qemu.tar"
        variant = ["--variant=extract", f"--include={recipe.QEMU_PACKAGE}"]
        run_step("mmdebstrap QEMU", mmdebstrap(recipe.QEMU_SUITE, packed, *variant), work)
        paths = [f"./{path}" for path in (recipe.QEMU_PROGRAM, recipe.QEMU_LIBRARIES, *recipe.QEMU_FIRMWARE)]
        unpack = ["tar", "--extract", "--no-same-owner", f"--file={packed}", f"--directory={tree}", *paths]
        run_step("unpack QEMU", unpack, work)
        tree.rename(target)
    say(f"done in {time.monotonic() - began:.0f} s")


def build_base(suite: str, target: Path) -> None:
    began = time.monotonic()
    say(f"installing {suite} in {target} …")
    user_space, other_kernel = recipe.MIXED.get(suite, (suite, None))
    with work_folder() as work:
        hooks = [*customize_hooks(work), *(other_kernel_hook(work, other_kernel) if other_kernel else [])]
        packages = ["--variant=minbase", f"--include={recipe.PACKAGES}", *hooks]
        run_step(f"mmdebstrap {suite}", mmdebstrap(user_space, work / "root.tar", *packages), work)
        run_step("unpack the kernel", namespaced(recipe.KERNEL_SETUP, str(work)), work)
        product = work / "product"
        product.mkdir()
        for name in ("root.tar", "vmlinuz", "python"):
            (work / name).rename(product / name)
        product.rename(target)
    say(f"done in {time.monotonic() - began:.0f} s")


def mmdebstrap(suite: str, target: Path, *options: str) -> list[str]:
    return [
        *("mmdebstrap", "--quiet", "--format=tar", *options, *recipe.SUITE_OPTIONS.get(suite, ())),
        *(f"--dpkgopt={option}" for option in recipe.DPKG_OPTIONS),
        *(f"--aptopt={option}" for option in apt_options()),
        *(suite, str(target), *mirror()),
    ]


def customize_hooks(work: Path) -> list[str]:
    """Lay the recipe's files into the new root, and run its script there."""
    overlay = work / "overlay"
    for name, text in recipe.FILES.items():
        path = overlay / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folders = shlex.join(str(path) for path in sorted(overlay.iterdir()))
    return [f"--customize-hook=copy-in {folders} /", script_hook(work / "setup", recipe.SETUP)]


def other_kernel_hook(work: Path, release: str) -> list[str]:
    """Put that release's kernel in the place of the suite's own."""
    variant = ["--variant=extract", f"--include={recipe.KERNEL_PACKAGE}"]
    run_step(f"mmdebstrap the kernel of {release}", mmdebstrap(release, work / "kernel.tar", *variant), work)
    return [script_hook(work / "other-kernel", recipe.OTHER_KERNEL_SETUP)]


def script_hook(path: Path, script: str) -> str:
    path.write_text(script)
    path.chmod(0o755)
    return f"--customize-hook={shlex.quote(str(path))}"


def build_disk(base: Path, requirements: list[str], target: Path) -> None:
    began = time.monotonic()
    python = (base / "python").read_text().strip().removeprefix("python")
    say(f"building the disk with a virtual environment for Python {python}: {', '.join(requirements)}")
    with work_folder() as work:
        wheels = work / "wheels"
        wheels.mkdir()
        (wheels / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
        run_step("pip download", pip_download(python, wheels), work)
        command = namespaced(recipe.DISK_SETUP, str(work), str(base / "root.tar"))
        run_step("make the disk", command, work)
        (work / "disk.img").rename(target)
    say(f"done in {time.monotonic() - began:.0f} s")


def pip_download(python: str, wheels: Path) -> list[str]:
    platforms = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1", "linux")
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *(f"--python-version={python}", "--only-binary=:all:", f"--dest={wheels}"),
        *(f"--platform={platform}_x86_64" for platform in platforms),
        f"--requirement={wheels / 'requirements.txt'}",
    ]


def read_requirements(pyproject: Path) -> list[str]:
    """What the project and its tests depend on, and the extras that the environment asks for."""
    if not pyproject.exists():
        return FALLBACK_REQUIREMENTS
    project = tomllib.loads(pyproject.read_text()).get("project", {})
    extras = project.get("optional-dependencies", {})
    found: list[str] = []
    chosen = ["test", *os.environ.get("GWSANDBOX_VM_EXTRAS", "").replace(",", " ").split()]
    queue = [*project.get("dependencies", []), *(line for extra in chosen for line in extras.get(extra, []))]
    own = re.compile(rf"{re.escape(project.get('name', ''))}\[([^\]]+)\]")
    while queue:
        line = queue.pop(0)
        if line in found:
            continue
        found.append(line)
        if others := own.match(line):
            for extra in others[1].split(","):
                queue.extend(extras.get(extra.strip(), []))
    return sorted(line for line in found if not own.match(line))


# ── the machine that builds ──────────────────────────────────────────────────


def mirror() -> list[str]:
    """The mirror that this machine's own apt uses, where it is a Debian; else mmdebstrap has one of its own."""
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
    """How this machine's apt reaches its mirror and how strict it is about its age; mmdebstrap asks for itself."""
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    wanted = re.compile(r'Acquire::(https?::Proxy\S*|Check-Valid-Until|Check-Date) ".+";')
    return [line.rstrip(";") for line in dump.splitlines() if wanted.fullmatch(line)]


def need_tools(tools: dict[str, str]) -> None:
    missing = sorted({package for tool, package in tools.items() if not shutil.which(tool, path=SYSTEM_PATH)})
    if not missing:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise VmError(
            f"these programs' packages are missing here: {' '.join(missing)}. "
            f"Install them (on Debian and Ubuntu: sudo apt-get install {' '.join(missing)}) and try again."
        )
    say(f"installing {' '.join(missing)} …")
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ([*apt, "update"], [*apt, "install", "--no-install-recommends", *missing]):
        done = subprocess.run(command, stdout=sys.stderr, stdin=subprocess.DEVNULL, env=environment, check=False)
        if done.returncode:
            raise VmError(f"{shlex.join(command)} failed with exit code {done.returncode}; its words are above.")


def namespaced(script: str, *arguments: str) -> list[str]:
    """Run a script that mounts and changes root, in a mount namespace that takes it all along when it ends."""
    rootless = [] if os.geteuid() == 0 else ["--map-root-user", "--map-auto"]
    return ["unshare", "--mount", *rootless, "sh", "-c", script, "sh", *arguments]


def run_step(step: str, command: list[str], work: Path) -> None:
    log = work / "log"
    environment = {**os.environ, "PATH": SYSTEM_PATH, "LC_ALL": "C.UTF-8"}
    with log.open("wb") as output:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, check=False
        )
    if done.returncode:
        sys.stderr.write(log.read_text(errors="replace")[-6000:])
        raise VmError(f"{step} failed with exit code {done.returncode}; its last words are above.")


@contextlib.contextmanager
def build_lock() -> Iterator[None]:
    """One build at a time; leftovers of builds that were killed are removed."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another build is going on in this cache; waiting for it …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache().glob("building-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    # Beside the product and not in /tmp: a rename is atomic on one file system only.
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache()) as name:
        work = Path(name)
        work.chmod(0o755)
        (work / "mnt").mkdir()
        yield work
