"""The command line that boots an image under QEMU."""

import os
import sys
from pathlib import Path

from testvm import VmError, recipe
from testvm.boot import AGENT, SHARED, Boot

# Debian's cloud kernels have NVMe and ext4 built in: a boot without an initrd is six seconds shorter. There is one
# disk only, since the kernel numbers several in any order.
# lsm: Debian's own list less bpf, whose program for RestrictFileSystems= takes systemd three seconds to load.
KERNEL_WORDS = (
    "console=ttyS0 root=/dev/nvme0n1 rw panic=-1 quiet mitigations=off lsm=lockdown,capability,landlock,yama,apparmor"
)


def command(boot: Boot, folder: Path) -> list[str]:
    """QEMU's command line for a machine that lives in a folder."""
    serial = "mon:stdio" if boot.login else f"file:{folder / 'console.log'}"
    return [
        *(*program(boot.image.qemu), *acceleration(), "-smp", str(boot.cpus), "-m", boot.memory),
        *("-nodefaults", "-display", "none", "-no-reboot", "-nic", "none", "-serial", serial),
        *("-kernel", str(boot.image.kernel), "-append", f"{KERNEL_WORDS} {login_words(boot.login)} {boot.append}"),
        *("-drive", f"id=disk,file={boot.image.disk},if=none,format=raw,cache=unsafe,snapshot=on,file.locking=off"),
        *("-device", "nvme,drive=disk,serial=disk"),
        *("-device", "virtio-rng-pci", "-device", "virtio-serial"),
        *("-chardev", f"socket,id=agent,path={folder / 'agent.sock'},server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=gwsandbox.agent"),
        *("-fw_cfg", f"name=opt/gwsandbox/agent,file={folder / SHARED / AGENT}"),
    ]


def login_words(user: str | None) -> str:
    """The kernel's words that start the unit of the console's shell, or keep it from starting."""
    if user is None:
        return "systemd.mask=serial-getty@ttyS0.service"
    return f"systemd.setenv=GWSANDBOX_LOGIN={user} systemd.setenv=GWSANDBOX_TERM={terminal()}"


def program(tree: Path) -> list[str]:
    """QEMU by its own loader and libraries, so that it runs on a host of any release."""
    libraries = tree / recipe.QEMU_LIBRARIES
    firmware = [word for path in recipe.QEMU_FIRMWARE for word in ("-L", str(tree / path))]
    loader = [str(libraries / "ld-linux-x86-64.so.2"), "--library-path", str(libraries)]
    return [*loader, str(tree / recipe.QEMU_PROGRAM), *firmware]


def acceleration() -> list[str]:
    """What executes the machine's code, by GWSANDBOX_VM_ACCEL."""
    chosen = os.environ.get("GWSANDBOX_VM_ACCEL") or "tcg"
    if chosen == "kvm":
        return ["-accel", "kvm", "-cpu", "host"]
    if chosen == "tcg":
        # Four levels of page tables instead of five are walked faster.
        return ["-accel", "tcg,thread=multi,tb-size=1024", "-cpu", "max,la57=off"]
    raise VmError(f"GWSANDBOX_VM_ACCEL={chosen!r}: use tcg (the default) or kvm.")


def terminal() -> str:
    """The kind of this terminal, for the login shell."""
    return os.environ.get("TERM", "vt220") if sys.stdin.isatty() else "dumb"
