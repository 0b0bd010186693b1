"""Builds the disk images of a suite, once per recipe, and finds them again."""

import contextlib
import fcntl
import os
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testvm import log, recipe
from testvm.build_host import BUILD_TOOLS, RUN_TOOLS, apt_options, mirror, namespaced, need_tools, run_step
from testvm.requirements import read_requirements

REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Image:
    """Everything that a machine boots from. Nothing writes to it."""

    suite: str
    disk: Path
    kernel: Path
    qemu: Path
    uml: Path


def cache() -> Path:
    """Where images are kept; see GWSANDBOX_VM_CACHE."""
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
    uml = cache() / f"uml-{recipe.uml_fingerprint()}"
    if fresh or not all(path.exists() for path in (disk, qemu, uml)):
        need_tools(BUILD_TOOLS)
        with build_lock():
            if fresh and base.exists():
                shutil.rmtree(base)
            if not qemu.exists():
                build_qemu(qemu)
            if not uml.exists():
                build_uml(uml)
            if not base.exists():
                build_base(suite, base)
            if not disk.exists():
                build_disk(base, requirements, uml, disk)
    return Image(suite, disk, base / "vmlinuz", qemu, uml)


def prune(keep: list[Image]) -> None:
    """Remove what other recipes and requirement lists left of these suites in the cache."""
    with build_lock():
        for folder in [*cache().glob("qemu-*"), *cache().glob("uml-*")]:
            if not any(folder in (image.qemu, image.uml) for image in keep):
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
    """Unpack QEMU with its libraries and firmware."""
    paths = (recipe.QEMU_PROGRAM, recipe.QEMU_LIBRARIES, *recipe.QEMU_FIRMWARE)
    unpack_package(recipe.QEMU_SUITE, recipe.QEMU_PACKAGE, paths, target)


def build_uml(target: Path) -> None:
    """Unpack User-mode Linux: a program with its libraries, and the modules of its kernel."""
    paths = (recipe.UML_PROGRAM, recipe.UML_LIBRARIES, recipe.UML_MODULES)
    unpack_package(recipe.UML_SUITE, recipe.UML_PACKAGE, paths, target, rename_loader)


def rename_loader(tree: Path) -> None:
    """Let the program of User-mode Linux take its loader from a descriptor."""
    program = tree / recipe.UML_PROGRAM
    name = recipe.UML_LOADER.encode()
    new_name = f"/proc/self/fd/{recipe.UML_LOADER_FD}".encode().ljust(len(name), b"\0")
    program.write_bytes(program.read_bytes().replace(name, new_name))


def unpack_package(
    suite: str, package: str, paths: tuple[str, ...], target: Path, finish: Callable[[Path], None] = lambda _: None
) -> None:
    """Unpack paths out of a package and what it depends on, without an installation."""
    with timed(f"unpacking {package} of {suite} in {target} …"), work_folder() as work:
        tree = work / "tree"
        tree.mkdir()
        packed = work / "packed.tar"
        variant = ["--variant=extract", f"--include={package}"]
        run_step(f"mmdebstrap {package}", mmdebstrap(suite, packed, *variant), work)
        wanted = [f"./{path}" for path in paths]
        unpack = ["tar", "--extract", "--no-same-owner", f"--file={packed}", f"--directory={tree}", *wanted]
        run_step(f"unpack {package}", unpack, work)
        finish(tree)
        tree.rename(target)


def build_base(suite: str, target: Path) -> None:
    """Make what the suite's disks are made of: its packages in a tar file, its kernel, its Python's name."""
    user_space, other_kernel = recipe.MIXED.get(suite, (suite, None))
    with timed(f"installing {suite} in {target} …"), work_folder() as work:
        hooks = [*customize_hooks(work), *(other_kernel_hook(work, other_kernel) if other_kernel else [])]
        packages = ["--variant=minbase", f"--include={recipe.PACKAGES}", *hooks]
        run_step(f"mmdebstrap {suite}", mmdebstrap(user_space, work / "root.tar", *packages), work)
        run_step("unpack the kernel", namespaced(recipe.KERNEL_SETUP, str(work)), work)
        product = work / "product"
        product.mkdir()
        for name in ("root.tar", "vmlinuz", "python"):
            (work / name).rename(product / name)
        product.rename(target)


def mmdebstrap(suite: str, target: Path, *options: str) -> list[str]:
    return [
        *("mmdebstrap", "--quiet", "--format=tar", *options, *recipe.SUITE_OPTIONS.get(suite, ())),
        *(f"--dpkgopt={option}" for option in recipe.DPKG_OPTIONS),
        *(f"--aptopt={option}" for option in apt_options()),
        *(suite, str(target), *mirror()),
    ]


def customize_hooks(work: Path) -> list[str]:
    """The options that copy the recipe's files into the new root, and run its script there."""
    overlay = work / "overlay"
    for name, text in recipe.FILES.items():
        path = overlay / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    folders = shlex.join(str(path) for path in sorted(overlay.iterdir()))
    return [f"--customize-hook=copy-in {folders} /", script_hook(work / "setup", recipe.SETUP)]


def other_kernel_hook(work: Path, release: str) -> list[str]:
    """The options that put that release's kernel in the place of the suite's own."""
    variant = ["--variant=extract", f"--include={recipe.KERNEL_PACKAGE}"]
    run_step(f"mmdebstrap the kernel of {release}", mmdebstrap(release, work / "kernel.tar", *variant), work)
    return [script_hook(work / "other-kernel", recipe.OTHER_KERNEL_SETUP)]


def script_hook(path: Path, script: str) -> str:
    path.write_text(script)
    path.chmod(0o755)
    return f"--customize-hook={shlex.quote(str(path))}"


def build_disk(base: Path, requirements: list[str], uml: Path, target: Path) -> None:
    """Make a disk of the suite's packages and a virtual environment with the requirements."""
    python = (base / "python").read_text().strip().removeprefix("python")
    what = f"building the disk with a virtual environment for Python {python}: {', '.join(requirements)}"
    with timed(what), work_folder() as work:
        wheels = work / "wheels"
        wheels.mkdir()
        (wheels / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
        run_step("pip download", pip_download(python, wheels), work)
        command = namespaced(recipe.DISK_SETUP, str(work), str(base / "root.tar"), str(uml / recipe.UML_MODULES))
        run_step("make the disk", command, work)
        (work / "disk.img").rename(target)


def pip_download(python: str, wheels: Path) -> list[str]:
    platforms = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1", "linux")
    return [
        *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
        *(f"--python-version={python}", "--only-binary=:all:", f"--dest={wheels}"),
        *(f"--platform={platform}_x86_64" for platform in platforms),
        f"--requirement={wheels / 'requirements.txt'}",
    ]


# ── one build ────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def timed(text: str) -> Iterator[None]:
    """Log what begins, and how long it took."""
    began = time.monotonic()
    log(text)
    yield
    log(f"done in {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def build_lock() -> Iterator[None]:
    """One build at a time; what killed builds left is removed first."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / "build.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log("another build runs in this cache; waiting for it …")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache().glob("building-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """A new folder with an empty `mnt` in it, which goes with the block."""
    # Beside the product and not in /tmp: a rename is atomic on one file system only.
    with tempfile.TemporaryDirectory(prefix="building-", dir=cache()) as name:
        work = Path(name)
        work.chmod(0o755)
        (work / "mnt").mkdir()
        yield work
