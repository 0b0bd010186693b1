"""What is in the image. A change here makes a new image; nothing else does.

Comments inside the scripts below are part of the recipe: an edit of one rebuilds the images of everybody.
"""

import hashlib
import json

SUITES = ("trixie", "bookworm", "forky", "linux-5.10")

# Suites made of two releases: whose user space, whose kernel. No release with a kernel that old has Python 3.11.
MIXED = {"linux-5.10": ("bookworm", "bullseye")}

KERNEL_PACKAGE = "linux-image-cloud-amd64"
PACKAGES = (
    f"bubblewrap,dbus,dbus-user-session,iproute2,kmod,libpam-systemd,{KERNEL_PACKAGE},login,passwd,procps,"
    "python3,python3-pip,python3-venv,strace,systemd,systemd-container,systemd-sysv,udev"
)

# Documents that no test reads; leaving them out halves the time to unpack.
DPKG_OPTIONS = (
    "path-exclude=/usr/share/doc/*",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/locale/*",
)

SUITE_OPTIONS = {
    # mmdebstrap of bookworm itself leaves /bin and /lib apart from /usr, which no installed bookworm does.
    "bookworm": ("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",),
    # Its last index, of updates too, is past the date until which it says it is valid.
    "bullseye": ('--aptopt=Acquire::Check-Valid-Until "false"',),
    # A frozen copy of a testing suite's index may be past the date until which it says it is valid.
    "forky": ('--aptopt=Acquire::Check-Valid-Until "false"',),
}

# QEMU before 8.1 may go on running a translation of code that another CPU has just patched, and Linux patches itself
# (static keys) whenever a first cgroup of a kind appears: "Oops: int3" within a minute of cgroup work under 7.2. So
# QEMU, too, comes out of a Debian release, on any host; it is unpacked only, and runs by its own loader.
QEMU_SUITE = "trixie"
QEMU_PACKAGE = "qemu-system-x86"
QEMU_LIBRARIES = "usr/lib/x86_64-linux-gnu"
QEMU_PROGRAM = "usr/bin/qemu-system-x86_64"
QEMU_FIRMWARE = ("usr/share/qemu", "usr/share/seabios")

# User-mode Linux: a kernel that is a process of the host. It is quick, and it has no Landlock and one processor. Only
# from 6.16 on it runs processes by seccomp instead of by ptrace.
UML_SUITE = "forky"
UML_PACKAGE = "user-mode-linux"
UML_PROGRAM = "usr/bin/linux.uml"
UML_LIBRARIES = "usr/lib/x86_64-linux-gnu"
UML_MODULES = "usr/lib/uml/modules"

# It runs on hosts of any release by its own loader. It may not be started by that, because its memory begins at its
# heap, which would be the loader's. So the name of the loader in it becomes one that the host's end opens.
UML_LOADER = "/lib64/ld-linux-x86-64.so.2"
UML_LOADER_FD = 9

AGENT_UNIT = r"""[Unit]
Description=The guest's end of scripts/vm
Requires=dev-virtio\x2dports-gwsandbox.agent.device
After=dev-virtio\x2dports-gwsandbox.agent.device gwsandbox-swap.service

[Service]
RuntimeDirectory=gwsandbox
ExecStartPre=/sbin/modprobe qemu_fw_cfg
ExecStartPre=/bin/cp /sys/firmware/qemu_fw_cfg/by_name/opt/gwsandbox/agent/raw /run/gwsandbox/agent.pyz
ExecStart=/usr/bin/python3 -I /run/gwsandbox/agent.pyz
Restart=always
RestartSec=200ms
StandardError=journal+console
OOMScoreAdjust=-1000

[Install]
WantedBy=multi-user.target
"""

# Under User-mode Linux, whose kernel's command line asks for this unit and masks the one above.
UML_AGENT_UNIT = """[Unit]
Description=The guest's end of scripts/vm under User-mode Linux
After=gwsandbox-swap.service

[Service]
RuntimeDirectory=gwsandbox
ExecStartPre=/bin/mkdir --parents /run/gwsandbox/host
ExecStartPre=/bin/mount -t hostfs none /run/gwsandbox/host
ExecStartPre=/bin/cp /run/gwsandbox/host/agent.pyz /run/gwsandbox/agent.pyz
ExecStartPre=/bin/umount /run/gwsandbox/host
ExecStart=/usr/bin/python3 -I /run/gwsandbox/agent.pyz
Restart=always
RestartSec=200ms
StandardError=journal+console
OOMScoreAdjust=-1000
"""

# Without swap in the machine memory.swap.max limits nothing that could be tested.
SWAP_UNIT = """[Unit]
Description=Some swap
ConditionPathExists=!/swapfile

[Service]
Type=oneshot
ExecStart=/bin/fallocate --length 1GiB /swapfile
ExecStart=/bin/chmod 600 /swapfile
ExecStart=/sbin/mkswap --quiet /swapfile
ExecStart=/sbin/swapon /swapfile

[Install]
WantedBy=multi-user.target
"""

# Only `scripts/vm shell` lets this unit start; when its shell ends, so does the machine.
GETTY_DROP_IN = """[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin ${GWSANDBOX_LOGIN} --noclear --keep-baud 115200 - ${GWSANDBOX_TERM}
ExecStopPost=/bin/systemctl --force --no-block poweroff
Restart=no
"""

# Nobody answers its question, and the host takes a machine that ends for one that failed.
EMERGENCY_DROP_IN = """[Service]
ExecStart=
ExecStart=/bin/systemctl --force poweroff
"""

# On a busy host a boot under emulation takes minutes, and systemd's own limits of 90 s would break it.
PATIENCE = """[Manager]
DefaultTimeoutStartSec=600s
DefaultDeviceTimeoutSec=600s
"""

PROFILE = """export PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
[ -d /gwsandbox ] && cd /gwsandbox
"""

# Devices that nothing here uses; under emulation each costs up to three seconds of the boot.
NEEDLESS_MODULES = "".join(
    f"install {name} /bin/false\n"
    for name in ("aesni_intel", "ghash_clmulni_intel", "kvm", "kvm_amd", "kvm_intel", "powernow_k8", "psmouse")
)

FILES = {
    "etc/hostname": "gwsandbox-vm\n",
    "etc/hosts": "127.0.0.1 localhost gwsandbox-vm\n::1 localhost\n",
    "etc/modprobe.d/gwsandbox.conf": NEEDLESS_MODULES,
    "etc/profile.d/gwsandbox.sh": PROFILE,
    "etc/systemd/journald.conf.d/gwsandbox.conf": "[Journal]\nStorage=volatile\n",
    "etc/systemd/system.conf.d/gwsandbox.conf": PATIENCE,
    "etc/systemd/system/emergency.service.d/gwsandbox.conf": EMERGENCY_DROP_IN,
    "etc/systemd/system/gwsandbox-agent.service": AGENT_UNIT,
    "etc/systemd/system/gwsandbox-agent-uml.service": UML_AGENT_UNIT,
    "etc/systemd/system/gwsandbox-swap.service": SWAP_UNIT,
    "etc/systemd/system/serial-getty@ttyS0.service.d/gwsandbox.conf": GETTY_DROP_IN,
    "usr/local/bin/gwsandbox": '#!/bin/sh\nexec /opt/venv/bin/python -m gwsandbox "$@"\n',
    "usr/local/lib/gwsandbox/record-exit": '#!/bin/sh\necho "$EXIT_CODE $EXIT_STATUS $SERVICE_RESULT" > "$1"\n',
}

# Runs with the new root's path as $1, after the packages are in and FILES are laid.
SETUP = """#!/bin/sh
set -eu
chmod 755 "$1/usr/local/bin/gwsandbox" "$1/usr/local/lib/gwsandbox/record-exit"
mkdir -p "$1/gwsandbox" "$1/var/lib/systemd/linger"
touch "$1/var/lib/systemd/linger/tester"
chroot "$1" useradd --create-home --uid 1000 --shell /bin/bash tester
touch "$1/etc/.updated" "$1/var/.updated"
chroot "$1" systemctl enable gwsandbox-agent.service gwsandbox-swap.service
chroot "$1" systemctl set-default multi-user.target
chroot "$1" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \\
    e2scrub_reap.service fstrim.timer getty@tty1.service systemd-timesyncd.service systemd-networkd.service \\
    systemd-networkd-wait-online.service systemd-network-generator.service sys-kernel-debug.mount \\
    sys-kernel-tracing.mount kmod-static-nodes.service systemd-binfmt.service systemd-random-seed.service
"""

# Of mixed suites, with the new root's path as $1, and kernel.tar beside this script: the other release's kernel instead
# of the suite's own. The new root's /lib is a link, which tar would replace by a folder.
OTHER_KERNEL_SETUP = """#!/bin/sh
set -eu
packed=$(dirname "$0")/kernel.tar
rm -r "$1"/boot/* "$1"/usr/lib/modules/*
tar --extract --file "$packed" --directory "$1" --wildcards './boot/vmlinuz-*'
tar --extract --file "$packed" --directory "$1/usr" ./lib/modules
chroot "$1" depmod "$(ls "$1/usr/lib/modules")"
"""

# With the work folder as $1, where root.tar is: the kernel, and what the host must know of the new root.
KERNEL_SETUP = """set -eu
tar --extract --file "$1/root.tar" --directory "$1/mnt" --wildcards './boot/vmlinuz-*' ./usr/bin/python3
cp "$1"/mnt/boot/vmlinuz-* "$1/vmlinuz"
readlink "$1/mnt/usr/bin/python3" > "$1/python"
"""

# With the work folder as $1, root.tar as $2 and the modules of User-mode Linux as $3: the disk, with the virtual
# environment made natively in it, so that no run pays for pip and for compiling under emulation. What is mounted here
# vanishes with this process.
DISK_SETUP = """set -eu
mount -t tmpfs -o mode=755 gwsandbox-vm "$1/mnt"
cd "$1/mnt"
tar --extract --file "$2" --exclude './dev/*'
mount --rbind /dev dev
mkdir wheels
mount --bind "$1/wheels" wheels
chroot . python3 -m venv /opt/venv
chroot . /opt/venv/bin/python -m pip install --quiet --disable-pip-version-check --root-user-action=ignore \\
    --no-cache-dir --no-index --find-links /wheels --requirement /wheels/requirements.txt
umount --recursive --lazy dev wheels
rmdir wheels
cp --recursive "$3/." usr/lib/modules
# Gives `import gwsandbox` its modules from the work tree, wherever the command is started.
echo /gwsandbox > "$(echo opt/venv/lib/python3.*/site-packages)/gwsandbox.pth"
# Without a machine id systemd takes every boot for the first one and applies all presets again.
echo 0123456789abcdef0123456789abcdef > etc/machine-id
truncate --size 10G "$1/disk.img"
mkfs.ext4 -q -F -m 0 -O '^has_journal' -d . "$1/disk.img"
# Without an initrd the kernel looks for these before anything can mount a /dev; only root could unpack them.
printf 'cd dev\\nmknod console c 5 1\\nmknod null c 1 3\\n' | debugfs -w -f - "$1/disk.img"
"""


def qemu_fingerprint() -> str:
    """The key of QEMU in the cache."""
    parts = [QEMU_SUITE, QEMU_PACKAGE, QEMU_LIBRARIES, QEMU_PROGRAM, QEMU_FIRMWARE]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def uml_fingerprint() -> str:
    """The key of User-mode Linux in the cache."""
    parts = [UML_SUITE, UML_PACKAGE, UML_PROGRAM, UML_LIBRARIES, UML_MODULES, UML_LOADER, UML_LOADER_FD]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def base_fingerprint(suite: str) -> str:
    """The key of a suite's packages in the cache; the host that builds them has no part in it."""
    parts: list[object] = [suite, PACKAGES, DPKG_OPTIONS, SUITE_OPTIONS.get(suite), FILES, SETUP, KERNEL_SETUP]
    if suite in MIXED:
        parts += [MIXED[suite], [SUITE_OPTIONS.get(release) for release in MIXED[suite]], OTHER_KERNEL_SETUP]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def disk_fingerprint(requirements: list[str]) -> str:
    """The key of a disk among those with the same packages."""
    return hashlib.sha256(json.dumps([DISK_SETUP, uml_fingerprint(), requirements]).encode()).hexdigest()[:12]
